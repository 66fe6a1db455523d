"""Linear classifiers with a loss, for all classes at once: conjugate gradients whose every step is two products.

Scores move along a direction, so the best step along it costs no product; the directions are scaled by the inverse of
what the loss's curvature would be if it were the same for all rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from distill.probing.base import chunks

MOST_STEPS = 500
PATIENCE = 20  # steps without getting nearer by half: more than single precision gives
TINY = torch.finfo(torch.float64).tiny
SEARCH = 8  # looks at the slope along a direction, at most
FLAT = 0.01  # a slope so much less than the first ends the search


class Loss(Protocol):
    """A convex function of the scores [N,K] of labelled rows, summed over them; it may fall apart into one function of
    each column."""

    columns: bool
    """Whether it does."""
    penalised: bool
    """Whether the penalty is on the constants too."""

    def slope(self, scores: Tensor, label: Tensor) -> Tensor:
        """Its derivative [N,K]."""
        ...

    def value(self, slope: Tensor, label: Tensor) -> Tensor:
        """Itself, from its derivative."""
        ...

    def bend(self, slope: Tensor, label: Tensor) -> Tensor:
        """The sum of its second derivatives by each score, from its derivative."""
        ...

    def along(self, scores: Tensor, moved: Tensor, label: Tensor) -> Tensor:
        """[2] or [2,K]: first and second derivative as the scores move."""
        ...


class SquaredHinge:
    """LinearSVC's: every class against all others."""

    columns = True
    penalised = True

    def slope(self, scores: Tensor, label: Tensor) -> Tensor:
        rows = torch.arange(len(label), device=label.device)
        own = (scores[rows, label] - 1).clamp_(max=0)
        slope = (scores + 1).clamp_(min=0)
        slope[rows, label] = own
        return slope.mul_(2)

    def value(self, slope: Tensor, label: Tensor) -> Tensor:
        return slope.square().sum(0).double() / 4

    def bend(self, slope: Tensor, label: Tensor) -> Tensor:
        return 2 * slope.count_nonzero().double()

    def along(self, scores: Tensor, moved: Tensor, label: Tensor) -> Tensor:
        slope = self.slope(scores, label)
        second = slope.ne(0).mul(moved).mul_(moved).sum(0)
        return torch.stack([slope.mul_(moved).sum(0), 2 * second]).double()


class CrossEntropy:
    """The multinomial logistic loss."""

    columns = False
    penalised = False

    def slope(self, scores: Tensor, label: Tensor) -> Tensor:
        slope = scores.softmax(1)
        slope[torch.arange(len(label), device=label.device), label] -= 1
        return slope

    def value(self, slope: Tensor, label: Tensor) -> Tensor:
        return -slope.gather(1, label[:, None]).double().log1p().sum()

    def bend(self, slope: Tensor, label: Tensor) -> Tensor:
        own = slope.gather(1, label[:, None]).double()
        return -slope.square().sum().double() - 2 * own.sum()

    def along(self, scores: Tensor, moved: Tensor, label: Tensor) -> Tensor:
        share = scores.softmax(1)
        own = moved.gather(1, label[:, None])
        weighted = share.mul_(moved)
        mean = weighted.sum(1, keepdim=True)
        second = weighted.mul_(moved).sum().double() - mean.square().sum().double()
        return torch.stack([(mean - own).sum().double(), second])


@dataclass
class Task:
    """Labelled rows to learn from, seen less a centre and over a scale."""

    parts: Sequence[tuple[Tensor, Tensor]]  # rows [n,D] and their labels [n]
    centre: Tensor  # [D]
    scale: Tensor  # [D]
    gram: Tensor  # float64 [D,D], of the rows so seen
    classes: int

    @property
    def rows(self) -> int:
        return sum(len(label) for _, label in self.parts)

    def scores(self, linear: Linear) -> list[Tensor]:
        straight = linear.weights / self.scale[:, None]
        offset = linear.constant - self.centre @ straight
        return [torch.addmm(offset, rows, straight) for rows, _ in self.parts]

    def pulled(self, slopes: Sequence[Tensor]) -> Linear:
        """From derivatives by the scores to those by weights and constants."""
        constant = torch.stack([slope.sum(0) for slope in slopes]).sum(0)
        weights = torch.stack([rows.T @ slope for (rows, _), slope in zip(self.parts, slopes, strict=True)]).sum(0)
        return Linear((weights - torch.outer(self.centre, constant)) / self.scale[:, None], constant)


class Linear(NamedTuple):
    """Weights and constants of all classes, or a step or a derivative of them."""

    weights: Tensor  # [D,K]
    constant: Tensor  # [K]

    def plus(self, share: Tensor, other: Linear) -> Linear:
        part = share.to(self.weights.dtype)
        return Linear(self.weights + part * other.weights, self.constant + part * other.constant)


@dataclass(frozen=True)
class Solution:
    linear: Linear
    objective: float
    steps: int


def minimise(task: Task, loss: Loss, C: float, start: Linear | None, tolerance: float) -> Solution:
    """|weights|^2 / 2 + C loss, to a share of `tolerance` of it."""
    return _Descent(task, loss, C)(start, tolerance)


class _Descent:
    def __init__(self, task: Task, loss: Loss, C: float) -> None:
        self.task, self.loss, self.C = task, loss, C
        self.bend, self.factor = math.nan, task.gram

    def __call__(self, start: Linear | None, tolerance: float) -> Solution:
        like = self.task.parts[0][0]
        nothing = Linear(like.new_zeros(len(self.task.scale), self.task.classes), like.new_zeros(self.task.classes))
        at, direction, before, steep = start or nothing, nothing, nothing, like.new_ones((), dtype=torch.float64)
        scores, steps, lowest, patience = self.task.scores(at), 0, math.inf, PATIENCE
        while True:
            pull, value, renewed = self._pull(at, scores)
            downhill = self._scaled(pull)
            now = self._dot(pull, downhill)  # twice what is left to gain, were the curvature as assumed
            left = float((now / (2 * value).clamp(min=TINY)).max())
            lowest, patience = (left, PATIENCE) if left < lowest / 2 else (lowest, patience - 1)
            if left <= tolerance or not patience or steps == MOST_STEPS:
                return Solution(at, float(value.sum()), steps)
            straight = Linear(-downhill.weights, -downhill.constant)
            share = ((now - self._dot(before, downhill)) / steep.clamp(min=TINY)).clamp(min=0) * (not renewed)
            falls = self._dot(straight.plus(share, direction), pull) < 0
            direction = straight.plus(share * falls, direction)
            moved = self.task.scores(direction)
            reach = self._reach(scores, moved, at, direction)
            at, before, steep, steps = at.plus(reach, direction), pull, now, steps + 1
            for old, new in zip(scores, moved, strict=True):
                old.addcmul_(new, reach.to(old.dtype))

    def _pull(self, at: Linear, scores: Sequence[Tensor]) -> tuple[Linear, Tensor, bool]:
        """The objective's derivative, the objective, and whether directions are scaled anew from here."""
        slopes, value, bend = self._slopes(scores)
        pull = self.task.pulled([slope.mul_(self.C) for slope in slopes])
        held = self._held(at)
        pull = Linear(pull.weights + held.weights, pull.constant + held.constant)
        return pull, self.C * value + self._dot(at, held) / 2, self._renew(bend)

    def _held(self, linear: Linear) -> Linear:
        """What of it the penalty is on."""
        return linear if self.loss.penalised else Linear(linear.weights, torch.zeros_like(linear.constant))

    def _slopes(self, scores: Sequence[Tensor]) -> tuple[list[Tensor], Tensor, float]:
        """The loss's derivative, its value, and its mean second derivative."""
        slopes, values, bends = [torch.empty_like(part) for part in scores], [], []
        for part, (_, label), slope in zip(scores, self.task.parts, slopes, strict=True):
            for rows in _pieces(part):
                slope[rows] = near = self.loss.slope(part[rows], label[rows])
                values.append(self.loss.value(near, label[rows]))
                bends.append(self.loss.bend(near, label[rows]))
        mean = float(torch.stack(bends).sum()) / (self.task.rows * self.task.classes)
        return slopes, torch.stack(values).sum(0), mean

    def _renew(self, bend: float) -> bool:
        """Scale by another curvature where it has become a quite different one."""
        if 0.5 < bend / self.bend < 2:
            return False
        self.bend = max(bend, 1e-6)
        eye = torch.eye(len(self.task.gram), dtype=torch.float64, device=self.task.gram.device)
        self.factor = torch.linalg.cholesky(eye + self.C * self.bend * self.task.gram)
        return True

    def _scaled(self, pull: Linear) -> Linear:
        weights = torch.cholesky_solve(pull.weights.double(), self.factor).to(pull.weights.dtype)
        return Linear(weights, pull.constant / (self.loss.penalised + self.C * self.bend * self.task.rows))

    def _dot(self, one: Linear, other: Linear) -> Tensor:
        """Of each column, if the loss falls apart into columns."""
        columns = sum((a * b).double().reshape(-1, self.task.classes).sum(0) for a, b in zip(one, other, strict=True))
        assert isinstance(columns, Tensor)
        return columns if self.loss.columns else columns.sum()

    def _reach(self, scores: Sequence[Tensor], moved: Sequence[Tensor], at: Linear, direction: Linear) -> Tensor:
        """How far along the direction the objective is lowest."""
        held = self._held(direction)
        first, second = self._dot(at, held), self._dot(direction, held)
        reach = torch.zeros_like(second)
        low, high, steepest = reach.clone(), torch.full_like(reach, math.inf), None
        for _ in range(SEARCH):
            slope, bend = self.C * self._along(scores, moved, reach.to(scores[0].dtype))
            slope, bend = slope + first + reach * second, bend + second
            steepest = slope.abs() if steepest is None else steepest
            if (slope.abs() <= FLAT * steepest).all():
                break
            low, high = torch.where(slope < 0, reach, low), torch.where(slope < 0, high, reach)
            further = reach - slope / bend.clamp(min=TINY)
            outside = (further <= low) | (further >= high)
            middle = torch.where(high.isinf(), 2 * low + 1, (low + high) / 2)
            reach = torch.where(outside & (slope != 0), middle, further)
        return reach

    def _along(self, scores: Sequence[Tensor], moved: Sequence[Tensor], reach: Tensor) -> Tensor:
        found = []
        for part, other, (_, label) in zip(scores, moved, self.task.parts, strict=True):
            for rows in _pieces(part):
                found.append(self.loss.along(torch.addcmul(part[rows], other[rows], reach), other[rows], label[rows]))
        return torch.stack(found).sum(0)


def _pieces(scores: Tensor) -> Iterator[slice]:
    """On a processor so small that a piece stays in the cache while its sums are taken, and that torch leaves it to one
    thread: threads that wait for each other at every turn cost more than the work on a machine that is not theirs."""
    numbers = 1 << (15 if scores.device.type == "cpu" else 24)
    return chunks(len(scores), max(1, numbers // scores.shape[1]))
