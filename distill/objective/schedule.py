"""When things act: lengths of time in steps or epochs, and numbers that change over them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from distill.errors import UserError

Span = int | str  # a number of optimiser steps, or a text such as "20 epochs" or "300 steps"
Moving = Annotated[float, "moves"]  # an option of a loss that may change over time
KEYS = ("from", "to", "after", "over", "until", "shape")
SHAPES = ("linear", "cosine")
FORM = "a number, or {to: NUMBER, over: 20 epochs} with from, after, until and shape as further keys"


def steps_of(span: Span, epoch_steps: int, key: str, least: int = 0) -> int:
    """How many optimiser steps a length of time is."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(steps?|epochs?)?", str(span).strip())
    if not found:
        raise UserError(f"{key} is {span!r}; it is a number of steps, or a text like '20 epochs'")
    number, unit = float(found[1]), found[2] or "steps"
    steps = number * epoch_steps if unit.startswith("epoch") else number
    if steps != int(steps) and unit.startswith("step"):
        raise UserError(f"{key} is {span!r}; there is no half of a step")
    if steps < least:
        raise UserError(f"{key} is {span!r}; it is at least {least}")
    return max(least, round(steps))


@dataclass(frozen=True)
class Course:
    """A number over time: `start` up to step `after`, on its way for `over` steps, then `to`; 0 from `until` on."""

    to: float
    start: float = 0.0
    after: int = 0
    over: int = 0
    until: float = math.inf
    shape: str = "linear"

    def at(self, step: int) -> float:
        if step >= self.until:
            return 0.0
        if step < self.after:
            return self.start
        done = min(1.0, (step + 1 - self.after) / self.over) if self.over > 0 else 1.0
        if self.shape == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return self.start + (self.to - self.start) * done

    @property
    def turns(self) -> set[int]:
        """The steps at which it is furthest on, or changes its way."""
        steps = {0, self.after, self.after + self.over - 1, self.after + self.over}
        return {step for step in steps if step >= 0} | ({int(self.until)} if self.until < math.inf else set())

    @property
    def ever(self) -> bool:
        """Whether it is ever something else than 0."""
        return bool(self.to or (self.start and (self.after or self.over)))


def read_course(given: Any, key: str, epoch_steps: int = 1, stops: bool = True) -> Course:
    """A number, or a mapping, as a recipe has it; `key` is what errors call it; only what `stops` may have an until."""
    if isinstance(given, int | float) and not isinstance(given, bool):
        return _finite(Course(float(given)), key)
    if not isinstance(given, Mapping):
        raise UserError(f"{key} is {given!r}; it is {FORM}")
    for name in given:
        if name not in KEYS:
            raise UserError(f"there is no key {key}.{name}; known: {', '.join(KEYS)}")
    if "until" in given and not stops:
        raise UserError(f"there is no key {key}.until: from then on it would be 0")
    if "to" not in given:
        raise UserError(f"{key} has no 'to'; it is {FORM}")
    values = {name: given.get(name, 0.0) for name in ("from", "to")}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{key}.{name} is {value!r}; it is a number")
    spans = {
        name: steps_of(given[name], epoch_steps, f"{key}.{name}")
        for name in ("after", "over", "until")
        if name in given
    }
    shape = given.get("shape", "linear")
    if shape not in SHAPES:
        raise UserError(f"{key}.shape is {shape!r}; known: {', '.join(SHAPES)}")
    return _finite(Course(to=float(values["to"]), start=float(values["from"]), shape=shape, **spans), key)


def _finite(course: Course, key: str) -> Course:
    for value in (course.start, course.to):
        if not 0 <= value < math.inf:
            raise UserError(f"{key} is {value}; it is at least 0")
    return course
