"""Latents from outside: what is taken, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill.errors import UserError
from distill.probing.table import LatentTable, Split, check, from_npz

DRAW = np.random.default_rng(0)


def arrays(**changes: Any) -> dict[str, Any]:
    """A sound file's content, with changes; None removes."""
    found: dict[str, Any] = {"y_train": np.arange(60) % 3, "y_test": np.arange(30) % 3, "y_val": np.arange(12) % 3}
    found |= {f"X_{name[2:]}": DRAW.normal(size=(len(label), 5)) for name, label in found.items()}
    return {name: value for name, value in (found | changes).items() if value is not None}


def table(path: Path, **changes: Any) -> LatentTable:
    np.savez(path / "latents.npz", **arrays(**changes))
    found = from_npz(path / "latents.npz")
    check(found, 10, "latents.npz")
    return found


def test_what_is_saved_is_opened_again_and_mapped(tmp_path: Path) -> None:
    given = table(tmp_path)
    clips = [f"clip {row}" for row in range(60)]
    train = Split(given.splits["train"].latent, given.splits["train"].label, clips)
    LatentTable(given.classes, {**given.splits, "train": train}, {"run": "a"}).save(tmp_path / "table")
    found = LatentTable.open(tmp_path / "table")
    assert (found.classes, found.about, found.width) == (["0", "1", "2"], {"run": "a"}, 5)
    assert found.splits["train"].clips == clips
    for name, split in given.splits.items():
        assert isinstance(found.splits[name].latent, np.memmap)
        assert np.array_equal(found.splits[name].latent, split.latent)
        assert np.array_equal(found.splits[name].label, split.label)


def test_labels_may_be_names(tmp_path: Path) -> None:
    found = table(
        tmp_path,
        y_train=np.array(["walk", "run", "jump"])[np.arange(60) % 3],
        y_test=np.full(30, "run"),
        y_val=None,
        X_val=None,
    )
    assert found.classes == ["jump", "run", "walk"]
    assert found.splits["test"].label.tolist() == [1] * 30
    assert list(found.splits) == ["train", "test"]


def test_labels_may_be_whole_numbers_in_floats(tmp_path: Path) -> None:
    assert table(tmp_path, y_train=(np.arange(60) % 3).astype(np.float32)).classes == ["0", "1", "2"]


NAN = np.where(np.arange(300).reshape(60, 5) == 17 * 5 + 2, np.nan, 1.0)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nan": ({"X_train": NAN}, r"row 17 of train has numbers that are not finite"),
    "few": (
        {"y_train": np.r_[np.zeros(30, int), np.ones(26, int), np.full(4, 2)]},
        r"class 2 has 4 rows in train, fewer than the 10 folds; say folds=4, or folds=0",
    ),
    "one class": (
        {"y_train": np.zeros(60, int), "y_val": np.zeros(12, int), "y_test": np.zeros(30, int)},
        r"all rows of train are of one class, 0",
    ),
    "empty": ({"X_test": np.zeros((0, 5)), "y_test": np.zeros(0, int)}, r"the split test is empty"),
    "width": ({"X_test": np.zeros((30, 4))}, r"latents of test have 4 numbers, those of train 5"),
    "no labels": ({"y_test": None}, r"has no y_test \(labels\); it needs X_train, y_train, X_test, y_test"),
    "no latents": ({"X_train": None}, r"has no X_train \(latents\)"),
    "some labels": ({"y_train": np.arange(60) % 4 - 1}, r"y_train: 15 of 60 rows have no label, the first is row 0"),
    "nan labels": ({"y_test": np.r_[np.nan, np.zeros(29)]}, r"y_test: 1 of 30 rows have no label"),
    "no name": ({"y_test": np.r_[[""], np.full(29, "a")]}, r"y_test: 1 of 30 rows have no label"),
    "half a label": ({"y_test": np.full(30, 0.5)}, r"y_test are labels, so whole numbers or names, not 0\.5"),
    "odd labels": ({"y_test": np.full(30, 1j)}, r"y_test are labels, so whole numbers or names, not complex128"),
    "odd latents": ({"X_test": np.full((30, 5), "a")}, r"X_test are numbers, not"),
    "lengths": ({"X_test": np.zeros((29, 5))}, r"X_test is \[29,5\] and y_test \[30\]; they are \[N,D\] and \[N\]"),
    "pickle": ({"y_test": np.array([{}] * 30, object)}, r"is no \.npz file of plain arrays"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_judged_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    changes, told = REFUSED[name]
    with pytest.raises(UserError, match=told) as refusal:
        table(tmp_path, **changes)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "latents.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match=r"is no \.npz file"):
        from_npz(tmp_path / "latents.npz")
    with pytest.raises(FileNotFoundError):
        from_npz(tmp_path / "nope.npz")


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    table(tmp_path).save(tmp_path / "table")
    (tmp_path / "table" / "test.label.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"is no table of latents that can be read .*; encode again"):
        LatentTable.open(tmp_path / "table")
