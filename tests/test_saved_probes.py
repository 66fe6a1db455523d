"""Fitted probes on the disk: the same scores after reading, and no harm from files that somebody else made up."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from sklearn.ensemble import RandomForestClassifier

from distill.errors import UserError
from distill.probing import grown
from distill.probing.base import Array, Probe
from distill.probing.classifiers import PROBES
from distill.probing.grown import Grown, Nodes
from distill.probing.saved import KINDS, encoder_id, load_probe, said_about, save_probe

EVERY = pytest.mark.parametrize("name", list(PROBES))
LABELS: dict[str, Array] = {
    "two": np.array(["run", "walk"]),
    "many": np.array([3, 4, 11, 70, 200]),
    "floats": np.array([-2.0, 0.0, 3.0]),
}
SMALL: dict[str, dict[str, Any]] = {
    "random_forest": {"n_estimators": 12, "n_jobs": None},  # threads add up shares in any order
    "xgboost": {"n_estimators": 4, "components": 6},
    "nystroem": {"landmarks": 25},
    "mlp": {"epochs": 2, "width": 16},
}


def rows(classes: int, kind: Any = np.float32) -> tuple[Array, Array]:
    draw = np.random.default_rng(0)
    label = draw.integers(0, classes, 240)
    return (draw.normal(size=(classes, 9))[label] + 0.7 * draw.normal(size=(240, 9))).astype(kind), label


def fitted(name: str, labels: Array, kind: Any = np.float32) -> Probe:
    X, y = rows(len(labels), kind)
    probe = PROBES[name].make(0)
    return probe.set_params(**SMALL.get(name, {})).fit(X, labels[y])  # type: ignore[no-any-return]


def saved(probe: Probe, path: Path) -> Path:
    save_probe(probe, [f"class {label}" for label in probe.classes_], path, {"run": "a"})
    return path


@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("labels", list(LABELS))
@EVERY
def test_a_probe_says_the_same_after_reading(name: str, labels: str, kind: Any, tmp_path: Path) -> None:
    probe, (X, _) = fitted(name, LABELS[labels], kind), rows(4, kind)
    found = load_probe(saved(probe, tmp_path / "probe.safetensors"))
    assert type(found.probe) is type(probe)
    assert (found.about, found.classes) == ({"run": "a"}, [f"class {label}" for label in LABELS[labels]])
    assert np.array_equal(found.probe.scores(X), probe.scores(X))
    assert np.array_equal(found.probe.predict(X), probe.predict(X))
    with pytest.raises(ValueError, match="features"):
        found.probe.predict(X[:, 1:])


JUDGE = """
import sys, numpy
from distill.probing.saved import load_probe
probe = load_probe(__import__("pathlib").Path(sys.argv[1])).probe
probe.shares(probe.scores(numpy.zeros((3, 9), numpy.float32)))
print(*sorted({"torch", "xgboost"} & set(sys.modules)))
"""


@EVERY
def test_a_probe_is_read_with_no_more_than_it_needs(name: str, tmp_path: Path) -> None:
    path = saved(fitted(name, LABELS["two"]), tmp_path / "probe.safetensors")
    done = subprocess.run([sys.executable, "-c", JUDGE, path], capture_output=True, text=True, check=True)
    trees = {"decision_tree": "xgboost", "random_forest": "xgboost"}  # in its module
    needs = {"knn": "torch", "mlp": "torch", "xgboost": "torch xgboost", **trees}
    assert done.stdout.strip() == needs.get(name, "")


def test_every_probe_is_found_where_it_is() -> None:
    classes = [type(kind.make(0)) for kind in PROBES.values()]
    assert {kind.__name__: kind.__module__ for kind in classes} == {
        name: f"distill.probing.{module}" for name, module in KINDS.items()
    }


def test_a_probe_tells_whose_latents_it_was_fitted_on(tmp_path: Path) -> None:
    probe, path = fitted("ridge", LABELS["two"]), tmp_path / "probe"
    save_probe(probe, ["run", "walk"], path, {"table": {"run": "a", "student": "0f3c"}})
    assert encoder_id(said_about(path)) == encoder_id(load_probe(path).about) == "0f3c"
    odd: list[dict[str, Any]] = [{}, {"table": None}, {"table": {"file": "x.npz"}}, {"table": {"student": ["0f3c"]}}]
    assert [encoder_id(about) for about in odd] == [""] * len(odd)
    assert encoder_id(said_about(tmp_path / "none")) == ""


@EVERY
def test_what_was_read_is_saved_as_it_was(name: str, tmp_path: Path) -> None:
    first = saved(fitted(name, LABELS["many"]), tmp_path / "first")
    again = saved(load_probe(first).probe, tmp_path / "again")
    assert again.read_bytes() == first.read_bytes()


def test_settings_are_kept_but_for_those_of_the_machine(tmp_path: Path) -> None:
    X, y = rows(3)
    probe = PROBES["random_forest"].make(5).set_params(n_estimators=np.int64(3), min_samples_leaf=2, n_jobs=2).fit(X, y)
    found = load_probe(saved(probe, tmp_path / "probe")).probe.get_params()
    assert found == {**probe.get_params(), "n_jobs": None}


def test_every_column_has_a_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 names for a probe of 5 classes"):
        save_probe(fitted("ridge", LABELS["many"]), ["a", "b"], tmp_path / "probe", {})


def test_a_forest_takes_little_room(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    X, y = draw.normal(size=(1000, 5)), np.arange(1000) % 100
    probe = PROBES["random_forest"].make(0).set_params(n_estimators=10).fit(X, y)
    dense = sum(tree.tree_.value.nbytes for tree in probe.grown_.estimators_)
    assert saved(probe, tmp_path / "probe").stat().st_size < dense / 40


# ---------------------------------------------------------------- files that are none


class Harm:
    """Unpickled it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.path, "harm")


def changed(path: Path, arrays: dict[str, Array | None] | None = None, **head: Any) -> Path:
    """With other content; None removes."""
    with safe_open(path, "numpy") as file:
        there = json.loads(file.metadata()["probe"]) | head
    kept = {name: value for name, value in (load_file(path) | (arrays or {})).items() if value is not None}
    save_file(kept, path, {"probe": json.dumps(there)})
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        load_probe(path)
    told = str(refused.value)
    assert told.startswith(str(path))
    assert "\n" not in told
    assert len(told) < 500
    return told


@pytest.mark.parametrize("name", ["random_forest", "ridge", "xgboost"])
def test_a_pickle_in_disguise_is_not_unpickled(name: str, tmp_path: Path) -> None:
    harm = pickle.dumps(Harm(tmp_path / "harm"))
    (tmp_path / "plain").write_bytes(harm)
    assert "is not a whole file" in refusal(tmp_path / "plain")
    np.savez(tmp_path / "zipped.npz", value=np.array([Harm(tmp_path / "harm")], object))
    assert "is not a whole file" in refusal(tmp_path / "zipped.npz")
    inside: dict[str, Array | None] = {
        key: np.frombuffer(harm, np.uint8) for key in load_file(saved(fitted(name, LABELS["two"]), tmp_path / "probe"))
    }
    assert "that can be used" in refusal(changed(tmp_path / "probe", inside))
    assert not (tmp_path / "harm").exists()
    pickle.loads(harm)
    assert (tmp_path / "harm").exists()  # it would have done harm


@EVERY
def test_half_a_file_is_refused(name: str, tmp_path: Path) -> None:
    whole = saved(fitted(name, LABELS["two"]), tmp_path / "probe").read_bytes()
    for length in (0, 4, 50, len(whole) // 2, len(whole) - 1):
        (tmp_path / "probe").write_bytes(whole[:length])
        assert "is not a whole file" in refusal(tmp_path / "probe")


HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": 2}, "version 2, this distill reads 1; fit it again"),
    "no version": ({"version": None}, "version None"),
    "kind": ({"kind": "KNeighborsClassifier" * 99}, "which is none of Ridge, LDA, KNN"),
    "kind of no kind": ({"kind": ["Ridge"]}, "which is none of"),
    "another kind": ({"kind": "KNN", "params": {}}, "no fitted KNN that can be used"),
    "a lacking name": ({"classes": ["a"]}, "two names or more"),
    "a name too many": ({"classes": list("abcdef")}, "labels are one for each class"),
    "no names": ({"classes": [1, 2, 3, 4, 5]}, "two names or more"),
    "labels twice": ({"labels": [1, 1, 2, 3, 4]}, "labels are one for each class, in order"),
    "labels of no kind": ({"labels": [{}, {}, {}, {}, {}]}, "labels are one for each class"),
    "features": ({"features": 8}, r"coef_ is \[5, 9\] instead of \[5, 8\]"),
    "many features": ({"features": 1 << 40}, "whole number from 1 to 1048576"),
    "no features": ({"features": True}, "whole number from 1 to 1048576"),
    "about": ({"about": None}, "about and params are tables"),
    "other settings": ({"params": {"C": 1.0}}, "its settings are others"),
    "odd settings": ({"params": {"alpha": {"a": 1}, "standardise": True}}, "settings are plain values"),
}


@pytest.mark.parametrize("name", list(HEADS))
def test_a_header_that_does_not_fit_is_refused(name: str, tmp_path: Path) -> None:
    change, told = HEADS[name]
    path = changed(saved(fitted("ridge", LABELS["many"]), tmp_path / "probe"), **change)
    with pytest.raises(UserError, match=told):
        load_probe(path)
    refusal(path)


def test_a_header_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "probe"
    for text, told in (("[" * 100_000, "whole file"), ("{", "whole file"), ("[]", "holds no fitted probe")):
        save_file({"coef_": np.zeros(3)}, path, {"probe": text})
        assert told in refusal(path)
    save_file({"coef_": np.zeros(3)}, path)
    assert "holds no fitted probe" in refusal(path)
    assert "cannot be read" in refusal(tmp_path / "nope")
    assert "cannot be read" in refusal(tmp_path)


@EVERY
def test_arrays_of_no_probe_change_nothing(name: str, tmp_path: Path) -> None:
    path = saved(fitted(name, LABELS["many"]), tmp_path / "probe")
    wanted = load_probe(path).probe
    for odd in ("classes_", "scores", "decide\n" * 999, "__class__"):
        saved(fitted(name, LABELS["many"]), path)
        found = load_probe(changed(path, {odd: np.zeros(3)})).probe
        assert type(found) is type(wanted)
        assert vars(found).keys() == vars(wanted).keys()
        assert np.array_equal(found.classes_, wanted.classes_)


# ---------------------------------------------------------------- arrays that somebody made up


@EVERY
def test_no_array_may_be_lacking_shorter_or_beyond_its_bounds(name: str, tmp_path: Path) -> None:
    whole = saved(fitted(name, LABELS["many"]), tmp_path / "probe").read_bytes()
    arrays = load_file(tmp_path / "probe")
    for key, value in arrays.items():
        odd = value.copy()
        odd.flat[odd.size // 2] = np.nan if odd.dtype.kind == "f" else np.iinfo(odd.dtype).max
        for change in (None, value[1:], value[..., :-1], value[None], value.astype(complex), odd):
            if change is not None and change.dtype.kind == "c":
                change = change.real.astype(np.float16 if value.dtype.kind != "f" else np.int16)
            (tmp_path / "probe").write_bytes(whole)
            refusal(changed(tmp_path / "probe", {key: None if change is None else np.ascontiguousarray(change)}))


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("mlp", {"blocks": 10**9}),
        ("mlp", {"width": 10**12}),
        ("knn", {"temperature": 0.0}),
        ("knn", {"n_neighbors": -1}),
        ("knn", {"metric": "nearness"}),
        ("knn", {"weights": "many"}),
    ],
)
def test_settings_that_do_not_fit_the_arrays_are_refused(name: str, params: dict[str, Any], tmp_path: Path) -> None:
    probe = fitted(name, LABELS["many"])
    given = {**probe.get_params(), **params}
    assert "that can be used" in refusal(changed(saved(probe, tmp_path / "probe"), params=given))


def test_a_machine_with_vectors_of_nobody_is_refused(tmp_path: Path) -> None:
    probe = fitted("svm_rbf", LABELS["many"])
    counts = probe.learnt()["counts"]
    for odd in (counts + np.int32(1), counts - counts, np.where(counts == counts[0], -1, counts).astype(np.int32)):
        assert "counts" in refusal(changed(saved(probe, tmp_path / "probe"), {"counts": odd}))


TREE = {"left": [1, 0, 3, 0, 0], "right": [2, 0, 4, 0, 0], "feature": [0, 0, 1, 0, 0], "value": [0.0] * 5}
WALKS: dict[str, tuple[dict[str, list[Any]], str]] = {
    "itself": ({"left": [1, 0, 2, 0, 0]}, "leads out of itself or back"),
    "back": ({"left": [1, 0, 1, 0, 0]}, "leads out of itself or back"),
    "to the root": ({"left": [1, 0, 0, 0, 0]}, "leads out of itself or back"),
    "out": ({"right": [2, 0, 5, 0, 0]}, "leads out of itself or back"),
    "far out": ({"right": [2, 0, 99, 0, 0]}, "right has places that there are not"),
    "into the next tree": ({"sizes": [3, 2]}, "leads out of itself or back"),
    "two parents": ({"right": [2, 0, 3, 0, 0]}, "belong to none or to two"),
    "no parent": ({"left": [1, 0, 0, 0, 0], "right": [2, 0, 0, 0, 0]}, "belong to none or to two"),
    "features": ({"feature": [0, 0, 3, 0, 0]}, "feature has places that there are not"),
    "nodes of no tree": ({"sizes": [4]}, "other sizes than their nodes"),
    "an empty tree": ({"sizes": [5, 0]}, "other sizes than their nodes"),
    "no trees": ({"sizes": []}, "other sizes than their nodes"),
}


def nodes(**changes: list[Any]) -> Nodes:
    given = {"sizes": [5], **TREE, **changes}
    kinds = {"value": np.float32}
    return Nodes.of({name: np.array(value, kinds.get(name, np.uint8)) for name, value in given.items()}, 3)


@pytest.mark.parametrize("name", list(WALKS))
def test_trees_that_lead_astray_are_refused(name: str) -> None:
    nodes()
    change, told = WALKS[name]
    with pytest.raises(ValueError, match=told):
        nodes(**change)


def test_trees_are_not_deeper_than_a_walk_may_be_long() -> None:
    def chain(depth: int) -> Nodes:
        inner = np.arange(2 * depth + 1) % 2 == 0
        inner[-1] = False
        own = np.arange(len(inner)).astype(np.uint16)
        given = {"left": np.where(inner, own + 1, 0), "right": np.where(inner, own + 2, 0), "feature": 0 * own}
        found = {name: value.astype(np.uint16) for name, value in given.items()}
        return Nodes.of({**found, "sizes": own[-1:] + 1, "value": np.zeros(len(own), np.float32)}, 1)

    chain(grown.DEEPEST)
    with pytest.raises(ValueError, match="deeper than 1000"):
        chain(grown.DEEPEST + 1)


@given(st.floats(-(2.0**100), 2.0**100), st.floats(-(2.0**100), 2.0**100, width=32))
def test_rows_fall_on_the_same_side_in_single_precision(threshold: float, at: float) -> None:
    single = grown._single(np.array([threshold]))
    assert single.dtype == np.float32
    for number in (np.float32(at), single[0], np.nextafter(single[0], np.float32(np.inf))):
        assert (number <= single[0]) == (float(number) <= threshold)


def test_shares_are_added_in_parts_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = rows(5)
    forest = RandomForestClassifier(7, random_state=0).fit(X, y)
    monkeypatch.setattr(grown, "AT_ONCE", 100)
    assert np.array_equal(Grown.of(forest, 5).predict_proba(X), forest.predict_proba(X))
