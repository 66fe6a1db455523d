"""Gaussian kernels: scikit-learn's SVM, exact and slow at many rows, and its approximation by landmarks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from distill.probing.base import Array, Probe, Setting, alike, chunks, take
from distill.probing.gaussian import Ridge
from distill.probing.plain import inside, machine_arrays, machine_of, scaler_arrays, scaler_of, within

AT_ONCE = 512  # rows that a machine of pairs of classes judges: each has a score for every pair on the way


class KernelSVM(Probe):
    """SVC with a Gaussian kernel, over standardised features."""

    def __init__(self, C: float = 1.0, gamma: Any = "scale", random_state: int | None = 0) -> None:
        self.C = C
        self.gamma = gamma
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.machine_ = make_pipeline(StandardScaler(), SVC(**self.get_params())).fit(X, y)

    def decide(self, X: Array) -> Array:
        scores = np.concatenate([self.machine_.decision_function(X[part]) for part in chunks(len(X), AT_ONCE)])
        return np.stack([-scores, scores], 1) / 2 if scores.ndim == 1 else scores

    def learnt(self) -> dict[str, Array]:
        scaler, machine = (step for _, step in self.machine_.steps)
        return {**within("scaler", scaler_arrays(scaler)), **machine_arrays(machine)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        scaler = scaler_of(inside("scaler", arrays), self.n_features_in_)
        self.machine_ = make_pipeline(scaler, machine_of(arrays, self.n_features_in_, len(self.classes_)))

    def predict(self, X: Any) -> Array:
        """By the votes of pairs of classes; the scores break their ties otherwise now and then."""
        rows = self.checked(X)
        found: Array = self.classes_[self.machine_.predict(rows)]
        return found


class Nystroem(Probe):
    """Ridge regression on how near rows are to landmarks: much of what a machine with a Gaussian kernel sees."""

    def __init__(
        self, alpha: float = 1.0, gamma: float = 1.0, landmarks: int = 1024, random_state: int | None = 0
    ) -> None:
        self.alpha = alpha
        self.gamma = gamma
        self.landmarks = landmarks
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.map_ = Landmarks(X, **self._shape(), seed=self.random_state)
        self.ridge_ = Ridge(self.alpha, standardise=False).fit(self.map_(X), y)

    def decide(self, X: Array) -> Array:
        return self.ridge_.decide(self.map_(X))

    def learnt(self) -> dict[str, Array]:
        return {**within("map", self.map_.learnt()), **within("ridge", self.ridge_.learnt())}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self.map_ = Landmarks.restored(inside("map", arrays), self.n_features_in_)
        self.ridge_ = Ridge(self.alpha, standardise=False)
        self.ridge_.classes_, self.ridge_.n_features_in_ = np.arange(len(self.classes_)), len(self.map_.points)
        self.ridge_.restore(inside("ridge", arrays))

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        """Of each fold a map of every shape, which all its penalties share."""
        ridge = Ridge(self.alpha, standardise=False)
        for fold in todo:
            held_out, found = folds == fold, np.empty(len(grid))
            training, alone = X[~held_out], np.where(held_out, 0, -1)
            for shape, places in alike(grid, ("gamma", "landmarks")).items():
                near = Landmarks(training, **{**self._shape(), **dict(shape)}, seed=self.random_state)
                penalties = [_rest(grid[place]) for place in places]
                ((_, found[places]),) = ridge.cv_path(near(X), y, alone, penalties, [0])
            yield fold, found

    def _shape(self) -> dict[str, Any]:
        return {"gamma": self.gamma, "landmarks": self.landmarks}


def _rest(setting: Setting) -> Setting:
    """What of it the map knows nothing of."""
    return {key: value for key, value in setting.items() if key == "alpha"}


class Landmarks:
    """Rows as what a Gaussian kernel makes of them, in the space that the landmarks span."""

    def __init__(self, rows: Array, gamma: float, landmarks: int, seed: int | None) -> None:
        """`gamma` is in units of 1 / the features' number, after standardising."""
        self.scaler = StandardScaler().fit(rows)
        self.gamma = gamma / rows.shape[1]
        chosen = np.random.default_rng(seed).permutation(len(rows))[:landmarks]
        self.points = self.scaler.transform(rows[chosen])
        values, axes = np.linalg.eigh(self._near(self.points).astype(np.float64))
        self.turn = (axes / np.sqrt(values.clip(min=1e-12)) @ axes.T).astype(rows.dtype)

    def learnt(self) -> dict[str, Array]:
        given = {"points": self.points, "turn": self.turn, "gamma": np.array([self.gamma])}
        return {**within("scaler", scaler_arrays(self.scaler)), **given}

    @classmethod
    def restored(cls, arrays: Mapping[str, Array], features: int) -> Landmarks:
        found = cls.__new__(cls)
        found.scaler = scaler_of(inside("scaler", arrays), features)
        found.points = take(arrays, "points", "f", None, features)
        found.turn = take(arrays, "turn", "f", len(found.points), len(found.points))
        found.gamma = float(take(arrays, "gamma", "f", 1)[0])
        return found

    def _near(self, rows: Array) -> Array:
        squares = (rows**2).sum(1)[:, None] + (self.points**2).sum(1) - 2 * rows @ self.points.T
        near: Array = np.exp(-self.gamma * squares.clip(min=0))
        return near

    def __call__(self, rows: Array) -> Array:
        return np.concatenate([self._near(self.scaler.transform(rows[part])) @ self.turn for part in chunks(len(rows))])
