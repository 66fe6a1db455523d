"""The blocks that picture networks are made of, as far as known here, and where their branches begin and end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from timm.models import _efficientnet_blocks as mobile
from timm.models import regnet as timm_regnet
from timm.models import resnet as timm_resnet
from torch import nn
from torchvision.models import convnext, efficientnet, mnasnet, mobilenetv2, mobilenetv3, regnet, resnet

from students._bn_inception import Inception
from students._nasnet import Cell

# class -> the part that the branch enters by, the part with its last convolution, and which attribute says that the
# block's input is added to what the branch makes ("+": it always is)
KNOWN: dict[type[nn.Module], tuple[str, str, str]] = {
    resnet.BasicBlock: ("conv1", "conv2", "+"),
    resnet.Bottleneck: ("conv1", "conv3", "+"),
    mnasnet._InvertedResidual: ("layers", "layers", "apply_residual"),
    mobilenetv2.InvertedResidual: ("conv", "conv", "use_res_connect"),
    mobilenetv3.InvertedResidual: ("block", "block", "use_res_connect"),
    efficientnet.MBConv: ("block", "block", "use_res_connect"),
    efficientnet.FusedMBConv: ("block", "block", "use_res_connect"),
    regnet.ResBottleneckBlock: ("f", "f", "+"),
    convnext.CNBlock: ("block", "block", "+"),
    timm_resnet.BasicBlock: ("conv1", "conv2", "+"),
    timm_resnet.Bottleneck: ("conv1", "conv3", "+"),
    timm_regnet.Bottleneck: ("conv1", "conv3", "downsample"),
    mobile.ConvBnAct: ("conv", "conv", "has_skip"),
    mobile.DepthwiseSeparableConv: ("conv_dw", "conv_pw", "has_skip"),
    mobile.InvertedResidual: ("conv_pw", "conv_pwl", "has_skip"),
    mobile.EdgeResidual: ("conv_exp", "conv_pwl", "has_skip"),
    mobile.UniversalInvertedResidual: ("dw_start", "pw_proj", "has_skip"),
}
BRANCHED = (Inception, Cell)  # into several, and nothing is added to what they make


@dataclass(frozen=True)
class Block:
    whole: nn.Module
    enter: nn.Module
    last: nn.Conv2d | None  # None: there are several branches
    residual: bool


def blocks(network: nn.Module) -> Iterator[Block]:
    """In the order of the network's parts."""
    for part in network.modules():
        if isinstance(part, BRANCHED):
            yield Block(part, part, None, False)
        elif type(part) in KNOWN:
            enter, last, added = KNOWN[type(part)]
            convolutions = [inner for inner in part.get_submodule(last).modules() if isinstance(inner, nn.Conv2d)]
            residual = added == "+" or bool(getattr(part, added))
            yield Block(part, part.get_submodule(enter), convolutions[-1], residual)
