"""Gaussian kernels: scikit-learn's SVM, exact and slow at many rows, and its approximation by landmarks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from distill.probing.base import Array, Probe, Setting, alike, chunks
from distill.probing.gaussian import Ridge


class KernelSVM(Probe):
    """SVC with a Gaussian kernel, over standardised features."""

    def __init__(self, C: float = 1.0, gamma: Any = "scale", random_state: int | None = 0) -> None:
        self.C = C
        self.gamma = gamma
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.machine_ = make_pipeline(StandardScaler(), SVC(**self.get_params())).fit(X, y)

    def decide(self, X: Array) -> Array:
        scores: Array = self.machine_.decision_function(X)
        return np.stack([-scores, scores], 1) / 2 if scores.ndim == 1 else scores

    def predict(self, X: Any) -> Array:
        """By the votes of pairs of classes; the scores break their ties otherwise now and then."""
        rows = self.checked(X)
        found: Array = self.classes_[self.machine_.predict(rows)]
        return found


class Nystroem(Probe):
    """Ridge regression on how near rows are to landmarks: what a machine with a Gaussian kernel sees, in one product.

    Landmarks and scale are drawn without labels, once for all folds.
    """

    def __init__(
        self, alpha: float = 1.0, gamma: float = 1.0, landmarks: int = 1024, random_state: int | None = 0
    ) -> None:
        self.alpha = alpha
        self.gamma = gamma
        self.landmarks = landmarks
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.map_ = Landmarks(X, self.gamma, self.landmarks, self.random_state)
        self.ridge_ = Ridge(self.alpha, standardise=False).fit(self.map_(X), y)

    def decide(self, X: Array) -> Array:
        return self.ridge_.decide(self.map_(X))

    def cv_path(self, X: Array, y: Array, folds: Array, grid: Sequence[Setting]) -> Array:
        found = np.empty((len(grid), folds.max() + 1))
        for shape, places in alike(grid, ("gamma", "landmarks")).items():
            given = {**self.get_params(), **dict(shape)}
            seen = Landmarks(X, given["gamma"], given["landmarks"], self.random_state)(X)
            alphas = [{"alpha": grid[place].get("alpha", self.alpha)} for place in places]
            found[places] = Ridge(standardise=False).cv_path(seen, y, folds, alphas)
        return found


class Landmarks:
    """Rows as what a Gaussian kernel makes of them, in the space that the landmarks span."""

    def __init__(self, rows: Array, gamma: float, count: int, seed: int | None) -> None:
        """`gamma` is in units of 1 / the features' number, after standardising."""
        self.scaler = StandardScaler().fit(rows)
        self.gamma = gamma / rows.shape[1]
        chosen = np.random.default_rng(seed).permutation(len(rows))[:count]
        self.points = self.scaler.transform(rows[chosen])
        values, axes = np.linalg.eigh(self._near(self.points).astype(np.float64))
        self.turn = (axes / np.sqrt(values.clip(min=1e-12)) @ axes.T).astype(rows.dtype)

    def _near(self, rows: Array) -> Array:
        squares = (rows**2).sum(1)[:, None] + (self.points**2).sum(1) - 2 * rows @ self.points.T
        near: Array = np.exp(-self.gamma * squares.clip(min=0))
        return near

    def __call__(self, rows: Array) -> Array:
        return np.concatenate([self._near(self.scaler.transform(rows[part])) @ self.turn for part in chunks(len(rows))])
