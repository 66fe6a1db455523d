"""Linear SVM and logistic regression: all classes in one matrix, on a GPU where there is one.

They are fitted with torch, but judge without it: whoever only reads a fitted one does not wait or pay for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

from distill.probing.base import Array, LinearProbe, Setting, Softmax

TOLERANCE = 3e-8


class _Batched(LinearProbe):
    """|weights|^2 / 2 + C loss."""

    loss: ClassVar[str]
    """Its name in batched.LOSSES."""

    def __init__(self, C: float = 1.0, standardise: bool = True, tol: float = TOLERANCE) -> None:
        self.C = C
        self.standardise = standardise
        self.tol = tol

    def fit_encoded(self, X: Array, y: Array) -> None:
        from distill.probing.batched import fitted

        found = fitted(self.loss, X, y, len(self.classes_), self.C, self.standardise, self.tol)
        self.coef_, self.intercept_, self.objective_, self.n_iter_ = found

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        from distill.probing.batched import path

        weights = [setting.get("C", self.C) for setting in grid]
        return path(self.loss, X, y, folds, weights, todo, self.standardise, self.tol)


class LinearSVM(_Batched):
    """LinearSVC: squared hinge, every class against all others, the constant penalised too."""

    loss = "squared hinge"


class LogisticRegression(_Batched, Softmax):
    """LogisticRegression: multinomial."""

    loss = "cross-entropy"
