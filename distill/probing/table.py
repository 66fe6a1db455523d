"""Latents with their labels, split by split: arrays that are mapped, not read.

<folder>/table.json           classes, splits, and what made it
<folder>/train.latent.npy     [N,D]
<folder>/train.label.npy      [N], places in classes
<folder>/train.unanswered.npy [M], places in classes of the split's clips that could not be read
<folder>/train.clips.json     which clip each row is, where that is known
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile
from zlib import error as DamagedStream

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from xxhash import xxh3_128

from distill.errors import UserError
from distill.files import publish, publish_text, sweep
from distill.probing.base import ROWS, Array, chunks

NEEDED, OPTIONAL = ("train", "test"), ("val",)
LARGEST = 1e15  # squares of larger numbers do not add up in float32
EXACT = 1 << 53  # above it a floating-point number stands for several whole ones
VERSION = 2


@dataclass(frozen=True)
class Split:
    latent: Array  # float32 or float64 [N,D]
    label: Array  # int64 [N], places in the table's classes
    clips: Sequence[str] = ()  # ids, in order
    unanswered: Array = field(default_factory=lambda: np.zeros(0, np.int64))  # labels of clips that cannot be read


@dataclass(frozen=True)
class LatentTable:
    classes: Sequence[str]
    splits: Mapping[str, Split]
    about: Mapping[str, Any] = field(default_factory=dict)  # what made it

    @property
    def width(self) -> int:
        return int(self.splits["train"].latent.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """Of every latent and label."""
        digest = xxh3_128(json.dumps(list(self.classes)).encode())
        for name, split in sorted(self.splits.items()):
            for rows in (split.latent, split.label, split.unanswered):
                digest.update(f"{name} {rows.dtype} {rows.shape}".encode())
                digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()

    def labelled(self, share: float, seed: int) -> LatentTable:
        """With this share of each class's training rows, drawn."""
        train = self.splits["train"]
        kept = np.round(share * np.bincount(train.label))[train.label]
        rows = np.flatnonzero(rank_in_class(train.label, seed) < kept)
        if len(rows) == len(train.label):
            return self
        clips = [train.clips[row] for row in rows.tolist()] if train.clips else ()
        fewer = Split(train.latent[rows], train.label[rows], clips, train.unanswered)
        return replace(self, splits={**self.splits, "train": fewer}, about={**self.about, "labelled": share})

    def save(self, folder: Path) -> None:
        for name, split in self.splits.items():
            for kind, rows in (("latent", split.latent), ("label", split.label), ("unanswered", split.unanswered)):
                _publish_array(folder / f"{name}.{kind}.npy", rows)
            publish_text(folder / f"{name}.clips.json", json.dumps(list(split.clips)))
        head = {"version": VERSION, "classes": list(self.classes), "splits": list(self.splits), "about": self.about}
        publish_text(folder / "table.json", json.dumps(head, indent=1))  # last: it says that all is there
        sweep(folder)

    @staticmethod
    def open(folder: Path) -> LatentTable:
        try:
            head = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            if head["version"] != VERSION:
                raise ValueError(f"it is of version {head['version']}, not {VERSION}")
            classes, about = head["classes"], head["about"]
            if not isinstance(about, dict) or not isinstance(classes, list):
                raise TypeError("classes are a list of names, about a table")
            splits = {name: _split(folder, name) for name in head["splits"]}
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"{folder} is no table of latents that can be read ({error}); encode again") from error
        return LatentTable(classes, splits, about)


def _split(folder: Path, name: str) -> Split:
    latent = np.load(folder / f"{name}.latent.npy", mmap_mode="c", allow_pickle=False)
    label = np.load(folder / f"{name}.label.npy", allow_pickle=False)
    unanswered = np.load(folder / f"{name}.unanswered.npy", allow_pickle=False)
    clips = json.loads((folder / f"{name}.clips.json").read_text(encoding="utf-8"))
    if latent.ndim != 2 or latent.dtype.kind != "f":
        raise ValueError(f"{name} is no rows of numbers")
    if any(part.ndim != 1 or part.dtype.kind != "i" for part in (label, unanswered)):
        raise ValueError(f"labels of {name} are no row of whole numbers")
    if len(latent) != len(label) or len(clips) not in (0, len(label)):
        raise ValueError(f"{name} has {len(latent)} latents, {len(label)} labels and {len(clips)} clips")
    return Split(_as_floats(latent), label, clips, unanswered)


def rank_in_class(label: Array, seed: int) -> Array:
    """[N] a row's place among those of its class, drawn: every n-th of them keeps the shares of classes."""
    draw = np.random.default_rng(seed).permutation(len(label))
    order = draw[np.argsort(label[draw], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(np.bincount(label))[:-1]])
    place = np.empty(len(label), np.int64)
    place[order] = np.arange(len(label)) - starts[label[order]]
    return place


def _publish_array(path: Path, rows: Array) -> None:
    def write(part: Path) -> None:
        with part.open("wb") as stream:  # np.save would add an ending to a bare name
            np.save(stream, rows, allow_pickle=False)

    publish(path, write)


def read_table(path: Path) -> LatentTable:
    if path.suffix in (".npz", ".parquet"):
        return from_npz(path) if path.suffix == ".npz" else from_parquet(path)
    if (path / "table.json").is_file():
        return LatentTable.open(path)
    raise UserError(f"{path} is no table of latents: name an .npz file, a .parquet file or a folder with a table.json")


def from_npz(path: Path) -> LatentTable:
    """X_train, y_train, X_test, y_test, and X_val, y_val if there is a validation split."""
    arrays: dict[str, Array] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for name in (f"{kind}_{split}" for split in (*NEEDED, *OPTIONAL) for kind in "Xy"):
                if name in file.files:
                    arrays[name] = file[name]
    except FileNotFoundError:
        raise
    except (ValueError, TypeError, RuntimeError, OSError, EOFError, MemoryError, BadZipFile, DamagedStream) as error:
        raise UserError(f"{path} is no .npz file of plain arrays that fit into memory ({error})") from error
    for name, rows in arrays.items():
        if not isinstance(rows, np.ndarray):
            raise UserError(f"{path}: {name} is no array of numpy's")
    given = {
        split: (arrays.get(f"X_{split}"), arrays.get(f"y_{split}"))
        for split in (*NEEDED, *OPTIONAL)
        if split in NEEDED or f"X_{split}" in arrays or f"y_{split}" in arrays
    }
    return from_arrays(given, str(path))


def from_arrays(given: Mapping[str, tuple[Array | None, Array | None]], origin: str) -> LatentTable:
    """Latents and labels of each split; labels may be names or numbers, and -1, nan or an empty name is none."""
    return _encoded({split: _pair(*pair, split, origin) for split, pair in given.items()}, origin)


def _encoded(found: Mapping[str, tuple[Array, Array]], origin: str) -> LatentTable:
    """From labels as they are given to places in classes."""
    kinds = {label.dtype.kind: f"those of {split} are {_called(label)}" for split, (_, label) in found.items()}
    if len(kinds) > 1:
        raise UserError(f"{origin}: labels are all names, or all whole numbers; {' and '.join(kinds.values())}")
    classes: list[Any] = np.unique(np.concatenate([label for _, label in found.values()])).tolist()
    place = {name: at for at, name in enumerate(classes)}
    splits = {
        split: Split(latent, np.array([place[name] for name in label.tolist()], np.int64))
        for split, (latent, label) in found.items()
    }
    return LatentTable([str(name) for name in classes], splits, {"file": origin})


def _pair(latent: Array | None, label: Array | None, split: str, origin: str) -> tuple[Array, Array]:
    if latent is None or label is None:
        what = f"X_{split} (latents)" if latent is None else f"y_{split} (labels)"
        raise UserError(f"{origin} has no {what}; it needs X_train, y_train, X_test, y_test, and may have X_val, y_val")
    if latent.ndim != 2 or label.ndim != 1 or len(latent) != len(label):
        shapes = f"X_{split} is {_shape(latent)} and y_{split} {_shape(label)}"
        raise UserError(f"{origin}: {shapes}; they are [N,D] and [N]")
    if latent.dtype.kind not in "fiu":
        raise UserError(f"{origin}: X_{split} are numbers, not {latent.dtype}")
    return _as_floats(latent), _names(label, f"{origin}: y_{split}")


def _called(label: Array) -> str:
    return "names" if label.dtype.kind == "U" else "numbers"


def _names(label: Array, where: str) -> Array:
    """Labels as text or int64."""
    if label.dtype.kind in "iuf":
        missing = ~np.isfinite(label) | (label < 0)
        odd = label[~missing & ((label != np.round(label)) | (label > EXACT))]
        if len(odd):
            raise UserError(f"{where} are labels, so whole numbers or names, not {odd[0]}")
        label = np.where(missing, -1, label).astype(np.int64)
    elif label.dtype.kind == "U":
        missing = label == ""
    else:
        raise UserError(f"{where} are labels, so whole numbers or names, not {label.dtype}")
    if missing.any():
        rows = np.flatnonzero(missing)
        raise UserError(
            f"{where}: {len(rows)} of {len(label)} rows have no label, the first is row {rows[0]}; leave them out"
        )
    return label


def from_parquet(path: Path) -> LatentTable:
    """Columns split (train, val or test), label (a name or a whole number), latent (a list of numbers), and clip (an
    id) if there is one."""
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # which would hold all of it
            split, label, clip = _small_columns(file, path)
            latents = _latents(file, split, path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path} is no .parquet file that can be read ({str(error).splitlines()[0]})") from error
    table = _encoded({name: (rows, label[split == name]) for name, rows in latents.items()}, str(path))
    if clip is None:
        return table
    named = {name: replace(rows, clips=clip[split == name].tolist()) for name, rows in table.splits.items()}
    return replace(table, splits=named)


def _small_columns(file: pq.ParquetFile, path: Path) -> tuple[Array, Array, Array | None]:
    """Split, label and clip of each row."""
    there = file.schema_arrow.names
    for name in ("split", "label", "latent"):
        if name not in there:
            raise UserError(f"{path} has no column {name}; it needs split, label and latent, and may have clip")
    split, clip = _column(file, "split", path), _column(file, "clip", path) if "clip" in there else None
    odd = np.flatnonzero(~np.isin(split, (*NEEDED, *OPTIONAL)))
    if len(odd):
        raise UserError(f"{path}: row {odd[0]} is of the split {str(split[odd[0]])!r}; known: train, val, test")
    for name in NEEDED:
        if name not in split:
            raise UserError(f"{path} has no row of the split {name}; it needs train and test, and may have val")
    return split, _names(_column(file, "label", path), f"{path}: values of label"), clip


def _column(file: pq.ParquetFile, name: str, path: Path) -> Array:
    """Of text or, of labels, whole numbers."""
    column = file.read([name]).column(0)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, whole = column.type, name == "label"
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not text and not (whole and pa.types.is_integer(kind)):
        told = "text or whole numbers" if whole else "text"
        raise UserError(f"{path}: {name} is a column of {kind}; it should be one of {told}")
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        count = f"{column.null_count} of {len(column)} rows"
        raise UserError(f"{path}: {count} have no {name}, the first is row {row}; leave them out")
    found: Array = column.to_numpy()
    return found.astype(str) if text else found


def _latents(file: pq.ParquetFile, split: Array, path: Path) -> dict[str, Array]:
    """Of each split that has rows; chunk by chunk into arrays of their final size."""
    found: dict[str, Array] = {}
    at, width = 0, 0
    filled = dict.fromkeys((name for name in (*NEEDED, *OPTIONAL) if name in split), 0)
    for batch in file.iter_batches(ROWS, columns=["latent"]):
        rows = _rows(batch.column(0), at, width, path)
        part, at, width = split[at : at + len(rows)], at + len(rows), rows.shape[1]
        for name, count in filled.items():
            if name not in found:
                found[name] = np.empty((int((split == name).sum()), width), rows.dtype)
            chosen = rows[part == name]
            found[name][count : count + len(chosen)] = chosen
            filled[name] += len(chosen)
    return found


def _rows(column: Any, first: int, width: int, path: Path) -> Array:
    """Latents [n,D] from the row `first` on, of this width if it is above 0."""
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (lists or pa.types.is_fixed_size_list(kind)) or not _are_numbers(kind.value_type):
        raise UserError(f"{path}: latent is a column of {kind}; each row should be a list of numbers")
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null())[0])
        raise UserError(f"{path}: row {row} has no latent; leave it out")
    lengths = np.diff(column.offsets) if lists else np.full(len(column), kind.list_size)
    width = width or int(lengths[0])
    odd = np.flatnonzero((lengths != width) | (lengths == 0))
    if len(odd):
        told = f"row {first + odd[0]} has a latent of {lengths[odd[0]]} numbers, and the first row one of {width}"
        raise UserError(f"{path}: {told}")
    values = column.flatten()
    if values.null_count:
        row = first + int(np.flatnonzero(values.is_null())[0]) // width
        raise UserError(f"{path}: row {row} has a latent with an empty place; leave it out")
    return _as_floats(values.to_numpy().reshape(-1, width))


def _are_numbers(kind: Any) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _as_floats(latent: Array) -> Array:
    return latent if latent.dtype in (np.float32, np.float64) else latent.astype(np.float32)


def _shape(rows: Array) -> str:
    return f"[{','.join(map(str, rows.shape))}]"


def check(table: LatentTable, folds: int, origin: str) -> None:
    """Whether classifiers can be fitted and judged; `folds` 0 stands for a hold-out."""
    _check_classes(table.classes, origin)
    for name in NEEDED:
        if name not in table.splits:
            raise UserError(f"{origin} has no split {name}; it needs train and test, and may have val")
    for name, split in table.splits.items():
        _check_labels(table, name, origin)
        if not split.latent.shape[1]:
            raise UserError(f"{origin}: latents of {name} are empty: each row has 0 numbers")
        if split.latent.shape[1] != table.width:
            raise UserError(
                f"{origin}: latents of {name} have {split.latent.shape[1]} numbers, those of train {table.width}"
            )
        _check_numbers(split, name, origin)
    count = np.bincount(table.splits["train"].label, minlength=len(table.classes))
    there = np.flatnonzero(count)
    if len(there) < 2:
        raise UserError(
            f"{origin}: all rows of train are of one class, {table.classes[there[0]]}; a probe tells classes apart"
        )
    fewest = int(there[count[there].argmin()])
    if not folds and "val" not in table.splits and count[fewest] < 2:
        raise UserError(
            f"{origin}: class {table.classes[fewest]} has one row in train, and without a validation split a class "
            "needs two: one to learn from, one to choose by; leave it out"
        )
    if count[fewest] < folds:
        few = int((count[there] < folds).sum())
        raise UserError(
            f"{origin}: class {table.classes[fewest]} has {count[fewest]} rows in train, fewer than the {folds} folds"
            + (f" (so have {few - 1} other classes)" if few > 1 else "")
            + ("; leave it out, or say " if count[fewest] == 1 else f"; say folds={count[fewest]}, or ")
            + "folds=0 for a hold-out"
        )


def _check_classes(classes: Sequence[str], origin: str) -> None:
    for name in classes:
        if not isinstance(name, str):
            raise UserError(f"{origin}: the name of a class is {name!r}; it should be text")
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{origin}: the name of a class, {name!r}, is not text that can be written") from error
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if list(classes).count(name) > 1)
        raise UserError(f"{origin}: two classes are called {twice!r}")


def _check_numbers(split: Split, name: str, origin: str) -> None:
    for rows in chunks(len(split.latent)):
        largest = np.abs(split.latent[rows]).max(1)
        odd = np.flatnonzero(~(largest <= LARGEST))
        if len(odd):
            at = rows.start + int(odd[0])
            where = f"{origin}: row {at} of {name}{_clip(split, at)} has"
            if not np.isfinite(largest[odd[0]]):
                raise UserError(f"{where} numbers that are not finite")
            raise UserError(f"{where} a number of {largest[odd[0]]:.2g}; divide latents that exceed {LARGEST:.0g}")


def _check_labels(table: LatentTable, name: str, origin: str) -> None:
    split = table.splits[name]
    if not len(split.label):
        raise UserError(f"{origin}: the split {name} is empty")
    for labels, what in ((split.label, "row"), (split.unanswered, "unreadable clip")):
        odd = np.flatnonzero((labels < 0) | (labels >= len(table.classes)))
        if len(odd):
            raise UserError(f"{origin}: {what} {odd[0]} of {name} has no label among the {len(table.classes)} classes")


def _clip(split: Split, at: int) -> str:
    return f" ({split.clips[at]})" if split.clips else ""
