"""Picture networks without their heads, by name: those of torchvision and timm, and the small ones that both lack.

A name is looked for among our own networks, then in torchvision, then in timm; `timm/resnet34` and
`torchvision/resnet34` say which library is meant. What gives no map of channels by rows by columns is refused, so
these are convolutional networks. Files of weights under a library's own names fit `network`.

Shape legend: N pictures, D channels of the last map, h and w its sides.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from itertools import takewhile
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision import models

from students._bn_inception import BNInception
from students._nasnet import nasnet_a_mobile, pnasnet_5_mobile
from students._thinet import ThiNetTiny

Colours = tuple[float, float, float]
Normal = tuple[Colours, Colours]  # mean and standard deviation of each colour, of pictures in [0,1]

IMAGENET: Normal = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALVES: Normal = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OWN: dict[str, tuple[Callable[[], nn.Module], Normal]] = {
    "bn_inception": (BNInception, IMAGENET),
    "nasnet_a_mobile": (nasnet_a_mobile, HALVES),
    "pnasnet_5_mobile": (pnasnet_5_mobile, HALVES),
    "thinet_tiny": (ThiNetTiny, IMAGENET),
}
HEADS = ("avgpool", "classifier", "fc", "heads")  # where torchvision's networks stop giving maps
INSTEAD = "pretrained=false starts from random weights, init=FILE from a file of your own"


class Backbone(nn.Module):
    """Normalised pictures [N,3,H,W] -> the last map [N,D,h,w]; `width` is D. `look` normalises them first."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, normal: Normal) -> None:
        super().__init__()
        self.network = network
        self.mean, self.std = normal
        mean, std = torch.tensor(self.mean).view(3, 1, 1), torch.tensor(self.std).view(3, 1, 1)
        self.register_buffer("shift", -mean / std, persistent=False)
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.width = self._try()

    def forward(self, pictures: Tensor) -> Tensor:
        # timm's networks have a name for all but the head; the others here end in their last map.
        maps: Tensor = getattr(self.network, "forward_features", self.network)(pictures)
        return maps

    def look(self, pictures: Tensor) -> Tensor:
        """uint8 [N,3,H,W] -> the last map."""
        maps: Tensor = self(pictures.to(self.scale.dtype) * self.scale + self.shift)
        return maps

    @torch.no_grad()
    def try_on(self, size: int) -> Tensor:
        """The map [1,D,h,w] of a picture of this size, to learn of shapes; the network stays as it is."""
        weight = next(self.parameters())
        with evaluating(self):
            maps: Tensor = self(torch.zeros(1, 3, size, size, dtype=weight.dtype, device=weight.device))
        return maps

    def _try(self) -> int:
        """The width; parts of the head that are still there go, or they would be trained for nothing."""
        called: set[nn.Module] = set()
        hooks = [part.register_forward_hook(lambda part, *_: called.add(part)) for part in self.network.modules()]
        shape = self.try_on(224).shape
        for hook in hooks:
            hook.remove()
        for name, part in list(self.network.named_children()):
            if not called.intersection(part.modules()) and next(part.parameters(), None) is not None:
                setattr(self.network, name, nn.Identity())
        if len(shape) != 4 or shape[1] != getattr(self.network, "num_features", shape[1]):
            raise ValueError(f"it answers {list(shape)}, not channels by rows by columns")
        return shape[1]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while; every part goes back to the mode it was in."""
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def names() -> list[str]:
    """All that can be asked for, each once."""
    return sorted({name for known, _ in _LIBRARIES.values() for name in known()})


def backbone(name: str, pretrained: bool = False) -> Backbone:
    """The network of this name with random weights, or with those that its library publishes."""
    wanted, _, plain = name.rpartition("/")
    make = next((make for each, (known, make) in _LIBRARIES.items() if wanted in ("", each) and plain in known()), None)
    if make is None:
        near = get_close_matches(plain, names()) or ["mnasnet1_0", "resnet34", *OWN]
        raise ValueError(f"there is no backbone={name}; there are {', '.join(near)}, ...")
    network, normal = make(plain, pretrained)
    try:
        return Backbone(network, normal)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"backbone={name} does not turn a picture of 224x224 pixels into a map ({reason})") from error


def fitting(name: str, pretrained: bool, size: int) -> Backbone:
    """The network of this name, if it can see pictures of this size."""
    network = backbone(name, pretrained)
    try:
        network.try_on(size)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"backbone={name} cannot take size={size} ({reason})") from error
    return network


def _own(name: str, pretrained: bool) -> tuple[nn.Module, Normal]:
    if pretrained:
        raise ValueError(f"there are no weights of backbone={name} to fetch; {INSTEAD}")
    make, normal = OWN[name]
    network = make()
    for part in network.modules():
        if isinstance(part, nn.Conv2d):  # torch's own default shrinks what goes through so deep a chain to nothing
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
    return network, normal


def _from_torchvision(name: str, pretrained: bool) -> tuple[nn.Module, Normal]:
    helped = name in ("googlenet", "inception_v3")  # by helpers in training, which are left out
    options = {"aux_logits": False, "init_weights": True} if helped else {}
    # RegNet computes its widths with tensors, so it has to be made in earnest, wherever it is wanted.
    with torch.device("cpu") if name.startswith("regnet") else nullcontext():
        whole: nn.Module = models.get_model(name, weights=None, **options)
    for part in whole.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # the statistics of torchvision's mobile networks take thousands of steps to settle
    if pretrained:
        _load(whole, name)
    trunk = OrderedDict(takewhile(lambda part: part[0] not in HEADS, whole.named_children()))
    if name.startswith("densenet"):
        trunk["relu"] = nn.ReLU(inplace=True)
    # The weights of GoogLeNet and Inception are older than torchvision's way of normalising.
    return nn.Sequential(trunk).to(torch.get_default_device()), HALVES if helped else IMAGENET


def published(name: str) -> dict[str, torch.Tensor]:
    """The weights of a network of torchvision's, read as tensors only."""
    entry: Any = models.get_model_weights(name).__members__["DEFAULT"]
    try:
        weights: dict[str, torch.Tensor] = entry.get_state_dict(
            progress=False, check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{entry.url} cannot be fetched ({error}); {INSTEAD}") from error
    return weights


def _load(network: nn.Module, name: str) -> None:
    weights = published(name)
    for key in list(weights):  # in place, because the mapping knows which of its layouts mnasnet's file has
        value = weights.pop(key)
        if not key.lower().startswith("aux"):
            # densenet's files have "norm.1" where the network has "norm1".
            weights[re.sub(r"(denselayer\d+\.[a-z]+)\.(\d\.)", r"\1\2", key)] = value
    network.load_state_dict(weights)


def _from_timm(name: str, pretrained: bool) -> tuple[nn.Module, Normal]:
    try:
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"timm cannot make {name} ({str(error).splitlines()[0]}); {INSTEAD}") from error
    facts: Any = network.pretrained_cfg
    return network, (tuple(facts["mean"]), tuple(facts["std"]))


_LIBRARIES: dict[str, tuple[Callable[[], Iterable[str]], Callable[[str, bool], tuple[nn.Module, Normal]]]] = {
    "own": (lambda: OWN, _own),
    "torchvision": (lambda: models.list_models(module=models), _from_torchvision),
    "timm": (lambda: [*timm.list_models(), *timm.list_pretrained()], _from_timm),
}
