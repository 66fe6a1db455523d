"""BN-Inception (Ioffe and Szegedy, arXiv 1502.03167), the backbone of the first temporal segment networks.

The widths are those of the Caffe model that everybody's weights come from; they differ a little from the paper's
table. What shrinks the map pads all its branches alike, so that every picture size fits.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# 1x1, then (reduction, 3x3), then (reduction, twice 3x3), then what is pooled and how wide it leaves (0 = as it is).
# A block without a 1x1 branch halves the map.
BLOCKS = {
    "3a": (64, (64, 64), (64, 96), ("mean", 32)),
    "3b": (64, (64, 96), (64, 96), ("mean", 64)),
    "3c": (0, (128, 160), (64, 96), ("max", 0)),
    "4a": (224, (64, 96), (96, 128), ("mean", 128)),
    "4b": (192, (96, 128), (96, 128), ("mean", 128)),
    "4c": (160, (128, 160), (128, 160), ("mean", 128)),
    "4d": (96, (128, 192), (160, 192), ("mean", 128)),
    "4e": (0, (128, 192), (192, 256), ("max", 0)),
    "5a": (352, (192, 320), (160, 224), ("mean", 128)),
    "5b": (352, (192, 320), (192, 224), ("max", 128)),
}


class Conv(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, width: int, wider: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(width, wider, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(wider),
            nn.ReLU(inplace=True),
        )


class Inception(nn.Module):
    """[N,C,h,w] -> the branches side by side."""

    def __init__(
        self, width: int, point: int, once: tuple[int, int], twice: tuple[int, int], pool: tuple[str, int]
    ) -> None:
        super().__init__()
        stride = 1 if point else 2
        kind, project = pool
        self.point = Conv(width, point, 1) if point else None
        self.once = nn.Sequential(Conv(width, once[0], 1), Conv(*once, 3, stride))
        self.twice = nn.Sequential(Conv(width, twice[0], 1), Conv(*twice, 3), Conv(twice[1], twice[1], 3, stride))
        pooling = nn.AvgPool2d(3, stride, 1) if kind == "mean" else nn.MaxPool2d(3, stride, 1)
        self.pool = nn.Sequential(pooling, Conv(width, project, 1)) if project else pooling
        self.width = point + once[1] + twice[1] + (project or width)

    def forward(self, maps: Tensor) -> Tensor:
        branches = [self.once(maps), self.twice(maps), self.pool(maps)]
        if self.point is not None:
            branches.insert(0, self.point(maps))
        return torch.cat(branches, 1)


class BNInception(nn.Sequential):
    """Pictures [N,3,H,W] -> [N,1024,H/32,W/32]."""

    def __init__(self) -> None:
        super().__init__(
            Conv(3, 64, 7, stride=2),
            nn.MaxPool2d(3, 2, 1),
            Conv(64, 64, 1),
            Conv(64, 192, 3),
            nn.MaxPool2d(3, 2, 1),
        )
        width = 192
        for name, branches in BLOCKS.items():
            block = Inception(width, *branches)
            self.add_module(f"inception_{name}", block)
            width = block.width
