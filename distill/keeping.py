"""Which of a student's weights are kept in the end: the last, their moving average, or the best that validation saw."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from distill.errors import UserError
from distill.evaluate import HIGHER_IS_BETTER
from distill.files import publish
from distill.outputs import Student


def check(ema: float, best: str, patience: int) -> None:
    if best and best not in HIGHER_IS_BETTER:
        raise UserError(f"train.best is {best!r}; known: {', '.join(HIGHER_IS_BETTER)}")
    if not 0 <= ema < 1:
        raise UserError(f"train.ema is {ema}; it is at least 0 and below 1")
    if patience < 0 or (patience and not best):
        raise UserError(f"train.patience is {patience}; it is at least 0, and above 0 it needs train.best")


class Keeper:
    """Follows a student through training; all of it is in `state`."""

    def __init__(self, student: Student, ema: float, best: str, patience: int, folder: Path, writes: bool) -> None:
        """`folder` is where the best weights go; one of the processes `writes` them."""
        self.live, self.best, self.patience = student, best, patience
        self.folder, self.writes = folder, writes
        self.average = AveragedModel(student, multi_avg_fn=_toward(ema), use_buffers=True) if ema else None
        self.top: float | None = None  # what the best look found
        self.at = 0  # and at which step
        self.waited = 0  # looks since then

    @property
    def student(self) -> Student:
        """The one that counts: evaluated, and kept in the end."""
        return cast(Student, self.average.module) if self.average else self.live

    @property
    def tired(self) -> bool:
        """Whether it is time to stop early."""
        return bool(self.patience) and self.waited >= self.patience

    def follow(self) -> None:
        """After each step."""
        if self.average:
            self.average.update_parameters(self.live)

    def judge(self, figures: Mapping[str, float], step: int) -> None:
        """After each look at the validation split."""
        if not self.best:
            return
        if self.best not in figures:
            raise UserError(f"train.best is {self.best}, but validation gives {', '.join(figures) or 'nothing'}")
        found, better = figures[self.best], operator.gt if HIGHER_IS_BETTER[self.best] else operator.lt
        self.waited += 1
        if self.top is None or better(found, self.top):
            self.top, self.at, self.waited = found, step, 0
            if self.writes:
                publish(self._file(step), lambda part: torch.save(self.student.state_dict(), part))

    def _file(self, step: int) -> Path:
        return self.folder / f"best-{step:09d}.pt"

    def sweep(self) -> None:
        """After each checkpoint: what it would not go back to."""
        for old in self.folder.glob("best-*.pt") if self.writes else ():
            if old != self._file(self.at):
                old.unlink()

    def finish(self) -> Student:
        """The student that is kept, with the weights that count."""
        if self.at:
            best: dict[str, Tensor] = torch.load(self._file(self.at), map_location="cpu", weights_only=True)
            self.student.load_state_dict(best)
        return self.student

    def state(self) -> dict[str, Any]:
        average = self.average.state_dict() if self.average else {}
        return {"average": average, "top": self.top, "at": self.at, "waited": self.waited}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.average:
            self.average.load_state_dict(state["average"])
        self.top, self.at, self.waited = state["top"], state["at"], state["waited"]


def _toward(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """The average forgets faster at first, when the weights are still those of chance."""

    @torch.no_grad()
    def update(kept: list[Tensor], now: list[Tensor], seen: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(seen)) / (10 + int(seen)))
        for average, value in zip(kept, now, strict=True):
            if average.is_floating_point():
                average.lerp_(value, share)
            else:
                average.copy_(value)

    return update
