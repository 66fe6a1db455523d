"""Trees and forests of trees by scikit-learn and XGBoost; what a fit contains already is not fitted again.

A forest's first trees are a smaller forest, a boosted sum's first rounds a shorter sum, and a tree cut at a depth is
the tree of that depth (but for draws between splits that are equally good): those settings cost predictions only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier

from distill.probing.base import Array, Probe, Setting, Shares, Softmax, alike, chunks, take
from distill.probing.device import best_device
from distill.probing.grown import Grown, boosted_arrays, booster_of

BINS = ("components", "max_bin")  # the settings of XGBoost that its matrix of bins depends on


class _Nested(Probe):
    """Its fits contain those with a smaller `axis`."""

    axis: str

    def prefixes(self, X: Array, values: Sequence[Any]) -> Iterator[Array]:
        """Scores [N,K] at each value of the axis, from this fit, of which the largest is among them."""
        raise NotImplementedError

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        for fold in todo:
            held_out, found = folds == fold, np.empty(len(grid))
            for rest, places in alike(grid, _others(grid, self.axis)).items():
                values = [grid[place].get(self.axis, getattr(self, self.axis)) for place in places]
                whole = clone(self).set_params(**dict(rest), **{self.axis: _largest(values)})
                whole.fit(X[~held_out], y[~held_out])
                for place, scores in zip(places, whole.prefixes(X[held_out], values), strict=True):
                    found[place] = (whole.classes_[scores.argmax(1)] == y[held_out]).mean()
            yield fold, found


def _largest(values: Sequence[Any]) -> Any:
    """None stands for no bound."""
    return None if None in values else max(values)


class _Planted(_Nested, Shares):
    """What scikit-learn grows."""

    grower: type[Any]

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.grown_ = self.grower(**self.get_params()).fit(X, y)

    def decide(self, X: Array) -> Array:
        shares: Array = self.grown_.predict_proba(X)
        return shares

    def learnt(self) -> dict[str, Array]:
        return Grown.of(self.grown_, len(self.classes_)).arrays()

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self.grown_ = Grown.restored(arrays, self.n_features_in_, len(self.classes_))


class Tree(_Planted):
    """DecisionTreeClassifier; all depths from one tree."""

    axis, grower = "max_depth", DecisionTreeClassifier

    def __init__(self, max_depth: int | None = None, min_samples_leaf: int = 5, random_state: int | None = 0) -> None:
        self.max_depth = max_depth
        self.min_samples_leaf = min_samples_leaf
        self.random_state = random_state

    def prefixes(self, X: Array, values: Sequence[Any]) -> Iterator[Array]:
        tree = self.grown_.tree_
        leaf = self.grown_.apply(X)
        above, depth = _ancestry(tree.children_left, tree.children_right)
        for value in values:
            node = leaf.copy()
            while value is not None and (deep := depth[node] > value).any():
                node[deep] = above[node[deep]]
            yield tree.value[node][:, 0]


def _ancestry(left: Array, right: Array) -> tuple[Array, Array]:
    """Every node's parent and depth; a node comes before its children."""
    above, depth = np.zeros(len(left), np.int64), np.zeros(len(left), np.int64)
    for node, children in enumerate(zip(left.tolist(), right.tolist(), strict=True)):
        for child in children:
            if child >= 0:
                above[child], depth[child] = node, depth[node] + 1
    return above, depth


class Forest(_Planted):
    """RandomForestClassifier; all numbers of trees from one forest."""

    axis, grower = "n_estimators", RandomForestClassifier

    def __init__(
        self,
        n_estimators: int = 300,
        min_samples_leaf: int = 1,
        max_features: Any = "sqrt",
        max_depth: int | None = None,
        n_jobs: int | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.min_samples_leaf = min_samples_leaf
        self.max_features = max_features
        self.max_depth = max_depth
        self.n_jobs = n_jobs
        self.random_state = random_state

    def prefixes(self, X: Array, values: Sequence[Any]) -> Iterator[Array]:
        found = {value: np.empty((len(X), len(self.classes_))) for value in set(values)}
        for rows in chunks(len(X), 2048):
            total = np.zeros((rows.stop - rows.start, len(self.classes_)))
            for number, tree in enumerate(self.grown_.estimators_, 1):
                total += tree.predict_proba(X[rows])
                if number in found:
                    found[number][rows] = total / number
        return (found[value] for value in values)


class Boosted(Softmax):
    """XGBoost: a tree for each class in every round, on principal axes, in bins.

    The settings of a fold share its axes and bins. All numbers of rounds come from one fit, which ends early where the
    tested rows gain nothing from `patience` rounds more.
    """

    def __init__(
        self,
        n_estimators: int = 100,
        max_depth: int = 3,
        learning_rate: float = 0.2,
        components: int = 64,
        max_bin: int = 64,
        patience: int = 10,
        n_jobs: int | None = None,
        random_state: int = 0,
    ) -> None:
        self.n_estimators = n_estimators
        self.max_depth = max_depth
        self.learning_rate = learning_rate
        self.components = components
        self.max_bin = max_bin
        self.patience = patience
        self.n_jobs = n_jobs
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.axes_ = Principal.of(X, self.components)
        rows = xgboost.QuantileDMatrix(self.axes_(X), y, max_bin=self.max_bin)
        self.booster_ = xgboost.train(self._parameters({}, len(self.classes_)), rows, self.n_estimators)

    def _parameters(self, setting: Setting, classes: int) -> dict[str, Any]:
        given = {**self.get_params(), **setting}
        return {
            "objective": "multi:softprob",
            "num_class": classes,
            "eval_metric": ["merror", "mlogloss"],
            "tree_method": "hist",
            "device": best_device().type,
            "nthread": given["n_jobs"] or 0,
            "seed": given["random_state"],
            **{name: given[name] for name in ("max_depth", "learning_rate", "max_bin")},
        }

    def decide(self, X: Array) -> Array:
        scores: Array = self.booster_.predict(xgboost.DMatrix(self.axes_(X)), output_margin=True)
        return scores

    def learnt(self) -> dict[str, Array]:
        return {"centre": self.axes_.centre, "axes": self.axes_.axes, **boosted_arrays(self.booster_)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        axes, classes = take(arrays, "axes", "f", self.n_features_in_, None), len(self.classes_)
        self.axes_ = Principal(take(arrays, "centre", "f", self.n_features_in_), axes)
        self.booster_ = booster_of(arrays, axes.shape[1], classes, self._parameters({}, classes))

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        classes, encoded = np.unique(y, return_inverse=True)
        for fold in todo:
            held_out, found = folds == fold, np.empty(len(grid))
            training, tested = X[~held_out], X[held_out]
            for shape, places in alike(grid, BINS).items():
                given = {**self.get_params(), **dict(shape)}
                axes, bins = Principal.of(training, given["components"]), given["max_bin"]
                rows = xgboost.QuantileDMatrix(axes(training), encoded[~held_out], max_bin=bins)
                judged = xgboost.QuantileDMatrix(axes(tested), encoded[held_out], max_bin=bins, ref=rows)
                found[places] = self._path(rows, judged, [grid[place] for place in places], len(classes))
            yield fold, found

    def _path(self, rows: Any, tested: Any, grid: Sequence[Setting], classes: int) -> Array:
        """Shares of right answers for each setting."""
        found = np.empty(len(grid))
        for places in alike(grid, _others(grid, "n_estimators")).values():
            rounds = [grid[place].get("n_estimators", self.n_estimators) for place in places]
            told: dict[str, Any] = {}
            xgboost.train(
                self._parameters(grid[places[0]], classes),
                rows,
                max(rounds),
                evals=[(tested, "tested")],
                early_stopping_rounds=self.patience,
                evals_result=told,
                verbose_eval=False,
            )
            wrong = told["tested"]["merror"]
            found[places] = [1 - wrong[min(number, len(wrong)) - 1] for number in rounds]
        return found


@dataclass(frozen=True)
class Principal:
    """Rows along their first principal axes; along their own, if there are no more than that."""

    centre: Array
    axes: Array

    @staticmethod
    def of(X: Array, components: int) -> Principal:
        centre = X.mean(0, dtype=np.float64)
        if not 0 < components < X.shape[1]:
            return Principal(centre, np.eye(X.shape[1], dtype=np.float32))
        near = (X - centre).astype(np.float32)
        return Principal(centre, np.linalg.eigh(near.T @ near)[1][:, ::-1][:, :components].astype(np.float32))

    def __call__(self, X: Array) -> Array:
        turned: Array = (X - self.centre).astype(np.float32) @ self.axes
        return turned


def _others(grid: Sequence[Setting], axis: str) -> list[str]:
    return sorted({key for setting in grid for key in setting} - {axis})
