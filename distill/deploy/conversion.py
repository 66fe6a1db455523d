"""What converters are given and give: one file for each format, all of the same form.

convert_FORMAT.py has convert(wanted, file) -> ports and put_metadata(file, text). It imports what makes the format,
which is large, so it is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distill.deploy.card import Port
from distill.deploy.forms import Form
from distill.deploy.lean import lean
from distill.errors import UserError

Ports = tuple[list[Port], list[Port]]  # of what goes in, and of what comes out
Value = TypeVar("Value", bound=Hashable)  # of a graph: its name or number


@dataclass(frozen=True)
class Conversion:
    form: Form
    ports: Ports
    """Of the form."""
    precision: str
    samples: Sequence[Sequence[np.ndarray]]
    """What the form is given about real clips: uint8 pixels, then the state; INT8 is calibrated with it."""


def converter(name: str) -> ModuleType:
    """What makes files of this format."""
    try:
        return importlib.import_module(f"distill.deploy.convert_{name}")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        raise UserError(f"to={name} needs {missing}, which is not installed: pip install 'distill[{name}]'") from error


def after_linear(operations: Iterable[tuple[bool, Sequence[Value], Sequence[Value]]]) -> set[Value]:
    """What linear layers give, and all that is made of it: the head of a network, which stays in float32.

    It decides, it costs next to nothing, and normalised or added up it has no range that 256 numbers would cover well.
    Operations, in order, are: is it a linear layer, what it takes, what it gives.
    """
    found = set[Value]()
    for linear, taken, given in operations:
        if linear or found.intersection(taken):
            found.update(given)
    return found


class _Bytes(nn.Module):
    """A network of numbers that takes its first input as uint8."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor, *state: Tensor) -> Any:
        return self.network(pixels.float(), *state)


def takes_bytes(form: Form, flat: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The form, lean, for pixels as uint8; and an example of what it takes."""
    pixels, *state = example = form.example()
    return _Bytes(lean(form, example, flat)), (pixels.to(torch.uint8), *state)


def byte_ports(wanted: Conversion) -> Ports:
    """Ports of a file that takes and gives what the form does, but for pixels as uint8."""
    (pixels, *state), outputs = wanted.ports
    return [replace(pixels, dtype="uint8"), *state], outputs
