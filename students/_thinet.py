"""ThiNet-Tiny: VGG-16 with most of its channels taken out, and an average instead of the wide layers at its end.

The widths are those that Luo, Wu and Lin published for ImageNet (arXiv 1707.06342; 1.32 M parameters with 1000
classes). Theirs was cut out of a trained VGG; this one starts from nothing, so each convolution is followed by batch
normalisation, without which so deep a chain hardly learns.
"""

from __future__ import annotations

from torch import nn

STAGES = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 256))


class ThiNetTiny(nn.Sequential):
    """Pictures [N,3,H,W] -> [N,256,H/16,W/16]."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        width = 3
        for i, stage in enumerate(STAGES):
            if i:
                layers.append(nn.MaxPool2d(2))
            for wider in stage:
                layers += [nn.Conv2d(width, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider)]
                layers.append(nn.ReLU(inplace=True))
                width = wider
        super().__init__(*layers)
