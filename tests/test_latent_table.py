"""Latents from outside: what is taken, and what is refused in one line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distill.errors import UserError
from distill.probing.table import LatentTable, Split, check, from_npz, from_parquet, read_table

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
    test = replace(given.splits["test"], unanswered=np.array([2, 0, 2]))
    splits = {**given.splits, "train": train, "test": test}
    LatentTable(given.classes, splits, {"run": "a"}).save(tmp_path / "table")
    found = LatentTable.open(tmp_path / "table")
    assert (found.classes, found.about, found.width) == (["0", "1", "2"], {"run": "a"}, 5)
    assert found.splits["train"].clips == clips
    assert [split.unanswered.tolist() for split in found.splits.values()] == [[], [2, 0, 2], []]
    check(found, 10, "table")
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


def test_a_class_of_one_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"class 2 has 1 rows in train, fewer than the 10 folds; leave it out, or say"):
        table(tmp_path, y_train=np.r_[np.arange(59) % 2, 2])


def test_the_test_split_may_have_classes_that_train_has_not(tmp_path: Path) -> None:
    found = table(tmp_path, y_test=np.arange(30) % 5)
    assert found.classes == ["0", "1", "2", "3", "4"]


MADE_UP: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"label": np.full(30, 3)}, "row 0 of test has no label among the 3 classes"),
    "none": ({"label": np.arange(30) % 4 - 1}, "row 0 of test has no label among the 3 classes"),
    "unanswered": ({"unanswered": np.array([0, -1])}, "unreadable clip 1 of test has no label among the 3 classes"),
}


@pytest.mark.parametrize("name", list(MADE_UP))
def test_places_that_are_no_classes_are_refused(name: str, tmp_path: Path) -> None:
    change, told = MADE_UP[name]
    given = table(tmp_path)
    odd = replace(given, splits={**given.splits, "test": replace(given.splits["test"], **change)})
    with pytest.raises(UserError, match=told):
        check(odd, 10, "table")


def test_a_table_without_a_needed_split_is_refused(tmp_path: Path) -> None:
    given = table(tmp_path)
    with pytest.raises(UserError, match="table has no split train; it needs train and test, and may have val"):
        check(replace(given, splits={"test": given.splits["test"]}), 10, "table")


# ---------------------------------------------------------------- parquet


def columns(**changes: Any) -> dict[str, Any]:
    """A sound file's columns, with changes; None removes."""
    draw = np.random.default_rng(1)
    found: dict[str, Any] = {
        "split": ["train", "test", "train", "val"] * 30,
        "label": ["walk", "run", "jump"] * 40,
        "latent": pa.FixedSizeListArray.from_arrays(draw.normal(size=120 * 5).astype(np.float32), 5),
        "clip": [f"clip {row}" for row in range(120)],
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def parquet(folder: Path, group: int = 17, **changes: Any) -> Path:
    pq.write_table(pa.table(columns(**changes)), folder / "latents.parquet", row_group_size=group)
    return folder / "latents.parquet"


KINDS = {
    "fixed float32": (pa.list_(pa.float32(), 5), np.float32),
    "float32": (pa.list_(pa.float32()), np.float32),
    "large float64": (pa.large_list(pa.float64()), np.float64),
    "float16": (pa.list_(pa.float16(), 5), np.float32),
    "int8": (pa.list_(pa.int8()), np.float32),
}


@pytest.mark.parametrize("group", [7, 120, 10_000])
@pytest.mark.parametrize("kind", list(KINDS))
def test_rows_of_parquet_are_found_again(kind: str, group: int, tmp_path: Path) -> None:
    arrow, numbers = KINDS[kind]
    rows = np.random.default_rng(2).integers(-99, 99, (120, 5)).astype(np.float16)
    given = columns(latent=pa.array(list(rows.astype(arrow.value_type.to_pandas_dtype())), arrow))
    found = from_parquet(parquet(tmp_path, group, latent=given["latent"]))
    check(found, 2, "latents.parquet")
    assert (found.classes, list(found.splits)) == (["jump", "run", "walk"], ["train", "test", "val"])
    for name, split in found.splits.items():
        mine = np.flatnonzero(np.array(given["split"]) == name)
        assert split.latent.dtype == numbers
        assert np.array_equal(split.latent, rows[mine])
        assert [found.classes[place] for place in split.label] == [given["label"][row] for row in mine]
        assert split.clips == [given["clip"][row] for row in mine]


def test_parquet_may_have_numbers_for_labels_codes_for_names_and_no_clips(tmp_path: Path) -> None:
    splits = pa.array(["train", "test"] * 60).dictionary_encode()
    found = from_parquet(parquet(tmp_path, split=splits, label=np.array([10, 9, 2] * 40, np.int16), clip=None))
    assert (found.classes, list(found.splits)) == (["2", "9", "10"], ["train", "test"])
    assert found.splits["train"].label[:3].tolist() == [2, 0, 1]
    assert found.splits["test"].clips == ()


def with_(odd: Any, place: int, values: list[Any]) -> list[Any]:
    return [*values[:place], odd, *values[place + 1 :]]


LATENTS = columns()["latent"].to_pylist()
ODD: dict[str, tuple[dict[str, Any], str]] = {
    "no split": ({"split": None}, r"has no column split; it needs split, label and latent, and may have clip"),
    "no latent": ({"latent": None}, r"has no column latent"),
    "no label": ({"label": None}, r"has no column label"),
    "odd split": ({"split": with_("dev", 3, columns()["split"])}, r"row 3 is of the split 'dev'; known: train, val"),
    "null split": ({"split": with_(None, 3, columns()["split"])}, r"1 of 120 rows have no split, the first is row 3"),
    "no test": ({"split": ["train"] * 120}, r"has no row of the split test; it needs train and test"),
    "split of numbers": ({"split": np.zeros(120)}, r"split is a column of double; it should be one of text"),
    "null label": ({"label": with_(None, 50, columns()["label"])}, r"1 of 120 rows have no label, the first is row 50"),
    "empty label": ({"label": with_("", 5, columns()["label"])}, r"1 of 120 rows have no label, the first is row 5"),
    "label -1": ({"label": np.r_[np.arange(119), -1]}, r"1 of 120 rows have no label, the first is row 119"),
    "floats": ({"label": np.zeros(120)}, r"label is a column of double; it should be one of text or whole numbers"),
    "null clip": ({"clip": with_(None, 0, columns()["clip"])}, r"1 of 120 rows have no clip, the first is row 0"),
    "null latent": ({"latent": with_(None, 70, LATENTS)}, r"row 70 has no latent"),
    "null number": ({"latent": with_([1.0, None, 0, 0, 0], 71, LATENTS)}, r"row 71 has a latent with an empty place"),
    "ragged": ({"latent": with_([1.0], 40, LATENTS)}, r"row 40 has a latent of 1 numbers, and the first row one of 5"),
    "ragged first": (
        {"latent": with_([1.0], 0, LATENTS)},
        r"row 1 has a latent of 5 numbers, and the first row one of 1",
    ),
    "of nothing": ({"latent": [[]] * 119 + [[1.0]]}, r"row 0 has a latent of 0 numbers"),
    "numbers": ({"latent": np.zeros(120)}, r"latent is a column of double; each row should be a list of numbers"),
    "texts": ({"latent": [["a"]] * 120}, r"latent is a column of list<.*string>; each row should be a list"),
    "nan": ({"latent": with_([1.0, np.nan, 0, 0, 0], 2, LATENTS)}, r"row 1 of train \(clip 2\) has numbers that are"),
    "few": ({"label": with_("sit", 0, columns()["label"])}, r"class sit has 1 rows in train, fewer than the 2 folds"),
}


@pytest.mark.parametrize("name", list(ODD))
def test_parquet_that_cannot_be_judged_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    changes, told = ODD[name]
    path = parquet(tmp_path, **changes)
    with pytest.raises(UserError, match=told) as refusal:
        check(read_table(path), 2, str(path))
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).startswith(str(path))


def test_parquet_that_is_none_or_half(tmp_path: Path) -> None:
    path = parquet(tmp_path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1 nothing", whole[: len(whole) // 2], whole[:60] + bytes(400) + whole[460:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is no \.parquet file that can be read") as refusal:
            from_parquet(path)
        assert "\n" not in str(refusal.value)
    with pytest.raises(FileNotFoundError):
        from_parquet(tmp_path / "nope.parquet")


def test_a_table_is_read_by_what_its_name_says(tmp_path: Path) -> None:
    given = table(tmp_path)
    given.save(tmp_path / "table")
    parquet(tmp_path)
    assert read_table(tmp_path / "latents.npz").classes == given.classes
    assert read_table(tmp_path / "table").classes == given.classes
    assert read_table(tmp_path / "latents.parquet").classes == ["jump", "run", "walk"]
    (tmp_path / "latents.csv").write_text("")
    for name in ("latents.csv", "nowhere", ""):
        with pytest.raises(UserError, match=r"name an \.npz file, a \.parquet file or a folder with a table\.json"):
            read_table(tmp_path / name)


def test_a_table_of_another_version_is_refused(tmp_path: Path) -> None:
    table(tmp_path).save(tmp_path / "table")
    head = (tmp_path / "table" / "table.json").read_text()
    (tmp_path / "table" / "table.json").write_text(head.replace('"version": 2', '"version": 1'))
    with pytest.raises(UserError, match=r"it is of version 1, not 2\); encode again"):
        LatentTable.open(tmp_path / "table")


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    table(tmp_path).save(tmp_path / "table")
    (tmp_path / "table" / "test.label.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"is no table of latents that can be read .*; encode again"):
        LatentTable.open(tmp_path / "table")
