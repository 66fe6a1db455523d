"""GridSearchCV, with one pass over grid and folds for the estimators that can do that."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.model_selection import GridSearchCV, ParameterGrid, check_cv
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, indexable

from distill.probing.base import Array, OnePass

Grid = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Sequence[Any]]]
Keep = Callable[[int, Array], object]


def _best_has(name: str) -> Any:
    return available_if(lambda search: hasattr(getattr(search, "best_estimator_", search.estimator), name))


class ProbeSearchCV(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Settings by accuracy over folds, then one fit with the best: what GridSearchCV finds, with its `cv_results_`.

    An estimator with a `cv_path` scores all settings on all folds at once; any other is fitted once for each.
    """

    best_estimator_: Any
    cv_results_: dict[str, Any]

    def __init__(self, estimator: Any, param_grid: Grid, cv: Any = 10, refit: bool = True, n_jobs: int | None = None):
        self.estimator = estimator
        self.param_grid = param_grid
        self.cv = cv
        self.refit = refit
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any, *, known: Mapping[int, Array] | None = None, keep: Keep | None = None) -> Self:
        """`known` are folds of an earlier search with the same rows and grid, and their scores [setting]; `keep` is
        told of every other as it is done. Both are for an estimator with a `cv_path`."""
        X, y = indexable(X, y)
        splits = list(check_cv(self.cv, y, classifier=True).split(X, y))
        folds = one_fold_each(splits, len(y)) if isinstance(self.estimator, OnePass) else None
        if folds is None:
            self._search_plainly(X, y, splits)
        else:
            self._search_at_once(np.asarray(X), np.asarray(y), folds, dict(known or {}), keep)
        self.n_splits_ = len(splits)
        self.best_index_ = int(np.argmin(self.cv_results_["rank_test_score"]))
        self.best_params_ = self.cv_results_["params"][self.best_index_]
        self.best_score_ = float(self.cv_results_["mean_test_score"][self.best_index_])
        if self.refit:
            started = time.perf_counter()
            self.best_estimator_ = clone(self.estimator).set_params(**self.best_params_).fit(X, y)
            self.refit_time_ = time.perf_counter() - started
        return self

    def _search_at_once(self, X: Array, y: Array, folds: Array, found: dict[int, Array], keep: Keep | None) -> None:
        grid = list(ParameterGrid(self.param_grid))
        todo = [fold for fold in range(folds.max() + 1) if fold not in found]
        started = time.perf_counter()
        if todo:
            for fold, scores in clone(self.estimator).cv_path(X, y, folds, grid, todo):
                found[fold] = scores
                if keep is not None:
                    keep(fold, scores)
        seconds = (time.perf_counter() - started) / max(1, len(todo) * len(grid))
        self.cv_results_ = results(grid, np.stack([found[fold] for fold in sorted(found)], 1), seconds)

    def _search_plainly(self, X: Any, y: Any, splits: Sequence[tuple[Array, Array]]) -> None:
        search = GridSearchCV(
            self.estimator,
            self.param_grid,
            cv=splits,
            scoring="accuracy",
            refit=False,
            n_jobs=self.n_jobs,
            error_score="raise",
        )
        self.cv_results_ = search.fit(X, y).cv_results_

    @property
    def classes_(self) -> Array:
        check_is_fitted(self, "best_estimator_")
        classes: Array = self.best_estimator_.classes_
        return classes

    def predict(self, X: Any) -> Array:
        check_is_fitted(self, "best_estimator_")
        found: Array = self.best_estimator_.predict(X)
        return found

    @_best_has("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Array:
        found: Array = self.best_estimator_.predict_proba(X)
        return found

    @_best_has("decision_function")  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Array:
        found: Array = self.best_estimator_.decision_function(X)
        return found


def one_fold_each(splits: Sequence[tuple[Array, Array]], rows: int) -> Array | None:
    """The fold that tests each row, -1: none does. None where a row is tested twice, or a fold's training set is not
    all the other rows: then there is no single pass."""
    folds = np.full(rows, -1)
    for fold, (_, tested) in enumerate(splits):
        if (folds[tested] >= 0).any():
            return None
        folds[tested] = fold
    complete = all(
        np.array_equal(np.sort(training), np.flatnonzero(folds != fold)) for fold, (training, _) in enumerate(splits)
    )
    return folds if complete else None


def results(grid: Sequence[Mapping[str, Any]], scores: Array, seconds: float) -> dict[str, Any]:
    """GridSearchCV's table of scores [setting, fold]; a single pass says of no single fit how long it took, so each is
    given the same share."""
    table: dict[str, Any] = {}
    for name, value in (("fit", seconds), ("score", 0.0)):
        table[f"mean_{name}_time"], table[f"std_{name}_time"] = np.full(len(grid), value), np.zeros(len(grid))
    for key in sorted({key for setting in grid for key in setting}):
        kept = [key not in setting for setting in grid]
        table[f"param_{key}"] = np.ma.MaskedArray([setting.get(key) for setting in grid], kept, dtype=object)
    table["params"] = list(grid)
    for fold, column in enumerate(scores.T):
        table[f"split{fold}_test_score"] = column
    table["mean_test_score"], table["std_test_score"] = scores.mean(1), scores.std(1)
    table["rank_test_score"] = rankdata(-table["mean_test_score"], method="min").astype(np.int32)
    return table
