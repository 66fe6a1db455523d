"""Which parts of a student recognise, and which of those are layers of weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError
from distill.measure import imagined
from distill.outputs import Student

Layer = _ConvNd | nn.Linear


def recognising(student: Student) -> dict[str, nn.Module]:
    """The parts that take part in recognising, by name, in the order in which they are first used; no decoder does."""
    names, found = {part: name for name, part in student.named_modules()}, dict[str, nn.Module]()
    hooks = [
        part.register_forward_pre_hook(lambda part, _: found.setdefault(names[part], part) and None)
        for part in student.modules()
    ]
    imagined(student)
    for hook in hooks:
        hook.remove()
    return found


def layers(student: Student, keep: Sequence[str]) -> dict[str, Layer]:
    """Convolutions and linear layers that recognise, but for those in parts that are to be kept as they are."""
    known = dict(student.named_modules())
    for name in keep:
        if name not in known or not name:
            tops = ", ".join(name for name in known if name and name.count(".") < 2)
            raise UserError(f"keep: the student has no part {name!r}; it has {tops}, and what is inside them")
    return {
        name: part
        for name, part in recognising(student).items()
        if isinstance(part, Layer) and not any(f"{name}.".startswith(f"{kept}.") for kept in keep)
    }
