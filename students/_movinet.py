"""MoViNet-A0, the base network: it sees the whole clip at once and keeps no stream buffers.

After "MoViNets: Mobile Video Networks for Efficient Video Recognition" (Kondratyuk et al., CVPR 2021), the table of
the A0 architecture: inverted bottlenecks that weigh their channels, swish, and no stride in time.

Two things differ from what its authors trained. A picture of even side is padded alike on both sides. And a fresh
bottleneck adds little to what it is given, theirs nothing: a fresh network already sees the order of the frames.

Shape legend: B clips, C channels, T frames (no layer skips any), H height, W width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from students._x3d import FACTOR, SqueezeExcite, Triple, conv_norm, rounded, start

STEM, LATENT, EMBEDDING = 8, 480, 2048
FLAT5, CUBE3, LONG5 = (1, 5, 5), (3, 3, 3), (5, 3, 3)
# Per block: its width, the stride of its first layer, and each layer's width inside and kernel.
BLOCKS: tuple[tuple[int, int, tuple[tuple[int, Triple], ...]], ...] = (
    (8, 2, ((24, FLAT5),)),
    (32, 2, ((80, CUBE3), (80, CUBE3), (80, CUBE3))),
    (56, 2, ((184, LONG5), (112, CUBE3), (184, CUBE3))),
    (56, 1, ((184, LONG5), (184, CUBE3), (184, CUBE3), (184, CUBE3))),
    (104, 2, ((384, LONG5), (280, FLAT5), (280, FLAT5), (344, FLAT5))),
)
SQUEEZE = 1 / 4
EPS = 1e-3  # of the normalisations
MEAN, STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def swish_conv(channels: tuple[int, int], kernel: Triple = (1, 1, 1), stride: int = 1, groups: int = 1) -> nn.Module:
    return conv_norm(channels, kernel, (1, stride, stride), groups, EPS, activation=nn.SiLU(inplace=True))


class Bottleneck(nn.Module):
    def __init__(self, channels: tuple[int, int], inside: int, kernel: Triple, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            swish_conv((channels[0], inside)),
            swish_conv((inside, inside), kernel, stride, groups=inside),
            SqueezeExcite(inside, rounded(SQUEEZE * inside), nn.SiLU(inplace=True)),
            conv_norm((inside, channels[1]), eps=EPS),
        )
        self.factor = nn.Parameter(torch.tensor(FACTOR))
        shrink = nn.AvgPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1), count_include_pad=False) if stride > 1 else nn.Identity()
        changes = stride > 1 or channels[0] != channels[1]
        self.skip = nn.Sequential(shrink, conv_norm(channels, eps=EPS)) if changes else nn.Identity()

    def forward(self, video: Tensor) -> Tensor:
        found: Tensor = self.skip(video) + self.factor * self.body(video)
        return found


class MoViNetA0(nn.Module):
    """The parts of the network in the order in which a video goes through them; `head` reads what `neck` makes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = swish_conv((3, STEM), (1, 3, 3), 2)
        inputs = (STEM, *(width for width, _, _ in BLOCKS))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(
                    Bottleneck((width if i else inputs[block], width), inside, kernel, 1 if i else stride)
                    for i, (inside, kernel) in enumerate(layers)
                )
            )
            for block, (width, stride, layers) in enumerate(BLOCKS)
        )
        self.last = swish_conv((inputs[-1], LATENT))
        self.neck = nn.Sequential(nn.Linear(LATENT, EMBEDDING), nn.SiLU(inplace=True))
        self.head = nn.Linear(EMBEDDING, classes)
        self.apply(start)
