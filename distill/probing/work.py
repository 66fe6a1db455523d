"""What a probe's work consists of, whatever the machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.probing.base import Setting
from distill.probing.classifiers import PROBES

CURVE = (8, 4, 2)  # what the rows are divided by for the points of a learning curve
SINGLE, DOUBLE = 4, 8  # bytes of a number


@dataclass(frozen=True)
class Size:
    rows: int  # to learn from
    held_out: int  # rows that all folds together test
    test: int
    width: int
    classes: int
    folds: int  # 1: a hold-out

    @property
    def training(self) -> float:
        """Rows that a fold learns from."""
        return self.rows - self.held_out / self.folds if self.folds > 1 else self.rows

    @property
    def tested(self) -> float:
        """Rows that a fold tests."""
        return self.held_out / self.folds


@dataclass(frozen=True)
class Work:
    products: float = 0.0  # operations of float32 products
    passes: float = 0.0  # exponentials of an array
    splits: float = 0.0  # nanoseconds of growing trees

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.passes + other.passes, self.splits + other.splits)

    def __rmul__(self, times: float) -> Work:
        return Work(times * self.products, times * self.passes, times * self.splits)


REPORT = Work(passes=5e6)  # what is done about answers, however few


def together(works: Iterable[Work]) -> Work:
    return sum(works, Work())


class Law:
    """Of one classifier; as it stands, of one with a fit for every fold and setting."""

    def __init__(self, name: str, grid: Sequence[Setting], size: Size) -> None:
        given = PROBES[name].make(0).get_params()
        self.settings: list[dict[str, Any]] = [{**given, **setting} for setting in grid]
        self.size = size

    def fit(self, rows: float, setting: Setting) -> Work:
        raise NotImplementedError

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        """Of so many rows, by what was learnt from so many."""
        return linear(rows, self.size)

    def memory(self) -> Mapping[str, float]:
        """Bytes at the peak beside the answers, by what they are for."""
        raise NotImplementedError

    def search(self) -> Work:
        size = self.size
        one = (
            self.fit(size.training, setting) + self.scores(size.tested, size.training, setting)
            for setting in self.settings
        )
        return size.folds * together(one)

    def total(self) -> Work:
        """The search; then, one setting as likely as another, the fit, the learning curve and the answers."""
        size = self.size
        after = together(self._after(setting) for setting in self.settings)
        return self.search() + 1 / len(self.settings) * after + REPORT + Work(passes=20 * size.test * size.classes)

    def _after(self, setting: Setting) -> Work:
        size = self.size
        curve = (
            self.fit(size.rows / part, setting) + self.scores(size.tested, size.rows / part, setting) for part in CURVE
        )
        return together(curve) + self.fit(size.rows, setting) + self.scores(size.test, size.rows, setting)

    def bytes(self) -> Mapping[str, float]:
        size = self.size
        return {"scores of the test rows": 4.0 * size.test * size.classes * DOUBLE, **self.memory()}

    def apart(self, free: str) -> list[Setting]:
        """Of settings that differ in `free` alone, whose fits contain one another, the largest."""
        found = dict[tuple[tuple[str, Any], ...], Setting]()
        for setting in sorted(self.settings, key=lambda setting: _height(setting[free])):
            found[tuple(sorted((key, repr(value)) for key, value in setting.items() if key != free))] = setting
        return list(found.values())


def _height(value: float | None) -> float:
    """None stands for no bound."""
    return math.inf if value is None else value


def linear(rows: float, size: Size) -> Work:
    """Scores that are linear in the features."""
    return Work(2 * rows * size.width * size.classes, rows * size.classes)
