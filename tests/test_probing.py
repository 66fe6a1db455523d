"""Probes against scikit-learn: the same scores fold by fold, the same optima, the same manners."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression as PlainLogisticRegression
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, ShuffleSplit, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from sklearn.utils.estimator_checks import check_estimator

from distill.probing import metrics
from distill.probing.base import Array, Probe
from distill.probing.gaussian import LDA, Ridge
from distill.probing.kernels import KernelSVM, Nystroem
from distill.probing.linear import LinearSVM, LogisticRegression
from distill.probing.moments import Moments
from distill.probing.neighbours import KNN
from distill.probing.residual import MLP
from distill.probing.search import ProbeSearchCV, one_fold_each
from distill.probing.trees import Boosted, Forest, Tree

FOLDS = StratifiedKFold(5, shuffle=True, random_state=0)
ALL: dict[str, Probe] = {
    "ridge": Ridge(),
    "lda": LDA(),
    "knn": KNN(),
    "svm": LinearSVM(),
    "logistic_regression": LogisticRegression(),
    "svm_rbf": KernelSVM(),
    "nystroem": Nystroem(landmarks=30),
    "decision_tree": Tree(),
    "random_forest": Forest(n_estimators=5),
    "xgboost": Boosted(n_estimators=5),
    "mlp": MLP(epochs=5, width=32, batch=16, lr=1e-2, dropout=0.0),
}


def latents(rows: int = 600, features: int = 40, classes: int = 8, kind: Any = np.float64) -> tuple[Array, Array]:
    """Classes that overlap, features of unlike scale and far from 0, and one that never varies."""
    draw = np.random.default_rng(0)
    middle, label = 0.4 * draw.normal(size=(classes, features)), draw.integers(0, classes, rows)
    found = (middle[label] + draw.normal(size=(rows, features))) * draw.uniform(0.1, 4, features)
    found += 5 * draw.normal(size=features)
    found[:, 7] = 3.5
    return found.astype(kind), label


def standardised(estimator: Any) -> Any:
    return make_pipeline(StandardScaler(), estimator)


def by_fold(search: Any) -> Array:
    """Scores [setting, fold]."""
    return np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(search.n_splits_)]).T


def whole_path(probe: Probe, rows: Array, label: Array, folds: Array, grid: list[Any]) -> Array:
    """Scores [setting, fold]."""
    found = dict(probe.cv_path(rows, label, folds, grid, range(folds.max() + 1)))
    return np.stack([found[fold] for fold in sorted(found)], 1)


PAIRS: list[tuple[Probe, Any, dict[str, list[Any]]]] = [
    (Ridge(), RidgeClassifier(), {"alpha": [0.01, 1.0, 100.0, 1e4]}),
    (LDA(), LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": [0.01, 0.1, 0.5, 1.0]}),
    (LinearSVM(), LinearSVC(dual=False, tol=1e-8, max_iter=100_000), {"C": [1e-4, 1e-2, 1.0]}),
    (LogisticRegression(), PlainLogisticRegression(tol=1e-8, max_iter=5000), {"C": [1e-3, 1e-2, 0.1]}),
]


@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scaled", [True, False], ids=["standardised", "as_it_is"])
@pytest.mark.parametrize("pair", PAIRS[:2], ids=["ridge", "lda"])
def test_paths_from_sums_score_as_the_plain_search_does(pair: Any, scaled: bool, kind: Any) -> None:
    ours, plain, grid = pair
    rows, label = latents(kind=kind)
    rows = rows if scaled else np.delete(rows, 7, 1)  # without standardising, lsqr and we disagree on what never varies
    prefix = f"{type(plain).__name__.lower()}__" if scaled else ""
    theirs = GridSearchCV(
        standardised(plain) if scaled else plain, {prefix + key: value for key, value in grid.items()}, cv=FOLDS
    ).fit(rows, label)
    found = ProbeSearchCV(ours.set_params(standardise=scaled), grid, cv=FOLDS).fit(rows, label)
    assert np.array_equal(by_fold(found), by_fold(theirs))
    assert (found.predict(rows) == theirs.predict(rows)).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_score_as_the_plain_search_does(metric: str) -> None:
    rows, label = latents()
    grid = {"n_neighbors": [1, 5, 20], "weights": ["uniform", "distance"]}
    theirs = GridSearchCV(KNeighborsClassifier(metric=metric, algorithm="brute"), grid, cv=FOLDS).fit(rows, label)
    found = ProbeSearchCV(KNN(metric=metric), grid, cv=FOLDS).fit(rows, label)
    assert np.array_equal(by_fold(found), by_fold(theirs))
    assert found.best_params_ == theirs.best_params_
    assert found.predict_proba(rows[:50] + 0.1) == pytest.approx(theirs.predict_proba(rows[:50] + 0.1), abs=1e-9)


def hinge(scores: Array, weights: Array, constant: Array, label: Array, C: float) -> float:
    side = np.where(np.arange(scores.shape[1]) == label[:, None], 1, -1)
    return float((weights**2).sum() / 2 + (constant**2).sum() / 2 + C * (np.maximum(0, 1 - side * scores) ** 2).sum())


def logistic(scores: Array, weights: Array, constant: Array, label: Array, C: float) -> float:
    top = scores.max(1)
    lost = np.log(np.exp(scores - top[:, None]).sum(1)) + top - scores[np.arange(len(label)), label]
    return float((weights**2).sum() / 2 + C * lost.sum())


@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize(("pair", "objective"), [(PAIRS[2], hinge), (PAIRS[3], logistic)], ids=["svm", "logistic"])
def test_batched_solvers_reach_the_optimum(pair: Any, objective: Any, C: float, kind: Any) -> None:
    rows, label = latents(kind=kind)
    scaled = StandardScaler().fit_transform(rows.astype(np.float64))
    plain = pair[1].set_params(C=C).fit(scaled, label)
    lowest = objective(plain.decision_function(scaled), plain.coef_, plain.intercept_, label, C)
    ours = type(pair[0])(C=C).fit(rows, label)
    spread = StandardScaler().fit(rows.astype(np.float64))
    weights = ours.coef_ * spread.scale_
    constant = ours.intercept_ + ours.coef_ @ spread.mean_
    reached = objective(scaled @ weights.T + constant, weights, constant, label, C)
    assert reached <= lowest * (1 + 1e-6)
    assert ours.objective_ == pytest.approx(reached, rel=1e-5)
    assert (ours.predict(rows) == plain.predict(scaled)).mean() >= (0.998 if objective is hinge else 0.99)


@pytest.mark.parametrize("pair", PAIRS[2:], ids=["svm", "logistic"])
def test_batched_paths_score_as_the_plain_search_does(pair: Any) -> None:
    ours, plain, grid = pair
    rows, label = latents()
    prefix = type(plain).__name__.lower()
    theirs = GridSearchCV(standardised(plain), {f"{prefix}__C": grid["C"]}, cv=FOLDS).fit(rows, label)
    found = ProbeSearchCV(ours, grid, cv=FOLDS).fit(rows, label)
    # Both are within a tolerance of the optimum; a clip on the border may fall on either side.
    assert np.abs(by_fold(found) - by_fold(theirs)).max() <= 1 / 120 + 1e-9


def test_a_forest_and_its_beginnings_score_as_the_plain_search_does() -> None:
    rows, label = latents(rows=300)
    grid = {"n_estimators": [3, 10, 20], "min_samples_leaf": [1, 3]}
    theirs = GridSearchCV(RandomForestClassifier(random_state=0), grid, cv=FOLDS).fit(rows, label)
    found = ProbeSearchCV(Forest(), grid, cv=FOLDS).fit(rows, label)
    assert np.array_equal(by_fold(found), by_fold(theirs))
    assert (found.predict(rows) == theirs.predict(rows)).all()


def test_a_tree_cut_at_a_depth_is_about_the_tree_of_that_depth() -> None:
    """But for draws between splits that are equally good."""
    rows, label = latents()
    grid = {"max_depth": [1, 2, 4, None], "min_samples_leaf": [20]}
    theirs = GridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=FOLDS).fit(rows, label)
    found = ProbeSearchCV(Tree(), grid, cv=FOLDS).fit(rows, label)
    assert by_fold(found)[[0, 1]].tolist() == by_fold(theirs)[[0, 1]].tolist()
    assert np.abs(by_fold(found) - by_fold(theirs)).max() < 0.03


def test_rounds_of_boosting_are_read_off_one_fit() -> None:
    """The scores of the shorter sums are those of sums that end there."""
    rows, label = latents(rows=300)
    folds = np.arange(len(label)) % 3
    probe = Boosted(components=0, patience=1000)
    path = whole_path(probe, rows, label, folds, [{"n_estimators": count} for count in (2, 5, 9)])
    alone = [whole_path(probe, rows, label, folds, [{"n_estimators": count}])[0] for count in (2, 5, 9)]
    assert np.array_equal(path, alone)


def test_the_exact_machine_is_scikit_learns() -> None:
    rows, label = latents(rows=300)
    found = ProbeSearchCV(KernelSVM(), {"C": [0.1, 10.0]}, cv=FOLDS).fit(rows, label)
    theirs = GridSearchCV(standardised(SVC()), {"svc__C": [0.1, 10.0]}, cv=FOLDS).fit(rows, label)
    assert np.array_equal(by_fold(found), by_fold(theirs))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(ALL))
def test_every_probe_has_scikit_learns_manners(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(ALL[name], on_fail=None, on_skip=None)
    assert {result["check_name"]: str(result["exception"]) for result in results if result["status"] == "failed"} == {}


@pytest.mark.parametrize("name", list(ALL))
def test_every_probe_learns(name: str) -> None:
    rows, label = latents(rows=900, kind=np.float32)
    probe = ALL[name].fit(rows[:600], label[:600])
    assert probe.score(rows[600:], label[600:]) > 2 / 8
    assert probe.scores(rows).shape == (900, 8)


# ---------------------------------------------------------------- the search


def test_the_search_has_the_plain_ones_table() -> None:
    rows, label = latents(rows=200)
    grid = [{"metric": ["cosine"], "n_neighbors": [3]}, {"n_neighbors": [1, 5]}]
    found = ProbeSearchCV(KNN(), grid, cv=4).fit(rows, label)
    plain = GridSearchCV(KNN(), grid, cv=4).fit(rows, label)
    assert set(found.cv_results_) == set(plain.cv_results_)
    for key in ("params", "rank_test_score", "mean_test_score", "std_test_score"):
        assert np.array_equal(np.asarray(found.cv_results_[key]), np.asarray(plain.cv_results_[key]))
    masked = found.cv_results_["param_metric"]
    assert masked.mask.tolist() == plain.cv_results_["param_metric"].mask.tolist()
    assert (found.best_index_, found.best_params_) == (plain.best_index_, plain.best_params_)


@pytest.mark.parametrize("name", list(ALL))
def test_a_search_goes_on_where_another_was_stopped(name: str) -> None:
    rows, label = latents(rows=200)
    grid = {
        key: [ALL[name].get_params()[key]] for key in ("alpha", "C", "n_neighbors") if key in ALL[name].get_params()
    }
    whole, kept = ProbeSearchCV(ALL[name], grid, cv=FOLDS), dict[int, Array]()
    whole.fit(rows, label, keep=kept.__setitem__)
    assert sorted(kept) == [0, 1, 2, 3, 4]
    told: list[int] = []
    rest = ProbeSearchCV(ALL[name], grid, cv=FOLDS)
    rest.fit(rows, label, known={fold: kept[fold] for fold in (0, 3)}, keep=lambda fold, _: told.append(fold))
    assert sorted(told) == [1, 2, 4]
    assert np.array_equal(by_fold(rest), by_fold(whole))
    assert np.array_equal(by_fold(whole), np.stack([kept[fold] for fold in range(5)], 1))


def test_splits_that_overlap_are_searched_plainly() -> None:
    rows, label = latents(rows=200)
    splits = ShuffleSplit(3, test_size=0.3, random_state=0)
    found = ProbeSearchCV(Ridge(), {"alpha": [1.0, 10.0]}, cv=splits).fit(rows, label)
    plain = GridSearchCV(Ridge(), {"alpha": [1.0, 10.0]}, cv=splits).fit(rows, label)
    assert np.array_equal(by_fold(found), by_fold(plain))


@given(st.lists(st.integers(-1, 4), min_size=1, max_size=30))
def test_folds_are_told_from_splits(folds: list[int]) -> None:
    given_ = np.array(folds)
    splits = [(np.flatnonzero(given_ != fold), np.flatnonzero(given_ == fold)) for fold in range(given_.max() + 1)]
    found = one_fold_each(splits, len(folds))
    assert found is not None
    assert found.tolist() == folds


@pytest.mark.parametrize("name", list(ALL))
def test_a_hold_out_is_one_fold(name: str) -> None:
    """Rows of fold -1 are always learnt from, and alone: scales, axes and landmarks know nothing of those tested."""
    rows, label = latents(rows=300)
    folds = np.where(np.arange(300) < 240, -1, 0)
    rows[240:, 0] += 30
    probe = clone(ALL[name]).set_params(**({"patience": 1000, "components": 4} if name == "xgboost" else {}))
    path = whole_path(probe, rows, label, folds, [{}])
    assert path.shape == (1, 1)
    alone = probe.fit(rows[:240], label[:240]).score(rows[240:], label[240:])
    assert path[0, 0] == pytest.approx(alone, abs=1e-12)


# ---------------------------------------------------------------- measures


@settings(max_examples=50)
@given(st.integers(2, 12), st.integers(1, 60), st.integers(0, 1000))
def test_measures_are_scikit_learns(classes: int, rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    truth, scores = draw.integers(0, classes, rows), draw.normal(size=(rows, classes))
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    said, found = scores.argmax(1), dict(metrics.measures(truth, scores, shares))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for average in ("macro", "weighted"):
            wanted = reference.precision_recall_fscore_support(truth, said, average=average, zero_division=0)
            got = [found[f"{name}_{average}"] for name in ("precision", "recall", "f1")]
            assert got == pytest.approx(wanted[:3], abs=1e-12)
        assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(truth, said))
    assert found["top1"] == reference.accuracy_score(truth, said)
    if classes > 5:
        assert found["top5"] == pytest.approx(
            reference.top_k_accuracy_score(truth, scores, k=5, labels=np.arange(classes))
        )
    assert found["log_loss"] == pytest.approx(reference.log_loss(truth, shares, labels=np.arange(classes)))


def test_the_first_of_equals_is_what_is_said() -> None:
    scores = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    assert metrics.ranks(np.array([0, 1]), scores).tolist() == [0, 1]


def test_the_interval_is_wilsons() -> None:
    assert metrics.interval(30, 100) == pytest.approx((0.21895, 0.39585), abs=1e-5)
    assert metrics.interval(0, 10)[0] == pytest.approx(0, abs=1e-12)


def test_the_effective_rank_counts_axes() -> None:
    def rank(rows: Array) -> float:
        return metrics.effective_rank(metrics.variances(Moments.of(rows, np.zeros(len(rows), int), 1)))

    draw = np.random.default_rng(0).normal(size=(5000, 4))
    assert rank(draw) == pytest.approx(4, abs=0.02)
    flat = draw[:, :1] * np.ones(6)
    assert rank(flat) == pytest.approx(1, abs=1e-6)
    assert rank(np.zeros((10, 3))) == 1
