"""Squeeze and excite (Hu, Shen and Sun, arXiv 1709.01507) for networks that come without it.

Channels are weighed before the last convolution of a block's branch: in inverted residuals after the depthwise one, as
in MobileNetV3, in ResNets where they are fewest, as in RegNetY. Blocks of several branches weigh what leaves them. The
weights start at 1, so the network starts as what it was. They hang on the network as hooks, so that no weight of its
own changes its name.

Shape legend: N pictures, C channels, h and w the sides of a map.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.squeeze_excite import EffectiveSEModule, SEModule
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from students._blocks import blocks

KINDS = (SEModule, EffectiveSEModule, SqueezeExcite, SqueezeExcitation)


class Excite(nn.Module):
    """[N,C,h,w] -> the same, each channel times a weight from 0 to 2 that depends on all their means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(8, width // 16)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(width, narrow, 1, bias=False)
        self.excite = nn.Conv2d(narrow, width, 1, bias=False)
        nn.init.zeros_(self.excite.weight)

    def forward(self, maps: Tensor) -> Tensor:
        found: Tensor = self.excite(torch.relu(self.squeeze(self.pool(maps))))
        return maps * (2 * found.sigmoid())

    def before(self, part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        maps, *rest = given
        return (self(maps), *rest)

    def after(self, part: nn.Module, given: tuple[Any, ...], maps: Tensor) -> Tensor:
        answer: Tensor = self(maps)
        return answer


def insert_squeeze_excite(network: nn.Module) -> nn.ModuleList:
    """One Excite for each block, in order."""
    if any(isinstance(part, KINDS) for part in network.modules()):
        raise ValueError("the backbone has squeeze-and-excite of its own; squeeze_excite=false leaves it as it is")
    added = nn.ModuleList()
    for block in blocks(network):
        width = block.whole.width if block.last is None else block.last.in_channels
        assert isinstance(width, int)
        excite = Excite(width)
        if block.last is None:
            block.whole.register_forward_hook(excite.after)
        else:
            block.last.register_forward_pre_hook(excite.before)
        added.append(excite)
    if not added:
        raise ValueError("the backbone has no blocks that squeeze-and-excite could be added to")
    return added
