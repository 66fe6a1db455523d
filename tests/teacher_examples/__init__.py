"""A small teacher of every family: teacher_examples/NAME.py makes one for teachers/NAME.py, files and all.

`make(folder)` writes what the teacher needs into an empty folder and gives an Example. Contract tests find the module
by the teacher's name.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Example:
    options: dict[str, Any]  # of the teacher, as a recipe would have them
    classes: Sequence[str]  # of the data set
    weights: Sequence[Path]  # safetensors files that the teacher's answers hang on, every number in them
    changes: Sequence[Mapping[str, Any]] = ()  # options, each of which makes another function of the teacher
    maps: Sequence[str] = field(default_factory=tuple)  # maps that it gives on request


def make(name: str, folder: Path) -> Example:
    maker: Callable[[Path], Example] = importlib.import_module(f"teacher_examples.{name}").make
    return maker(folder)
