"""The classifiers that judge latents, each with the few settings that validation chooses from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from xgboost import XGBClassifier

from distill.errors import UserError


@dataclass
class ProbeOptions:
    probes: list[str] = field(default_factory=lambda: ["svm", "random_forest", "xgboost"])
    """Classifiers to fit; known: svm, random_forest, xgboost."""
    labelled: float = 1.0
    """Share of each class's training labels that probes may use, whatever clips.labelled hid from training."""


@dataclass(frozen=True)
class Probe:
    make: Callable[..., BaseEstimator]
    grid: Sequence[Mapping[str, Any]]


def _svm(seed: int, **settings: Any) -> BaseEstimator:
    return make_pipeline(StandardScaler(), SVC(kernel="rbf", random_state=seed, **settings))


def _random_forest(seed: int, **settings: Any) -> BaseEstimator:
    return RandomForestClassifier(n_estimators=300, n_jobs=-1, random_state=seed, **settings)


def _xgboost(seed: int, **settings: Any) -> BaseEstimator:
    return XGBClassifier(
        n_estimators=100,
        learning_rate=0.2,
        max_bin=64,
        tree_method="hist",
        subsample=0.8,
        random_state=seed,
        **settings,
    )


PROBES: dict[str, Probe] = {
    "svm": Probe(_svm, [{"C": 1.0}, {"C": 10.0}]),
    "random_forest": Probe(_random_forest, [{"min_samples_leaf": 1}, {"min_samples_leaf": 3}]),
    "xgboost": Probe(_xgboost, [{"max_depth": 3}]),
}


@dataclass(frozen=True)
class Verdict:
    """What a probe found: its top-1 on the test clips, and the setting that validation chose."""

    top1: float
    setting: dict[str, Any]


def judge(
    name: str,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> Verdict:
    """Fit every setting on train, keep the one that is best on val, and look at test once. Data: (latents, labels)."""
    if name not in PROBES:
        raise UserError(f"there is no probe named {name!r}; known: {', '.join(PROBES)}")
    fitted = [(setting, PROBES[name].make(seed, **setting).fit(*train)) for setting in PROBES[name].grid]
    setting, best = max(fitted, key=lambda found: found[1].score(*val)) if len(fitted) > 1 else fitted[0]
    return Verdict(float(best.score(*test)), dict(setting))
