"""What the probes' own classifiers share: scikit-learn's manners, and one pass over a grid and its folds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

Array = np.ndarray[Any, Any]
ROWS = 8192  # how many rows are turned into float64 at once
Setting = Mapping[str, Any]


@runtime_checkable
class OnePass(Protocol):
    """An estimator that scores a whole grid over all folds at once."""

    def cv_path(self, X: Array, y: Array, folds: Array, grid: Sequence[Setting]) -> Array:
        """`folds` tells for every row the fold that tests it, -1 for none -> shares of right answers [grid, fold]."""


class Probe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier with `fit_encoded` and `decide`; labels may be anything that sorts."""

    classes_: Array
    n_features_in_: int

    def fit(self, X: Any, y: Any) -> Self:
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), ensure_min_samples=2)
        check_classification_targets(y)
        self.classes_, encoded = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__} needs samples of at least 2 classes; all are of 1 class")
        self.fit_encoded(X, encoded)
        return self

    def fit_encoded(self, X: Array, y: Array) -> None:
        """`y` are places in `classes_`."""
        raise NotImplementedError

    def decide(self, X: Array) -> Array:
        """Scores [N,K], the larger the likelier."""
        raise NotImplementedError

    def checked(self, X: Any) -> Array:
        """Rows to judge, of as many features as there were to learn from."""
        check_is_fitted(self)
        found: Array = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        return found

    def scores(self, X: Any) -> Array:
        """As decision_function, but for two classes too a column for each."""
        return self.decide(self.checked(X))

    def decision_function(self, X: Any) -> Array:
        """[N,K]; for two classes [N], above 0 for the second."""
        scores = self.scores(X)
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    def predict(self, X: Any) -> Array:
        best = self.scores(X).argmax(1)
        found: Array = self.classes_[best]
        return found


class Softmax(Probe):
    """Its scores are logarithms of shares, but for a constant."""

    def predict_proba(self, X: Any) -> Array:
        return softmax(self.scores(X))


class Shares(Probe):
    """Its scores are shares already."""

    def predict_proba(self, X: Any) -> Array:
        return self.scores(X)


class LinearProbe(Probe):
    """Its scores are linear in the features."""

    coef_: Array  # [K,D]
    intercept_: Array  # [K]

    def decide(self, X: Array) -> Array:
        scores: Array = X @ self.coef_.T + self.intercept_
        return scores


def alike(grid: Sequence[Setting], keys: Sequence[str]) -> Mapping[tuple[tuple[str, Any], ...], list[int]]:
    """Places in the grid by what they say of these keys."""
    groups: dict[tuple[tuple[str, Any], ...], list[int]] = defaultdict(list)
    for place, setting in enumerate(grid):
        groups[tuple((key, setting[key]) for key in keys if key in setting)].append(place)
    return groups


def chunks(rows: int, size: int = ROWS) -> Iterator[slice]:
    return (slice(at, min(at + size, rows)) for at in range(0, rows, size))


def softmax(scores: Array) -> Array:
    grown = np.exp(scores - scores.max(1, keepdims=True))
    shares: Array = grown / grown.sum(1, keepdims=True)
    return shares
