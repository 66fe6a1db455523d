"""Weights from files of every origin, opened without running code; class names by file and by match."""

from __future__ import annotations

import argparse
import json
import random
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from distill.labels import columns, read_labels
from distill.weights import digest_file, digest_weights, read_weights

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2), "steps": torch.tensor(3)}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"model": WEIGHTS, "optimizer": {"state": {}}, "epoch": 3},
        {"state_dict": WEIGHTS, "arch": "x"},
        {"model_state": WEIGHTS},
        {"state_dict": {}, "model": WEIGHTS},
        prefixed("module."),
        {"state_dict": prefixed("module.model.")},
        {"model": prefixed("_orig_mod.")},
        {"state_dict_ema": WEIGHTS, "state_dict": prefixed("older.")},
        {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1, name="x")},
    ],
)
def test_weights_come_out_of_their_wrappings(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    assert same(read_weights(tmp_path / "weights.pth"))
    assert digest_file(tmp_path / "weights.pth") == digest_weights(WEIGHTS)


def test_safetensors_and_torchscript(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    assert same(read_weights(tmp_path / "weights.safetensors"))
    network = nn.Linear(3, 2)
    torch.jit.trace(network, torch.zeros(1, 3)).save(tmp_path / "archive.pt")
    found = read_weights(tmp_path / "archive.pt")
    assert torch.equal(found["weight"], network.weight)


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    mixed = {"model.a": torch.zeros(1), "b": torch.zeros(1)}
    torch.save(mixed, tmp_path / "weights.pth")
    assert read_weights(tmp_path / "weights.pth").keys() == mixed.keys()


def test_settings_of_trainers_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """yacs keeps a subclass of dict in a checkpoint; neither yacs nor its class is needed to read the weights."""
    module = types.ModuleType("yacs.config")
    node = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    module.CfgNode = node  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    settings = node(lr=1e-3, data=node(root="x"))
    torch.save({"model": WEIGHTS, "config": settings}, tmp_path / "weights.pth")
    monkeypatch.undo()
    assert same(read_weights(tmp_path / "weights.pth"))


class Bomb:
    def __reduce__(self) -> Any:
        return (exec, ("open('exploded', 'w').close()",))


def test_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": WEIGHTS, "extra": Bomb()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights.pth wants to run code when it is opened \(.*exec\)") as caught:
        read_weights(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
def test_a_file_that_is_no_weights_is_one_line(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"weights.{ending}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def refusal(path: Path) -> ValueError | None:
    try:
        read_weights(path)
    except ValueError as error:
        return error
    return None


@pytest.mark.parametrize(
    ("legacy", "cut", "among"),
    [
        (True, False, {UnpicklingError, UnicodeDecodeError, AssertionError}),
        (True, True, {UnpicklingError, EOFError, IndexError}),
        (False, False, {UnpicklingError, UnicodeDecodeError}),
        (False, True, {RuntimeError}),
    ],
)
def test_a_checkpoint_that_is_damaged_is_one_line_without_torch_s_advice(
    tmp_path: Path, legacy: bool, cut: bool, among: set[type[Exception]]
) -> None:
    """`among` is what torch raised for some of the damages."""
    path, draw = tmp_path / "weights.pt", random.Random(3)
    torch.save({"model": WEIGHTS}, path, _use_new_zipfile_serialization=not legacy)
    whole, kinds = path.read_bytes(), set[type]()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(600)] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(len(whole))] if cut else damaged)
        error = refusal(path)
        if error:
            assert str(error).startswith(str(path))
            assert "\n" not in str(error)
            assert "weights_only" not in str(error)
        kinds.add(type(error and error.__cause__))
    assert kinds >= among


def test_a_damaged_torchscript_archive_is_one_line(tmp_path: Path) -> None:
    path, draw = tmp_path / "archive.pt", random.Random(1)
    torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)).save(path)
    whole, kinds = path.read_bytes(), set[type]()
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        error = refusal(path)
        if error and "TorchScript" in str(error):
            assert str(error) == f"{path} is not a whole TorchScript archive"
            kinds.add(type(error.__cause__))
    assert kinds > {RuntimeError}


def test_a_text_is_no_checkpoint_and_no_more_is_said(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# A title\n\nSome text.\n")
    with pytest.raises(ValueError, match="README") as caught:
        read_weights(path)
    assert str(caught.value) == f"{path} is not a torch checkpoint"


@pytest.mark.filterwarnings("ignore")  # torch's, about what becomes of quantised and sparse tensors
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2, 3, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    ],
    ids=["meta", "coo", "csr", "quantised"],
)
def test_tensors_without_plain_numbers_are_refused_by_name(tmp_path: Path, make: Callable[[], Any]) -> None:
    path = tmp_path / "weights.pt"
    torch.save({**WEIGHTS, "a.odd": make()}, path)
    with pytest.raises(ValueError, match=r"weights.pt: a.odd is no plain table of numbers") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_file_that_is_cut_short_is_one_line(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(WEIGHTS, path)
    else:
        save_file(WEIGHTS, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=str(path)) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_said_with_where_to_get_it(tmp_path: Path) -> None:
    for read in (read_weights, digest_file):
        with pytest.raises(ValueError, match=r"weights.pth is not there; get it from the moon"):
            read(tmp_path / "weights.pth", "get it from the moon")
    with pytest.raises(ValueError, match="is a folder"):
        read_weights(tmp_path)
    torch.save({"epoch": 3, "best": 0.5}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"holds no named tensors \(it has keys epoch, best\)"):
        read_weights(tmp_path / "other.pth")


@given(st.sampled_from(sorted(WEIGHTS)), st.integers(0, 5))
def test_a_digest_follows_every_number(name: str, place: int) -> None:
    changed = {key: value.clone() for key, value in WEIGHTS.items()}
    flat = changed[name].view(-1)
    flat[place % len(flat)] += 1
    assert digest_weights(changed) != digest_weights(WEIGHTS)


def test_a_digest_follows_names_types_and_shapes_but_not_order() -> None:
    first = digest_weights(WEIGHTS)
    assert digest_weights(dict(reversed(WEIGHTS.items()))) == first
    assert digest_weights({**WEIGHTS, "a.weight": WEIGHTS["a.weight"].view(3, 2)}) != first
    assert digest_weights({**WEIGHTS, "a.weight": WEIGHTS["a.weight"].half()}) != first
    assert digest_weights(prefixed("x.")) != first
    assert digest_weights({**WEIGHTS, "empty": torch.empty(0)}) != first


# ---------------------------------------------------------------- class names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "archery\n\n playing guitar \nzumba\n"),
        ("names.json", json.dumps(["archery", "playing guitar", "zumba"])),
        ("names.json", json.dumps({"10": "zumba", "0": "archery", "2": "playing guitar"})),
    ],
)
def test_labels_are_read_in_their_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name) == ["archery", "playing guitar", "zumba"]


def test_labels_that_are_not_there_or_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not there; it should list the class names"):
        read_labels(tmp_path / "names.txt")
    (tmp_path / "names.json").write_text("{'archery'")
    with pytest.raises(ValueError, match="is not a list of class names"):
        read_labels(tmp_path / "names.json")


def test_classes_are_matched_by_name() -> None:
    theirs = ["Playing_Guitar", "archery", "skiing (not slalom)", "massaging person's head"]
    assert columns(theirs, ["archery", "playing guitar"]) == [1, 0]
    assert columns(theirs, ["Massaging persons head".replace("persons", "person s"), "skiing not slalom"]) == [3, 2]
    assert columns(["a b", "A-B"], ["A-B", "a b"]) == [1, 0]  # exact names first
    with pytest.raises(ValueError, match=r"does not know 1 of the data set's 1 classes: 'a  b'"):
        columns(["a b", "A-B"], ["a  b"])  # either would do
    with pytest.raises(ValueError, match=r"does not know 12 of .* 12 classes: 'x0'.*'x9', \.\.\.; its own 2"):
        columns(["a", "b"], [f"x{i}" for i in range(12)])
    with pytest.raises(ValueError, match="has one class for two of the data set's: 'a b' and 'A_b'"):
        columns(["a b"], ["a b", "A_b"])
