"""Training as if the student were quantised already: what its layers read and weigh goes through int8, and stays float.

Weights are rounded per output channel and symmetrically, as the exporters round them; a batch norm's factor stretches a
channel's weights and their steps alike, so they are rounded as after folding. What a convolution reads is rounded over
the range of the batch, as after a calibration by least and greatest value; linear layers read floats in exported files
too. Gradients pass through the rounding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from distill.outputs import Student
from distill.parts import Layer, layers

KINDS = ("", "int8")
LEAST = 1e-8  # of a step, where everything is 0


def quantise(student: Student) -> None:
    """Put the rounding around every layer that recognises, as hooks: no weight changes its name."""
    for part in layers(student, ()).values():
        rounding = _Rounding()
        part.register_forward_pre_hook(rounding.enter)
        part.register_forward_hook(rounding.leave, always_call=True)


class _Rounding:
    """Around one layer: while it works it has rounded weights."""

    def __init__(self) -> None:
        self.weight: Any = None

    def enter(self, part: Layer, given: tuple[Any, ...]) -> tuple[Any, ...]:
        read, *rest = given
        self.weight = part.weight
        part._parameters["weight"] = rounded_weight(part.weight)  # type: ignore[assignment]
        return (read if isinstance(part, nn.Linear) else rounded(read), *rest)

    def leave(self, part: Layer, given: tuple[Any, ...], answer: Tensor) -> None:
        part._parameters["weight"] = self.weight


def rounded_weight(weight: Tensor) -> Tensor:
    """To 255 steps for each output channel, the same to either side of 0."""
    step = (weight.detach().flatten(1).abs().amax(1) / 127).clamp(min=LEAST)
    return torch.fake_quantize_per_channel_affine(weight, step, torch.zeros_like(step, dtype=torch.int32), 0, -127, 127)


def rounded(value: Tensor) -> Tensor:
    """To 256 steps over its range, of which 0 is one."""
    ends = value.detach().float().aminmax()
    low, high = ends.min.clamp(max=0), ends.max.clamp(min=0)
    step = ((high - low) / 255).clamp(min=LEAST)
    zero = (-128 - low / step).round().clamp(-128, 127).int()
    return torch.fake_quantize_per_tensor_affine(value.float(), step, zero, -128, 127).to(value.dtype)
