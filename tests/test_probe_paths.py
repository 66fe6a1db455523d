"""Paths over grid and folds where it gets narrow: some folds only, rows of no fold, ties, singular matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distill.probing import neighbours
from distill.probing.base import Array
from distill.probing.gaussian import LDA, Ridge
from distill.probing.linear import LinearSVM, LogisticRegression
from distill.probing.neighbours import KNN

KINDS: list[tuple[Any, list[dict[str, Any]]]] = [
    (Ridge(), [{"alpha": alpha} for alpha in (0.1, 10.0, 1000.0)]),
    (LDA(), [{"shrinkage": shrinkage} for shrinkage in (0.01, 0.5)]),
    (KNN(), [{"n_neighbors": 3, "metric": "euclidean"}, {"n_neighbors": 9}, {"weights": "distance"}]),
    (LinearSVM(), [{"C": C} for C in (1e-2, 1e-3)]),
    (LogisticRegression(), [{"C": C} for C in (1e-3, 1e-2)]),
]
EACH = pytest.mark.parametrize(("probe", "grid"), KINDS, ids=["ridge", "lda", "knn", "svm", "logistic"])


def latents(
    rows: int = 300, features: int = 20, classes: int = 5, kind: Any = np.float64
) -> tuple[Array, Array, Array]:
    """Rows, labels, and folds of unlike sizes, some rows being of none."""
    draw = np.random.default_rng(1)
    label = draw.integers(0, classes, rows)
    found = 0.5 * draw.normal(size=(classes, features))[label] + draw.normal(size=(rows, features))
    return (
        (found * draw.uniform(0.1, 4, features)).astype(kind),
        label,
        draw.choice(5, rows, p=[0.1, 0.2, 0.3, 0.2, 0.2]) - 1,
    )


def path(probe: Any, data: tuple[Array, Array, Array], grid: list[dict[str, Any]], todo: Any = range(4)) -> Array:
    """Scores [fold of todo, setting]."""
    found = list(probe.cv_path(*data, grid, todo))
    assert [fold for fold, _ in found] == list(todo)
    return np.array([scores for _, scores in found])


def plain(estimator: Any, data: tuple[Array, Array, Array], scaled: bool = True) -> Array:
    rows, label, folds = data
    whole = make_pipeline(StandardScaler(), estimator) if scaled else estimator
    scores: Array = cross_val_score(whole, rows, label, cv=PredefinedSplit(folds))
    return scores


@EACH
def test_some_folds_score_as_they_do_among_all(probe: Any, grid: list[dict[str, Any]]) -> None:
    data = latents()
    assert np.array_equal(path(probe, data, grid, [3, 1]), path(probe, data, grid)[[3, 1]])
    assert list(probe.cv_path(*data, grid, [])) == []


@EACH
def test_a_path_is_the_fits_that_it_spares(probe: Any, grid: list[dict[str, Any]]) -> None:
    """Rows of fold -1 are learnt from, and never asked about."""
    rows, label, folds = latents()
    for fold, scores in enumerate(path(probe, (rows, label, folds), grid)):
        learnt, asked = folds != fold, folds == fold
        alone = [
            type(probe)(**{**probe.get_params(), **setting})
            .fit(rows[learnt], label[learnt])
            .score(rows[asked], label[asked])
            for setting in grid
        ]
        # The solvers come to their optimum from another start.
        assert scores == pytest.approx(alone, abs=1 / asked.sum() + 1e-9 if "C" in grid[0] else 0)


# ---------------------------------------------------------------- neighbours


@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_met_tile_by_tile_are_the_nearest(metric: str, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SIDE", 32)
    monkeypatch.setitem(neighbours.AT_ONCE, "cpu", 100)
    data, near = latents(kind=kind), 1e-4 if kind is np.float32 else 1e-9
    for count in (1, 3, 7, 40):
        theirs = KNeighborsClassifier(count, metric=metric, algorithm="brute", weights="distance")
        grid: list[dict[str, Any]] = [{"n_neighbors": count, "metric": metric, "weights": "distance"}]
        assert np.array_equal(path(KNN(), data, grid)[:, 0], plain(theirs, data, scaled=False))
        ours = KNN(**grid[0]).fit(*data[:2])
        asked = data[0][:100] + kind(0.1)
        assert ours.predict_proba(asked) == pytest.approx(theirs.fit(*data[:2]).predict_proba(asked), abs=near)


def test_all_rows_vote_where_there_are_fewer_than_asked_for() -> None:
    rows, label, folds = latents(rows=40)
    for weights in ("uniform", "distance"):
        grid: list[dict[str, Any]] = [{"n_neighbors": 1000, "weights": weights, "metric": "euclidean"}]
        for fold, found in enumerate(path(KNN(), (rows, label, folds), grid)[:, 0]):
            learnt, asked = folds != fold, folds == fold
            theirs = KNeighborsClassifier(int(learnt.sum()), weights=weights).fit(rows[learnt], label[learnt])
            assert found == theirs.score(rows[asked], label[asked])
            assert KNN(**grid[0]).fit(rows[learnt], label[learnt]).score(rows[asked], label[asked]) == found


@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_rows_that_are_equal_share_the_vote(metric: str, kind: Any) -> None:
    """Rounding makes none of them nearer."""
    rows = np.repeat(100 * np.random.default_rng(0).normal(size=(30, 1024)), 3, axis=0).astype(kind)
    label = np.tile([0, 1, 1], 30)
    probe = KNN(n_neighbors=20, weights="distance", metric=metric).fit(rows, label)
    assert probe.predict_proba(rows[::3]) == pytest.approx(np.tile([1 / 3, 2 / 3], (30, 1)), abs=1e-6)


def test_distances_far_from_the_origin_keep_their_digits() -> None:
    rows, label, folds = latents(kind=np.float32)
    far = rows + np.float32(1000), label, folds
    theirs = plain(KNeighborsClassifier(5, algorithm="brute"), (far[0].astype(np.float64), label, folds), scaled=False)
    assert np.array_equal(
        path(KNN(), far, [{"n_neighbors": 5, "metric": "euclidean", "weights": "uniform"}])[:, 0], theirs
    )


def test_a_row_of_zeros_is_as_far_from_all() -> None:
    rows, label, _ = latents()
    rows[::10] = 0
    near = KNN(n_neighbors=5, weights="distance").fit(rows, label)
    theirs = KNeighborsClassifier(5, weights="distance", metric="cosine").fit(rows, label)
    asked = rows[1:10]
    assert near.predict_proba(asked + 0.1) == pytest.approx(theirs.predict_proba(asked + 0.1))


# ---------------------------------------------------------------- from sums


@pytest.mark.parametrize("features", [1, 2, 20, 400])
def test_sums_do_for_few_features_and_for_more_than_rows(features: int) -> None:
    data = latents(features=features)
    for alpha in (1e-3, 1.0, 1e4):
        assert np.array_equal(path(Ridge(), data, [{"alpha": alpha}])[:, 0], plain(RidgeClassifier(alpha), data))
    for shrinkage in (1e-3, 0.3, 1.0):
        theirs = plain(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage), data)
        assert np.array_equal(path(LDA(), data, [{"shrinkage": shrinkage}])[:, 0], theirs)


def test_without_an_inverse_the_solution_is_the_smallest() -> None:
    rows, label, _ = latents(rows=60, features=200)
    seen = StandardScaler().fit_transform(rows)
    wanted = np.linalg.pinv(seen) @ (2.0 * (label[:, None] == np.arange(5)) - 1)
    found = Ridge(alpha=0).fit(rows, label)
    assert found.coef_.T * rows.std(0)[:, None] == pytest.approx(wanted, abs=1e-9)
    means = np.stack([seen[label == k].mean(0) for k in range(5)])
    within = seen - means[label]
    wanted = means @ np.linalg.pinv(within.T @ within / 60, rcond=1e-10)
    assert LDA(shrinkage=0).fit(rows, label).coef_ * rows.std(0) == pytest.approx(
        wanted, abs=1e-9 * np.abs(wanted).max()
    )


def test_features_that_say_the_same_need_hardly_a_penalty() -> None:
    rows, label, folds = latents(rows=5000, features=2)
    twice = np.hstack([rows, 3 * rows]), label, folds
    for alpha in 10.0 ** np.arange(-14, -5):
        assert path(Ridge(), twice, [{"alpha": alpha}]) == pytest.approx(
            path(Ridge(), (rows, label, folds), [{"alpha": 0}])
        )


def test_features_that_do_not_vary_say_nothing() -> None:
    rows, label, folds = latents()
    still = np.hstack([rows, np.full((300, 1), 0.1), np.zeros((300, 1))]), label, folds
    for probe, grid in (KINDS[0], *KINDS[3:]):
        assert np.array_equal(path(probe, still, grid), path(probe, (rows, label, folds), grid))
    theirs = plain(LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3), still)  # it shrinks to their mean variance
    assert np.array_equal(path(LDA(), still, [{"shrinkage": 0.3}])[:, 0], theirs)
    still[0][:, -2] += 1000 * (folds == 1)  # of what fold 1 has learnt it does not vary
    assert path(Ridge(), still, [{}], [1])[0, 0] == plain(RidgeClassifier(1.0), still)[1]
    nothing = np.full((300, 3), 7.3), label, folds
    most = [(label[folds == fold] == np.bincount(label[folds != fold]).argmax()).mean() for fold in range(4)]
    for probe in (Ridge(), LDA()):
        assert path(probe, nothing, [{}])[:, 0].tolist() == most


def test_a_fold_without_the_outlier_keeps_its_digits() -> None:
    rows, label, folds = latents()
    rows[np.flatnonzero(folds == 2)[0]] *= 1e9
    data = rows, label, folds
    assert path(Ridge(), data, [{}], [2])[0, 0] == plain(RidgeClassifier(1.0), data)[2]
