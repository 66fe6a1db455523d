"""Parts of fitted probes that scikit-learn computes with, as plain arrays and back.

libsvm looks wherever its arrays point, outside of memory too: here nothing is given to it that was not checked.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from distill.probing.base import Array, take


def within(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}.{name}": value for name, value in arrays.items()}


def inside(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What `within` made of them."""
    return {name.removeprefix(f"{prefix}."): value for name, value in arrays.items() if name.startswith(f"{prefix}.")}


def smallest(whole: Array) -> Array:
    """Whole numbers from 0 in as few bytes as hold them all."""
    return whole.astype(np.min_scalar_type(int(whole.max(initial=0))))


def scaler_arrays(scaler: StandardScaler) -> dict[str, Array]:
    return {"mean": scaler.mean_, "scale": scaler.scale_}


def scaler_of(arrays: Mapping[str, Array], features: int) -> StandardScaler:
    scaler = StandardScaler()
    scaler.mean_, scaler.scale_ = (take(arrays, name, "f", features) for name in ("mean", "scale"))
    if (scaler.scale_ <= 0).any():
        raise ValueError("a scale is not above 0")
    scaler.n_features_in_ = features
    return scaler


def machine_arrays(machine: SVC) -> dict[str, Array]:
    vectors = machine.support_vectors_
    single = vectors.astype(np.float32)
    return {
        "vectors": single if np.array_equal(single, vectors) else vectors,
        "counts": machine._n_support,
        "dual": machine._dual_coef_,
        "constants": machine._intercept_,
        "gamma": np.array([machine._gamma]),
    }


def machine_of(arrays: Mapping[str, Array], features: int, classes: int) -> SVC:
    vectors = take(arrays, "vectors", "f", None, features)
    counts = take(arrays, "counts", "i", classes, below=len(vectors) + 1)
    if counts.sum() != len(vectors):
        raise ValueError("counts are not those of the vectors")
    found = {
        "support_vectors_": vectors.astype(np.float64, order="C"),
        "_n_support": counts.astype(np.int32),
        "_dual_coef_": take(arrays, "dual", "f", classes - 1, len(vectors)).astype(np.float64, order="C"),
        "_intercept_": take(arrays, "constants", "f", classes * (classes - 1) // 2).astype(np.float64),
        "_gamma": float(take(arrays, "gamma", "f", 1)[0]),
        "support_": np.arange(len(vectors), dtype=np.int32),
        "classes_": np.arange(classes),
        "n_features_in_": features,
        "_sparse": False,
        "_probA": np.empty(0),
        "_probB": np.empty(0),
        "fit_status_": 0,
    }
    machine = SVC()
    vars(machine).update(found)
    return machine
