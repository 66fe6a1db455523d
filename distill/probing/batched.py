"""How a linear classifier with a loss is fitted, and a grid of them over folds: one pass over the rows' sums, then
conjugate gradients from one C's solution to the next."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from distill.probing.base import Array
from distill.probing.descent import CrossEntropy, Loss, SquaredHinge, Task, minimise
from distill.probing.device import best_device
from distill.probing.moments import Moments, View, training

LOSSES: dict[str, Loss] = {"squared hinge": SquaredHinge(), "cross-entropy": CrossEntropy()}


class Fitted(NamedTuple):
    coef: Array  # [K,D]
    intercept: Array  # [K]
    objective: float
    steps: int


def fitted(loss: str, X: Array, y: Array, classes: int, C: float, standardise: bool, tol: float) -> Fitted:
    near, mean, rows = _near(X)
    view = View.of(Moments.of(near, y, classes), standardise)
    found = minimise(_task(view, [(rows, _labels(y))]), LOSSES[loss], C, None, tol)
    coef, constant = view.straight(*(value.double().cpu().numpy() for value in found.linear))
    return Fitted(coef, constant - coef @ mean, found.objective, found.steps)


def path(
    loss: str,
    X: Array,
    y: Array,
    folds: Array,
    weights: Sequence[float],
    todo: Sequence[int],
    standardise: bool,
    tol: float,
) -> Iterator[tuple[int, Array]]:
    """As Probe.cv_path, over `weights` of the loss."""
    classes, encoded = np.unique(y, return_inverse=True)
    order = np.argsort(folds, kind="stable")  # a fold is a stretch of rows, and its training set two
    starts = np.searchsorted(folds[order], np.arange(folds.max() + 2))
    near, _, rows = _near(X[order])
    label = _labels(encoded[order])
    sums = training(near, encoded[order], folds[order], len(classes))
    for fold in todo:
        view = View.of(sums(fold), standardise)
        first, last = starts[fold : fold + 2].tolist()
        task = _task(view, [(rows[:first], label[:first]), (rows[last:], label[last:])])
        tested = _task(view, [(rows[first:last], label[first:last])])
        right, start = np.empty(len(weights)), None
        for place in np.argsort(weights, kind="stable").tolist():
            start = minimise(task, LOSSES[loss], weights[place], start, tol).linear
            said = tested.scores(start)[0].argmax(1)
            right[place] = float((said == label[first:last]).double().mean())
        yield fold, right


def _near(X: Array) -> tuple[Array, Array, torch.Tensor]:
    """Rows less their mean, so that single precision is enough; the mean; and the rows where they are computed with."""
    mean = X.mean(0, dtype=np.float64).astype(X.dtype)
    near: Array = X - mean
    return near, mean, torch.from_numpy(near).to(best_device())


def _labels(y: Array) -> torch.Tensor:
    return torch.from_numpy(y.astype(np.int64)).to(best_device())


def _task(view: View, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Task:
    like = parts[0][0]
    kept = [(rows, label) for rows, label in parts if len(rows)] or list(parts[:1])
    centre, scale = (torch.from_numpy(value).to(like) for value in (view.centre, view.scale))
    gram = torch.from_numpy(view.gram).to(like.device)
    return Task(kept, centre, scale, gram, len(view.count))
