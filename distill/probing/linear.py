"""Linear SVM and logistic regression: all classes in one matrix, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from distill.probing.base import Array, LinearProbe, Setting, Softmax
from distill.probing.descent import TOLERANCE, CrossEntropy, Linear, Loss, Solution, SquaredHinge, Task, minimise
from distill.probing.device import best_device
from distill.probing.moments import Moments, View, training


class _Batched(LinearProbe):
    """|weights|^2 / 2 + C loss."""

    loss: Loss

    def __init__(self, C: float = 1.0, standardise: bool = True, tol: float = TOLERANCE) -> None:
        self.C = C
        self.standardise = standardise
        self.tol = tol

    def fit_encoded(self, X: Array, y: Array) -> None:
        near, mean, rows = _near(X)
        view = View.of(Moments.of(near, y, len(self.classes_)), self.standardise)
        found = self._solve(view, [(rows, _labels(y))], self.C)
        self.objective_, self.n_iter_ = found.objective, found.steps
        self.coef_, constant = view.straight(*(value.double().cpu().numpy() for value in found.linear))
        self.intercept_ = constant - self.coef_ @ mean

    def _solve(
        self, view: View, parts: Sequence[tuple[torch.Tensor, torch.Tensor]], C: float, start: Linear | None = None
    ) -> Solution:
        return minimise(_task(view, parts), self.loss, C, start, self.tol)

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        classes, encoded = np.unique(y, return_inverse=True)
        order = np.argsort(folds, kind="stable")  # a fold is a stretch of rows, and its training set two
        starts = np.searchsorted(folds[order], np.arange(folds.max() + 2))
        near, _, rows = _near(X[order])
        label = _labels(encoded[order])
        rising = sorted(range(len(grid)), key=lambda place: grid[place].get("C", self.C))
        sums = training(near, encoded[order], folds[order], len(classes))
        for fold in todo:
            view = View.of(sums(fold), self.standardise)
            first, last = starts[fold : fold + 2].tolist()
            parts = [(rows[:first], label[:first]), (rows[last:], label[last:])]
            tested = _task(view, [(rows[first:last], label[first:last])])
            found, start = np.empty(len(grid)), None
            for place in rising:
                start = self._solve(view, parts, grid[place].get("C", self.C), start).linear
                said = tested.scores(start)[0].argmax(1)
                found[place] = float((said == label[first:last]).double().mean())
            yield fold, found


class LinearSVM(_Batched):
    """LinearSVC: squared hinge, every class against all others, the constant penalised too."""

    loss = SquaredHinge()


class LogisticRegression(_Batched, Softmax):
    """LogisticRegression: multinomial."""

    loss = CrossEntropy()


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
