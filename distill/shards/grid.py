"""Records over a grid of (clip, view), kept in plain safetensors files.

    <folder>/spec.json                       everything that the records depend on, in clear
    <folder>/clips/00000.safetensors         which clips there are: a list for each time that some joined
    <folder>/v003/s00007.safetensors         view 3 of the clips of shard 7
    <folder>/v003/s00007.maps.X.safetensors  the same records' map X
    <folder>/failed/v003.s00007.json         clips of this shard that could not be read

A shard's final name exists only when its whole content is on the disk, so the listing is the state of progress: no
index to go stale, nothing to repair after a kill. A view is one folder, so an epoch reads just the bytes it needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from distill.errors import UserError
from distill.files import publish, publish_text
from distill.randomness import number
from distill.shards import files
from distill.shards.column import Column
from distill.shards.folder import Folder
from distill.shards.roll import MOST, Roll, Segment

MOST_OPEN = 8192  # mapped files; a process may have 65,530 mappings
FAILED = "failed"
MAPS = "maps."  # fields so called have a file of their own
Needs = Mapping[int, np.ndarray]  # view -> the clips that are needed in it


class Shards:
    """A folder of records about clips, identified by `spec`. A clip is a place in `keys`, which name clips for ever."""

    def __init__(
        self,
        root: Path,
        group: str,
        spec: Mapping[str, Any],
        keys: np.ndarray,
        *,
        most: int = MOST,
        maps: Iterable[str] = (),
        remote: str = "",
    ) -> None:
        """`most` bounds the clips of a shard; `maps` are those that every record is wanted with."""
        self.spec = json.loads(json.dumps(spec))
        self.group, self.keys, self.most = group, keys, most
        self.parts = ("", *(f".{MAPS}{name}" for name in maps))
        name = f"{number(json.dumps(self.spec, sort_keys=True)):016x}"
        self.folder = root / group / name
        self.source = Folder(self.folder, f"{remote.rstrip('/')}/{group}/{name}" if remote else "")
        self.roll = Roll(self.source / "clips")
        self._rows: list[np.ndarray] = []
        self.refresh()

    def refresh(self) -> None:
        """Look again at what there is."""
        self.roll.refresh()
        self._rows += [_rows_of(segment, self.keys) for segment in self.roll.segments[len(self._rows) :]]
        self._there: dict[int, np.ndarray] = {}
        self._open: dict[tuple[int, int, str], dict[str, np.ndarray]] = {}
        self._columns: dict[tuple[int, str], Column] = {}

    # ------------------------------------------------------------ what is there, and what is not

    def missing(self, needs: Needs) -> dict[int, np.ndarray]:
        """The clips that have no record yet, by view."""
        found = {view: clips[self._places(clips, view)[0] < 0] for view, clips in needs.items()}
        return {view: clips for view, clips in found.items() if len(clips)}

    def enroll(self, needs: Needs) -> None:
        """Give every clip that lacks a record a row that a job of ours can fill."""
        while True:
            self.refresh()
            homes = self._homes()
            lacking = np.unique(np.concatenate([*self.missing(needs).values(), np.empty(0, np.int64)]))
            homeless = lacking[homes[lacking] < 0]
            if not len(homeless):
                break
            self.roll.join(self.keys[homeless], self.most)
        publish_text(self.folder / "spec.json", json.dumps(self.spec, indent=1, sort_keys=True), once=True)

    def gaps(self, needs: Needs) -> list[tuple[int, list[int]]]:
        """The shards to fill, each with its views that are not there yet."""
        homes, views = self._homes(), dict[int, list[int]]()
        for view, clips in self.missing(needs).items():
            for shard in np.unique(homes[clips]).tolist():
                assert shard >= 0, "enroll comes first"
                views.setdefault(shard, []).append(view)
        return sorted(views.items())

    def is_there(self, shard: int, view: int) -> bool:
        """Now, whatever the last refresh saw."""
        return all(path.exists() for path in self.files(view, shard))

    def members(self, shard: int) -> list[int]:
        """The clips of a shard, row by row; -1 for one that our clips are not told of."""
        at, segment = next((i, found) for i, found in enumerate(self.roll.segments) if shard in found.shards)
        start = (shard - segment.first) * segment.rows
        found: list[int] = _inverse(self._rows[at], len(segment.keys))[start : start + segment.rows].tolist()
        return found

    def _homes(self) -> np.ndarray:
        """For every clip the shard in which its gaps are filled, one whose clips are all ours; -1: there is none."""
        homes = np.full(len(self.keys), -1)
        for segment, row in zip(self.roll.segments, self._rows, strict=True):
            ours = _inverse(row, len(segment.keys)) >= 0
            whole = np.logical_and.reduceat(ours, np.arange(0, len(ours), segment.rows))
            shard = row // segment.rows
            fits = (homes < 0) & (row >= 0) & whole[shard]
            homes[fits] = segment.first + shard[fits]
        return homes

    def _places(self, index: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of these clips in a view; -1 where no record is."""
        if view not in self._there:
            self._there[view] = self._listing(view)
        there = self._there[view]
        shards, rows = np.full(len(index), -1), np.full(len(index), -1)
        for segment, row in zip(self.roll.segments, self._rows, strict=True):
            shard, within = np.divmod(row[index], segment.rows)
            found = (shards < 0) & (within >= 0) & (shard >= 0) & there[segment.first + shard]
            shards[found], rows[found] = segment.first + shard[found], within[found]
        return shards, rows

    def _listing(self, view: int) -> np.ndarray:
        """Which shards are whole in a view, with every part that is wanted; the last entry is for none."""
        names = (self.source / f"v{view:03d}").names()
        there = [all(_name(shard, part) in names for part in self.parts) for shard in range(self.roll.shards)]
        return np.array([*there, False])

    def failures(self, views: Iterable[int]) -> set[int]:
        """Clips that could not be read in one of these views when their records were made."""
        names = [f"v{view:03d}." for view in views]
        folder, found = self.source / FAILED, set[int]()
        for name in folder.names():
            if name.endswith(".json") and name[: name.find(".") + 1] in names and (path := folder.path(name)):
                found.update(json.loads(path.read_text(encoding="utf-8")))
        return set(np.flatnonzero(np.isin(self.keys, np.array(list(found), np.uint64))).tolist()) if found else set()

    # ------------------------------------------------------------ writing

    def path(self, view: int, shard: int, part: str = "") -> Path:
        return self.folder / f"v{view:03d}" / _name(shard, part)

    def files(self, view: int, shard: int) -> list[Path]:
        """What a shard consists of in a view."""
        return [self.path(view, shard, part) for part in self.parts]

    def check(self, path: Path) -> None:
        """Refuse a file of this store of which a byte is wrong, or that stands in the wrong place."""
        if path.parent.name == "clips":
            files.read(path, {"segment": int(path.stem)})
        elif path.parent == self.folder:
            files.read(path, {"store": self.folder.name})
        else:
            shard, part = int(path.name[1:6]), path.name[6:].removesuffix(".safetensors")
            files.read(path, self._about(int(path.parent.name[1:]), shard, part))

    def commit(self, shard: int, view: int, records: Mapping[str, np.ndarray], failed: Iterable[int] = ()) -> None:
        """Keep the records of one view of a whole shard, for ever; those that are there already stay.

        `failed` are the rows whose clips could not be read.
        """
        if rows_failed := list(failed):
            keys = self.roll.members(shard)[rows_failed].tolist()
            publish_text(self.folder / FAILED / f"v{view:03d}.s{shard:05d}.json", json.dumps(keys), once=True)
        for name, rows in records.items():
            if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                raise UserError(
                    f"{self.group} of view {view} has {name} that are not finite in {rows.dtype}; "
                    "if the teacher is sound, cache.precision=float32 may hold them"
                )
        for part in self.parts:
            own = {name: rows for name, rows in records.items() if _part(name) == part}
            blob = files.encode(own, self._about(view, shard, part))
            publish(self.path(view, shard, part), lambda file, blob=blob: file.write_bytes(blob), once=True)  # type: ignore[misc]

    def _about(self, view: int, shard: int, part: str) -> dict[str, Any]:
        members = xxh3_64_hexdigest(self.roll.members(shard).tobytes())
        return {"store": self.folder.name, "view": view, "shard": shard, "part": part, "members": members}

    # ------------------------------------------------------------ reading

    def read(self, fields: Sequence[str], index: np.ndarray, view: np.ndarray) -> list[np.ndarray]:
        """These fields of the records (index[i], view[i]), in that order."""
        if (view == view[0]).all():
            return self._read(fields, index, int(view[0]))
        views, place = np.unique(view, return_inverse=True)
        found = [self._read(fields, index[place == i], int(one)) for i, one in enumerate(views)]
        back = np.argsort(np.argsort(place, kind="stable"))
        return [np.concatenate(rows)[back] for rows in zip(*found, strict=True)]

    def _read(self, fields: Sequence[str], index: np.ndarray, view: int) -> list[np.ndarray]:
        shards, rows = self._places(index, view)
        return [self._column(view, field, shards, index).take(shards, rows) for field in fields]

    def _column(self, view: int, field: str, shards: np.ndarray, index: np.ndarray) -> Column:
        """The field's rows in a view, with at least these shards of it mapped."""
        column = self._columns.get((view, field))
        if column is None or not column.starts[shards].all():
            for shard in np.unique(shards).tolist():
                self.shard(view, shard, _part(field), index)
            column = self._columns[view, field]
        return column

    def record(self, part: str, index: int, view: int) -> tuple[dict[str, np.ndarray], int]:
        """All fields of the shard that a record is in, and its row there."""
        (shard,), (row,) = self._places(np.array([index]), view)
        return self.shard(view, int(shard), part, np.array([index])), int(row)

    def shard(self, view: int, shard: int, part: str, index: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of a shard, mapped and checked once; `index` is for whom."""
        key = view, shard, part
        if key in self._open:
            return self._open[key]
        path = (self.source / f"v{view:03d}").path(_name(shard, part)) if shard >= 0 else None
        if path is None:
            raise UserError(
                f"{self.folder} has not all records of the clips {index[:5].tolist()} in view {view}; "
                "run the caching job"
            )
        if len(self._open) >= MOST_OPEN:
            self._open.clear()
            self._columns.clear()
        found = self._open[key] = files.read(path, self._about(view, shard, part))
        for field, rows in found.items():
            column = self._columns.setdefault((view, field), Column(rows, self.roll.shards))
            column.put(shard, rows)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the files anew."""
        return {**self.__dict__, "_open": {}, "_columns": {}}

    # ------------------------------------------------------------ for people

    def require(self, needs: Needs, command: str) -> None:
        """Refuse to go on when records are missing; says which command makes them and what is there instead."""
        lacking = self.missing(needs)
        if lacking:
            count = sum(map(len, lacking.values()))
            views = ", ".join(map(str, list(lacking)[:5])) + (", ..." if len(lacking) > 5 else "")
            raise UserError(
                f"{self.folder} lacks {count:,} of the {self.group} that this recipe needs (view {views})"
                f"{self._others()}; run: {command}"
            )

    def _others(self) -> str:
        """How the nearest other store in the cache differs, for the person who expected a hit."""
        if self.folder.exists():
            return ""
        mine = flatten(self.spec)
        differences = []
        for file in self.folder.parent.glob("*/spec.json"):
            other = flatten(json.loads(file.read_text(encoding="utf-8")))
            keys = [key for key in sorted(mine.keys() | other.keys()) if mine.get(key) != other.get(key)]
            differences.append((len(keys), file.parent, keys, other))
        if not differences:
            return ""
        _, folder, keys, other = min(differences, key=lambda found: (found[0], str(found[1])))
        changes = ", ".join(f"{key} ({_short(other.get(key))} there, {_short(mine.get(key))} here)" for key in keys[:3])
        return f" ({folder.name} beside it differs in {changes})"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(shard: int, part: str) -> str:
    return f"s{shard:05d}{part}.safetensors"


def _part(field: str) -> str:
    return f".{field}" if field.startswith(MAPS) else ""


def _rows_of(segment: Segment, keys: np.ndarray) -> np.ndarray:
    """For each of our clips its row in the segment; -1 where it has none."""
    if np.array_equal(keys, segment.keys):
        return np.arange(len(keys), dtype=np.int32)
    order = np.argsort(segment.keys, kind="stable")
    at = order[np.searchsorted(segment.keys, keys, sorter=order).clip(max=len(order) - 1)]
    return np.where(segment.keys[at] == keys, at, -1).astype(np.int32)


def _inverse(rows: np.ndarray, count: int) -> np.ndarray:
    """For each of the segment's rows our clip; -1 where we have none."""
    clips = np.full(count, -1, np.int32)
    clips[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    return clips


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
