"""The classifiers that judge latents, each with the settings that validation chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.probing.base import Probe
from distill.probing.gaussian import LDA, Ridge
from distill.probing.kernels import KernelSVM, Nystroem
from distill.probing.linear import LinearSVM, LogisticRegression
from distill.probing.neighbours import KNN
from distill.probing.residual import MLP
from distill.probing.trees import Boosted, Forest, Tree

Grid = Mapping[str, Sequence[Any]]
STEPS = 500  # that a network trains, at least


@dataclass(frozen=True)
class Kind:
    make: Callable[[int], Probe]
    """From a seed."""
    grid: Callable[[int], Grid]
    """From the number of training rows."""
    about: str


def _powers(below: int, count: int) -> Callable[[int], Grid]:
    """Powers of ten for a C that weighs a sum over rows: the more rows, the smaller."""

    def grid(rows: int) -> Grid:
        first = -round(math.log10(rows)) - below
        return {"C": [10.0**power for power in range(first, first + count)]}

    return grid


def _same(**grid: Sequence[Any]) -> Callable[[int], Grid]:
    return lambda rows: grid


def _long_enough(rows: int) -> Grid:
    """Few rows are seen more often."""
    return {"lr": [3e-4, 1e-3], "epochs": [max(20, STEPS * MLP().batch // rows)]}


PROBES: dict[str, Kind] = {
    "ridge": Kind(lambda seed: Ridge(), _same(alpha=np.logspace(0, 6, 13).tolist()), "ridge regression"),
    "lda": Kind(
        lambda seed: LDA(),
        _same(shrinkage=[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9]),
        "linear discriminant analysis, shrunken covariance",
    ),
    "knn": Kind(
        lambda seed: KNN(),
        _same(n_neighbors=[5, 10, 20, 50, 100], weights=["uniform", "softmax"]),
        "nearest neighbours by cosine",
    ),
    "svm": Kind(lambda seed: LinearSVM(), _powers(1, 4), "linear SVM, squared hinge, each class against all others"),
    "svm_rbf": Kind(
        lambda seed: KernelSVM(random_state=seed), _same(C=[1.0, 10.0]), "SVM with a Gaussian kernel, pairs of classes"
    ),
    "logistic_regression": Kind(lambda seed: LogisticRegression(), _powers(0, 4), "multinomial logistic regression"),
    "nystroem": Kind(
        lambda seed: Nystroem(random_state=seed),
        _same(gamma=[0.25, 1.0, 4.0], alpha=[0.01, 0.1, 1.0, 10.0, 100.0]),
        "ridge regression on a Gaussian kernel's landmarks",
    ),
    "decision_tree": Kind(
        lambda seed: Tree(random_state=seed),
        _same(max_depth=[4, 8, 16, None], min_samples_leaf=[1, 5, 20]),
        "one decision tree",
    ),
    "random_forest": Kind(
        lambda seed: Forest(n_jobs=-1, random_state=seed),
        _same(n_estimators=[100, 300], min_samples_leaf=[1, 3]),
        "random forest",
    ),
    "xgboost": Kind(
        lambda seed: Boosted(random_state=seed),
        _same(max_depth=[3], n_estimators=[25, 50, 100]),
        "XGBoost on 64 principal axes in 64 bins",
    ),
    "mlp": Kind(lambda seed: MLP(random_state=seed), _long_enough, "TinyAct's residual MLP"),
}
