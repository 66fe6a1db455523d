"""How wide the layers of a student are: pruning leaves fewer channels than its options make.

Widths are layer -> {what: how many}, of what is narrower alone: {"head": {"in_features": 24}}, say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from distill.errors import UserError

Widths = dict[str, dict[str, int]]
FIELDS: dict[type[nn.Module], tuple[str, ...]] = {
    _ConvNd: ("in_channels", "out_channels", "groups"),
    nn.Linear: ("in_features", "out_features"),
    _NormBase: ("num_features",),
    nn.GroupNorm: ("num_channels",),
    nn.LayerNorm: ("normalized_shape",),
}


def widths_of(network: nn.Module) -> Widths:
    """Of every layer of a kind that can be made narrower."""
    return {name: found for name, part in network.named_modules() if (found := _widths(part))}


def narrowed(network: nn.Module, whole: nn.Module) -> Widths:
    """What is narrower in `network` than in the `whole` one."""
    before, found = widths_of(whole), Widths()
    for name, now in widths_of(network).items():
        if less := {what: size for what, size in now.items() if size != before[name][what]}:
            found[name] = less
    return found


def narrow(network: nn.Module, widths: Any) -> None:
    """Make layers as narrow as these widths say; which of their numbers are left does not matter, others will come."""
    if not isinstance(widths, Mapping):
        raise UserError("widths should be a table of layers")
    before = widths_of(network)
    for name, given in widths.items():
        if name not in before:
            raise UserError(f"widths: the student has no layer {name!r} that could be narrower")
        if not _fits(given, before[name]):
            raise UserError(f"widths: {name} cannot be {given}, because the options make it {before[name]}")
        _resize(network.get_submodule(name), {**before[name], **given})


def _widths(part: nn.Module) -> dict[str, int]:
    for kind, names in FIELDS.items():
        if isinstance(part, kind):
            values = {name: getattr(part, name) for name in names}
            return {name: value[-1] if isinstance(value, tuple) else value for name, value in values.items()}
    return {}


def _fits(given: Any, whole: Mapping[str, int]) -> bool:
    """Whether these are whole numbers, from 1 to what the whole layer has, that make a layer."""
    if not isinstance(given, Mapping) or not given.keys() <= whole.keys():
        return False
    if any(type(value) is not int or not 1 <= value <= whole[name] for name, value in given.items()):
        return False
    sizes = {**whole, **given}
    groups = sizes.get("groups", 1)
    return all(sizes.get(name, groups) % groups == 0 for name in ("in_channels", "out_channels"))


def _resize(part: nn.Module, given: Mapping[str, int]) -> None:
    for name, size in given.items():
        setattr(part, name, (size,) if isinstance(getattr(part, name), tuple) else size)
    for name, value in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
        # A slice, so that numbers stay in the order in which they lie in memory.
        left = value.detach()[tuple(map(slice, _shape(part, value, list(given.values()))))]
        kept = left.clone() if value.dim() else value
        setattr(part, name, nn.Parameter(kept, value.requires_grad) if isinstance(value, nn.Parameter) else kept)


def _shape(part: nn.Module, value: Tensor, sizes: list[int]) -> torch.Size:
    """Of a parameter or buffer of a layer of these sizes."""
    if value.dim() < 2:
        return torch.Size(sizes[-2:-1] if isinstance(part, _ConvNd) else sizes[-1:] * value.dim())
    inputs, outputs, groups = [*sizes, 1][:3]
    pair = (inputs, outputs // groups) if isinstance(part, _ConvTransposeNd) else (outputs, inputs // groups)
    return torch.Size([*pair, *value.shape[2:]])
