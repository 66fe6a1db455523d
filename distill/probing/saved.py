"""Fitted probes on the disk: one safetensors file each, plain arrays and a header of JSON.

Whoever wrote it: nothing in it is run, and nothing is computed with before its shapes and places are checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill.errors import UserError
from distill.files import publish
from distill.probing.base import Array, Probe

VERSION = 1
HEADER = "probe"
WIDEST = 1 << 20  # features: what a file without arrays of that width may claim
MACHINE = ("n_jobs",)  # settings of where a probe was fitted, not of what it is
KINDS = {  # and where each is: the whole list brings torch and xgboost, 500 MB that whoever reads one need not pay
    "Ridge": "gaussian",
    "LDA": "gaussian",
    "KNN": "neighbours",
    "LinearSVM": "linear",
    "KernelSVM": "kernels",
    "LogisticRegression": "linear",
    "Nystroem": "kernels",
    "Tree": "trees",
    "Forest": "trees",
    "Boosted": "trees",
    "MLP": "residual",
}


@dataclass(frozen=True)
class Saved:
    probe: Probe
    classes: Sequence[str]
    """What each column of its scores is called."""
    about: Mapping[str, Any]


def save_probe(probe: Probe, classes: Sequence[str], path: Path, about: Mapping[str, Any]) -> None:
    """`classes` are the names of `probe.classes_`, one for each."""
    if len(classes) != len(probe.classes_):
        raise ValueError(f"{len(classes)} names for a probe of {len(probe.classes_)} classes")
    head = {
        "version": VERSION,
        "kind": type(probe).__name__,
        "params": {name: _plain(value) for name, value in probe.get_params().items() if name not in MACHINE},
        "features": probe.n_features_in_,
        "labels": probe.classes_.tolist(),
        "classes": list(classes),
        "about": dict(about),
    }
    arrays = {name: np.ascontiguousarray(value) for name, value in probe.learnt().items()}
    publish(path, lambda part: save_file(arrays, part, {HEADER: json.dumps(head)}))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def said_about(path: Path) -> Mapping[str, Any]:
    """What a file says about its probe, which is not read; nothing where there is none."""
    try:
        with safe_open(path, "numpy") as file:
            found = _head(file)["about"]
    except (OSError, KeyError, SafetensorError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def encoder_id(about: Mapping[str, Any]) -> str:
    """Which student made the latents that a probe was fitted on, as cards of exported files call it in
    origin["student"]; empty where that is not known."""
    table = about.get("table")
    found = table.get("student") if isinstance(table, dict) else None
    return found if isinstance(found, str) else ""


def _head(file: Any) -> Any:
    """What an open safetensors file says of its probe; a KeyError where it holds none."""
    return json.loads((file.metadata() or {})[HEADER])


def load_probe(path: Path) -> Saved:
    head, arrays = _read(path)
    if head.get("version") != VERSION:
        raise UserError(
            f"{path} is a probe of version {head.get('version')!r:.20}, this distill reads {VERSION}; fit it again"
        )
    kind = head.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path} holds a probe of the kind {kind!r:.40}, which is none of {', '.join(KINDS)}")
    try:
        return _restored(head, arrays)
    except Exception as error:  # an odd file may fail wherever its content is used
        raise UserError(f"{path} is no fitted {kind} that can be used ({_line(error)}); fit it again") from error


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with safe_open(path, "numpy") as file:
            head = _head(file)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except KeyError as error:
        raise UserError(f"{path} is a safetensors file, but holds no fitted probe") from error
    except OSError as error:  # which comes without the name of the file
        raise UserError(f"{path} cannot be read ({_line(error)})") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is not a whole file of a fitted probe ({_line(error)})") from error
    if not isinstance(head, dict):
        raise UserError(f"{path} is a safetensors file, but holds no fitted probe")
    return head, arrays


def _restored(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> Saved:
    probe: Probe = getattr(import_module(f"distill.probing.{KINDS[head['kind']]}"), head["kind"])()
    classes, about = head["classes"], head["about"]
    params, features = head["params"], head["features"]
    labels = np.array(head["labels"])
    if not isinstance(classes, list) or any(not isinstance(name, str) for name in classes) or len(classes) < 2:
        raise ValueError("classes are two names or more")
    if labels.shape != (len(classes),) or labels.dtype.kind not in "biufU" or (labels[1:] <= labels[:-1]).any():
        raise ValueError("labels are one for each class, in order")
    if type(features) is not int or not 0 < features <= WIDEST:
        raise ValueError(f"features are a whole number from 1 to {WIDEST}")
    if not isinstance(about, dict) or not isinstance(params, dict):
        raise ValueError("about and params are tables")
    if params.keys() != probe.get_params().keys() - set(MACHINE):
        raise ValueError("its settings are others")
    if any(not isinstance(value, str | int | float | None) for value in params.values()):
        raise ValueError("settings are plain values")
    probe.set_params(**params)
    probe.classes_, probe.n_features_in_ = labels, features
    probe.restore(arrays)
    tried = probe.scores(np.zeros((1, features)))
    if tried.shape != (1, len(classes)) or not np.isfinite(tried).all():
        raise ValueError("it gives no score for each class")
    return Saved(probe, classes, about)
