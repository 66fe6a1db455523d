"""What the probe's search costs beside scikit-learn's, on made-up latents: `make bench-probe`.

Every pair gets the same rows, folds and grid, in one run, on one thread; seconds are those of the processor. The scores
of the two stand beside the ratio. Plain linear SVMs take minutes a fold, so there both sides do one fold of ten;
plain logistic regressions end after a hundred steps, short of the optimum.
With --kinetics only ours run, with the probe job's grids at the size of Kinetics-400 and on all cores, and memory is
told.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression as PlainLogisticRegression
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits

from distill.probing.base import Array, Probe
from distill.probing.classifiers import PROBES
from distill.probing.gaussian import LDA, Ridge
from distill.probing.linear import LinearSVM, LogisticRegression
from distill.probing.neighbours import KNN
from distill.probing.search import ProbeSearchCV
from distill.run_log import Talk
from distill.surroundings import cores

WIDTH, FOLDS = 1024, 10
ALPHAS = np.logspace(0, 6, 20).tolist()
SHRINKAGES = np.linspace(0.02, 0.98, 20).tolist()
NEIGHBOURS: dict[str, Sequence[Any]] = {"n_neighbors": [5, 10, 20, 50, 100], "weights": ["uniform", "distance"]}
PENALTIES = [1e-5, 1e-4, 1e-3]
FULL_SIZE = ("ridge", "lda", "knn", "svm")


@dataclass(frozen=True)
class Pair:
    ours: Probe
    plain: Any
    grid: Mapping[str, Sequence[Any]]
    scaled: bool = True
    folds: int = FOLDS  # of the ten, how many are tested


PAIRS = {
    "ridge": Pair(Ridge(), RidgeClassifier(), {"alpha": ALPHAS}),
    "lda": Pair(LDA(), LinearDiscriminantAnalysis(solver="lsqr"), {"shrinkage": SHRINKAGES}),
    "knn": Pair(KNN(metric="euclidean"), KNeighborsClassifier(algorithm="brute"), NEIGHBOURS, scaled=False),
    "svm": Pair(LinearSVM(), LinearSVC(), {"C": PENALTIES}, folds=1),
    "logistic_regression": Pair(LogisticRegression(), PlainLogisticRegression(), {"C": [1e-4, 1e-3, 1e-2]}),
}


def latents(rows: int, classes: int, seed: int = 0) -> tuple[Array, Array]:
    """Classes of three modes each, ten to a family; spread, and what tells classes apart, fall along the axes."""
    draw = np.random.default_rng(seed)
    axis = np.arange(1, WIDTH + 1)
    family = draw.normal(size=(-(-classes // 10), WIDTH))
    middle = 1.2 * family[np.arange(classes) // 10] + 0.9 * draw.normal(size=(classes, WIDTH))
    modes = (middle[:, None] + 0.4 * draw.normal(size=(classes, 3, WIDTH))) * axis**-0.4
    label = draw.permutation(np.arange(rows) % classes)
    found = modes[label, draw.integers(0, 3, rows)].astype(np.float32)
    found += draw.standard_normal((rows, WIDTH), np.float32)
    return (found * axis**-0.75).astype(np.float32) @ _turned(draw), label


def _turned(draw: np.random.Generator) -> Array:
    """Axes that are nobody's features."""
    axes: Array = np.linalg.qr(draw.normal(size=(WIDTH, WIDTH)))[0].astype(np.float32)
    return axes


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def scores(search: Any) -> Array:
    return np.array([search.cv_results_[f"split{fold}_test_score"] for fold in range(search.n_splits_)]).T


def compare(name: str, pair: Pair, rows: Array, label: Array) -> tuple[str, ...]:
    cuts = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(rows, label))[: pair.folds]
    prefix = f"{type(pair.plain).__name__.lower()}__" if pair.scaled else ""
    plain = make_pipeline(StandardScaler(), pair.plain) if pair.scaled else pair.plain
    warnings.simplefilter("ignore", ConvergenceWarning)
    search = GridSearchCV(plain, {prefix + key: value for key, value in pair.grid.items()}, cv=cuts, refit=False)
    mine, found = timed(lambda: ProbeSearchCV(pair.ours, pair.grid, cv=cuts, refit=False).fit(rows, label))
    theirs, wanted = timed(lambda: search.fit(rows, label))
    again, _ = timed(lambda: ProbeSearchCV(pair.ours, pair.grid, cv=cuts, refit=False).fit(rows, label))
    gap = np.abs(scores(found) - scores(wanted)).max()
    ratios = sorted((theirs / mine, theirs / again))
    fits = f"{len(scores(found))} x {pair.folds}"
    spread = f"{ratios[0]:.1f} to {ratios[1]:.1f}"
    best = f"{100 * found.best_score_:.2f} / {100 * wanted.best_score_:.2f}"
    return name, fits, f"{(mine + again) / 2:.2f}", f"{theirs:.1f}", spread, f"{100 * gap:.2f}", best


def compared(names: Sequence[str], rows: int, classes: int) -> None:
    talk, found = Talk(), []
    data = latents(rows, classes)
    for name in names:
        found.append(compare(name, PAIRS[name], *data))
        talk.say("  ".join(found[-1]))
    head = (
        "",
        "settings x folds",
        "ours, CPU s",
        "plain, CPU s",
        "ratio",
        "largest gap of a fold, %",
        "best, ours / plain, %",
    )
    talk.table(f"{rows} x {WIDTH}, {classes} classes", head, found)


def at_full_size(names: Sequence[str]) -> None:
    """91,200 / 37,200 rows: ten folds, the grid, a fit on all, and the test rows."""
    talk, started, found = Talk(), time.monotonic(), []
    rows, label = latents(91_200 + 37_200, 400)
    for name in names:
        talk.say(f"{name}: {dict(PROBES[name].grid(91_200))}")
        wall = time.monotonic()
        seconds, (search, right) = timed(lambda name=name: _judged(talk, name, rows, label))  # type: ignore[misc]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        line = name, f"{seconds:.0f}", f"{(time.monotonic() - wall) / 60:.1f}", f"{peak:.2f}"
        found.append((*line, f"{100 * search.best_score_:.2f}", f"{100 * right:.2f}", str(search.best_params_)))
        talk.say("  ".join(found[-1]))
    head = ("", "CPU s", "minutes", "peak GB so far", "folds, %", "test, %", "setting")
    talk.table(f"91,200 / 37,200 x {WIDTH}, 400 classes, {FOLDS} folds", head, found)
    talk.say(f"{(time.monotonic() - started) / 60:.1f} minutes in all")


def _judged(talk: Talk, name: str, rows: Array, label: Array) -> tuple[ProbeSearchCV, float]:
    kind, cuts, started = PROBES[name], StratifiedKFold(FOLDS, shuffle=True, random_state=0), time.monotonic()

    def say(fold: int, scores: Array) -> None:
        talk.say(f"{name} fold {fold}: {100 * scores.max():.2f} %, after {(time.monotonic() - started) / 60:.1f} min")

    search = ProbeSearchCV(kind.make(0), kind.grid(91_200), cv=cuts).fit(rows[:91_200], label[:91_200], keep=say)
    return search, search.score(rows[91_200:], label[91_200:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=None, choices=list(PAIRS))
    parser.add_argument("--rows", type=int, default=5700)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--kinetics", action="store_true")
    given = parser.parse_args()
    threads = cores() if given.kinetics else 1
    torch.set_num_threads(threads)
    with threadpool_limits(threads):
        if given.kinetics:
            at_full_size(given.only or FULL_SIZE)
        else:
            compared(given.only or list(PAIRS), given.rows, given.classes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
