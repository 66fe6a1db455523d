"""Latents with their labels, split by split: arrays that are mapped, not read.

<folder>/table.json           classes, splits, and what made it
<folder>/train.latent.npy     [N,D]
<folder>/train.label.npy      [N], places in classes
<folder>/train.clips.json     which clip each row is, where that is known
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from distill.errors import UserError
from distill.files import publish, publish_text
from distill.probing.base import Array, chunks

NEEDED, OPTIONAL = ("train", "test"), ("val",)
VERSION = 1


@dataclass(frozen=True)
class Split:
    latent: Array  # float32 or float64 [N,D]
    label: Array  # int64 [N], places in the table's classes
    clips: Sequence[str] = ()  # ids, in order


@dataclass(frozen=True)
class LatentTable:
    classes: Sequence[str]
    splits: Mapping[str, Split]
    about: Mapping[str, Any] = field(default_factory=dict)  # what made it

    @property
    def width(self) -> int:
        return int(self.splits["train"].latent.shape[1])

    def save(self, folder: Path) -> None:
        for name, split in self.splits.items():
            for kind, rows in (("latent", split.latent), ("label", split.label)):
                publish(folder / f"{name}.{kind}.npy", lambda part, rows=rows: _save(part, rows))  # type: ignore[misc]
            publish_text(folder / f"{name}.clips.json", json.dumps(list(split.clips)))
        head = {"version": VERSION, "classes": list(self.classes), "splits": list(self.splits), "about": self.about}
        publish_text(folder / "table.json", json.dumps(head, indent=1))  # last: it says that all is there

    @staticmethod
    def open(folder: Path) -> LatentTable:
        try:
            head = json.loads((folder / "table.json").read_text(encoding="utf-8"))
            splits = {name: _split(folder, name) for name in head["splits"]}
        except (ValueError, KeyError, TypeError, EOFError) as error:
            raise UserError(f"{folder} is no table of latents that can be read ({error}); encode again") from error
        return LatentTable(head["classes"], splits, head["about"])


def _split(folder: Path, name: str) -> Split:
    latent = np.load(folder / f"{name}.latent.npy", mmap_mode="r", allow_pickle=False)
    label = np.load(folder / f"{name}.label.npy", allow_pickle=False)
    clips = json.loads((folder / f"{name}.clips.json").read_text(encoding="utf-8"))
    if len(latent) != len(label) or len(clips) not in (0, len(label)):
        raise ValueError(f"{name} has {len(latent)} latents, {len(label)} labels and {len(clips)} clips")
    return Split(latent, label, clips)


def _save(path: Path, rows: Array) -> None:
    with path.open("wb") as stream:
        np.save(stream, rows, allow_pickle=False)


def from_npz(path: Path) -> LatentTable:
    """X_train, y_train, X_test, y_test, and X_val, y_val if there is a validation split."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{path} is no .npz file of plain arrays ({error})") from error
    given = {
        split: (arrays.get(f"X_{split}"), arrays.get(f"y_{split}"))
        for split in (*NEEDED, *OPTIONAL)
        if split in NEEDED or f"X_{split}" in arrays or f"y_{split}" in arrays
    }
    return from_arrays(given, str(path))


def from_arrays(given: Mapping[str, tuple[Array | None, Array | None]], origin: str) -> LatentTable:
    """Latents and labels of each split; labels may be names or numbers, and -1, nan or an empty name is none."""
    found = {split: _pair(*pair, split, origin) for split, pair in given.items()}
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
    kept = latent if latent.dtype in (np.float32, np.float64) else latent.astype(np.float32)
    return kept, _names(label, f"{origin}: y_{split}")


def _names(label: Array, where: str) -> Array:
    missing = np.zeros(len(label), bool)
    if label.dtype.kind in "iu":
        missing = label < 0
    elif label.dtype.kind == "f":
        missing = ~np.isfinite(label)
        if (label[~missing] != np.round(label[~missing])).any():
            raise UserError(f"{where} are labels, so whole numbers or names, not {label[~missing][0]}")
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


def _shape(rows: Array) -> str:
    return f"[{','.join(map(str, rows.shape))}]"


def check(table: LatentTable, folds: int, origin: str) -> None:
    """Whether classifiers can be fitted and judged; `folds` 0 stands for a validation split."""
    for name, split in table.splits.items():
        if not len(split.label):
            raise UserError(f"{origin}: the split {name} is empty")
        if split.latent.shape[1] != table.width:
            raise UserError(
                f"{origin}: latents of {name} have {split.latent.shape[1]} numbers, those of train {table.width}"
            )
        for rows in chunks(len(split.latent)):
            if not (finite := np.isfinite(split.latent[rows]).all(1)).all():
                at = rows.start + int(np.flatnonzero(~finite)[0])
                raise UserError(f"{origin}: row {at} of {name}{_clip(split, at)} has numbers that are not finite")
    count = np.bincount(table.splits["train"].label, minlength=len(table.classes))
    there = np.flatnonzero(count)
    if len(there) < 2:
        raise UserError(
            f"{origin}: all rows of train are of one class, {table.classes[there[0]]}; a probe tells classes apart"
        )
    fewest = int(there[count[there].argmin()])
    if count[fewest] < folds:
        few = int((count[there] < folds).sum())
        raise UserError(
            f"{origin}: class {table.classes[fewest]} has {count[fewest]} rows in train, fewer than the {folds} folds"
            + (f" (so have {few - 1} other classes)" if few > 1 else "")
            + f"; say folds={max(2, count[fewest])}" * bool(count[fewest] > 1)
            + ", or folds=0 for the validation split"
        )


def _clip(split: Split, at: int) -> str:
    return f" ({split.clips[at]})" if split.clips else ""
