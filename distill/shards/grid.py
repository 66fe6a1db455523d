"""Records over a grid of (clip, view), kept in plain safetensors files.

    <folder>/spec.json                       everything that the records depend on, in clear
    <folder>/clips/00000.safetensors         which clips there are: a list for each time that some joined
    <folder>/v003/s00007.safetensors         view 3 of the clips of shard 7
    <folder>/v003/s00007.maps.X.safetensors  the same records' map X

A shard's final name exists only when its whole content is on the disk, so the listing is the state of progress: no
index to go stale, nothing to repair after a kill. A view is one folder, so an epoch reads just the bytes it needs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from distill.errors import UserError
from distill.files import publish, publish_text
from distill.keys import flatten
from distill.randomness import number
from distill.shards import files
from distill.shards.column import Column
from distill.shards.folder import Folder
from distill.shards.roll import MOST, Roll, Segment

MOST_OPEN = 8192  # mapped files; a process may have 65,530 mappings
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
        self.shelf = Folder(root / group, f"{remote.rstrip('/')}/{group}" if remote else "")
        self.source = self.shelf / name
        self.roll = Roll(self.source / files.LISTS)
        self._rows: list[np.ndarray] = []
        self._inverses: dict[int, np.ndarray] = {}
        self.refresh()

    def refresh(self) -> None:
        """Look again at what there is."""
        self._refresh_roll()
        self._there: dict[int, np.ndarray] = {}
        self._open: dict[tuple[int, int, str], dict[str, np.ndarray]] = {}
        self._columns: dict[tuple[int, str], Column] = {}

    def _refresh_roll(self) -> None:
        self.roll.refresh()
        self._rows += [_rows_of(segment, self.keys) for segment in self.roll.segments[len(self._rows) :]]

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
        segment, rows = self.roll.place(shard)
        found: list[int] = self._clips(segment)[rows].tolist()
        return found

    def _clips(self, segment: int) -> np.ndarray:
        """For each of a segment's rows our clip; -1 where we have none."""
        if segment not in self._inverses:
            rows = self._rows[segment]
            self._inverses[segment] = np.full(len(self.roll.segments[segment].keys), -1, np.int32)
            self._inverses[segment][rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        return self._inverses[segment]

    def _homes(self) -> np.ndarray:
        """For every clip the shard in which its gaps are filled, one whose clips are all ours; -1: there is none."""
        homes = np.full(len(self.keys), -1)
        for i, (segment, row) in enumerate(zip(self.roll.segments, self._rows, strict=True)):
            ours = self._clips(i) >= 0
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
        names = (self.source / _folder(view)).names()
        parsed = [found for name in names if (found := parse(name)) is not None]
        if max((shard for shard, _ in parsed), default=-1) >= self.roll.shards:
            self._refresh_roll()
        if max((shard for shard, _ in parsed), default=-1) >= self.roll.shards:
            raise UserError(
                f"{self.folder / files.LISTS} does not list the clips of all shards in {_folder(view)}; restore it "
                "from a copy, or delete the whole store"
            )
        parts = {part: {shard for shard, other in parsed if other == part} for part in self.parts}
        whole = set.intersection(*parts.values())
        there = np.zeros(self.roll.shards + 1, bool)
        there[list(whole)] = True
        return there

    def failures(self, needs: Needs) -> dict[tuple[int, int], list[int]]:
        """By (shard, view), the clips that are needed there and could not be read when their records were made."""
        found = {}
        for view, clips in needs.items():
            shards = np.unique(self._places(clips, view)[0])
            for shard in shards[shards >= 0].tolist():
                rows = self._label(view, shard).get("failed", ())
                members = set(np.array(self.members(shard))[list(rows)].tolist()) if rows else set()
                if failed := sorted(members & set(clips.tolist()) if members else ()):
                    found[shard, view] = failed
        return found

    def _label(self, view: int, shard: int) -> dict[str, Any]:
        path = (self.source / _folder(view)).path(_name(shard, ""))
        assert path is not None
        return files.label(path)

    # ------------------------------------------------------------ writing

    def path(self, view: int, shard: int, part: str = "") -> Path:
        return self.folder / _folder(view) / _name(shard, part)

    def files(self, view: int, shard: int) -> list[Path]:
        """What a shard consists of in a view."""
        return [self.path(view, shard, part) for part in self.parts]

    def check(self, path: Path) -> bool:
        """Refuse a file of this store of which a byte is wrong, or that stands in the wrong place. False: not ours."""
        place, view = path.relative_to(self.folder).parts, parse_view(path.parent.name)
        found = parse(path.name)
        if len(place) == 1 and path.suffix == ".safetensors":
            files.read(path, {"store": self.folder.name})
        elif len(place) == 2 and place[0] == files.LISTS and path.stem.isdecimal():
            files.read(path, {"segment": int(path.stem)})
        elif len(place) == 2 and view is not None and found is not None:
            files.read(path, self._about(view, *found))
        else:
            return False
        return True

    def commit(self, shard: int, view: int, records: Mapping[str, np.ndarray], failed: Iterable[int] = ()) -> None:
        """Keep the records of one view of a whole shard, for ever; those that are there already stay.

        `failed` are the rows whose clips could not be read.
        """
        for name, rows in records.items():
            if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                raise UserError(
                    f"{self.group} of view {view} has {name} that are not finite in {rows.dtype}; "
                    "if the teacher is sound, cache.precision=float32 may hold them"
                )
        note = {"failed": unread} if (unread := list(failed)) else {}
        for part in self.parts:
            own = {name: rows for name, rows in records.items() if _part(name) == part}
            blob = files.encode(own, self._about(view, shard, part) | note)
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
        shards, rows = self._found(index, view)
        return [self._column(view, field, shards).take(shards, rows) for field in fields]

    def _found(self, index: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
        """Shard and row of these clips in a view, all of which are there."""
        shards, rows = self._places(index, view)
        if (shards < 0).any():
            lacking = index[shards < 0][:5].tolist()
            raise UserError(f"{self.folder} has no records of the clips {lacking} in view {view}; run the caching job")
        return shards, rows

    def _column(self, view: int, field: str, shards: np.ndarray) -> Column:
        """The field's rows in a view, with at least these shards of it mapped."""
        column = self._columns.get((view, field))
        if column is None or not column.starts[shards].all():
            wanted = np.unique(shards).tolist()
            if len(self._open) + len(wanted) > MOST_OPEN:  # now, not while these are being mapped
                self._open.clear()
                self._columns.clear()
            for shard in wanted:
                self.shard(view, shard, _part(field))
            column = self._columns[view, field]
        return column

    def record(self, part: str, index: int, view: int) -> tuple[dict[str, np.ndarray], int]:
        """All fields of the shard that a record is in, and its row there."""
        (shard,), (row,) = self._found(np.array([index]), view)
        return self.shard(view, int(shard), part), int(row)

    def shard(self, view: int, shard: int, part: str) -> dict[str, np.ndarray]:
        """The fields of a shard that is there, mapped and checked once."""
        key = view, shard, part
        if key in self._open:
            return self._open[key]
        path = (self.source / _folder(view)).path(_name(shard, part))
        if path is None:
            raise UserError(f"{self.path(view, shard, part)} was there and is gone; run the caching job again")
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
                f"{self._instead(lacking)}; run: {command}"
            )

    def _instead(self, lacking: Needs) -> str:
        """What is there in place of the records that somebody expected."""
        if absent := self._absent_maps(lacking):
            return f" (it has no map {', '.join(absent)})"
        if self.roll.segments:
            clips = np.unique(np.concatenate(list(lacking.values())))
            known = np.zeros(len(self.keys), bool)
            for rows in self._rows:
                known |= rows >= 0
            new = int((~known[clips]).sum())
            return (
                f" ({new:,} of its {len(self.keys):,} clips are new to the cache, or have other files)" if new else ""
            )
        mine, differences = flatten(self.spec), []
        for name in self.shelf.names() - {self.folder.name}:
            other = self._spec_of(name)
            keys = [key for key in sorted(mine.keys() | other.keys()) if mine.get(key) != other.get(key)]
            if other:
                differences.append((len(keys), name, keys, other))
        if not differences:
            return f" (nothing like it is in {self.shelf.remote})" if self.shelf.remote else ""
        _, name, keys, other = min(differences, key=lambda found: (found[0], found[1]))
        changes = ", ".join(f"{key} ({_short(other.get(key))} there, {_short(mine.get(key))} here)" for key in keys[:3])
        return f" ({name} beside it differs in {changes})"

    def _absent_maps(self, views: Iterable[int]) -> list[str]:
        """Maps that are wanted and that no record has, where there are records."""
        names = [name for view in views for name in (self.source / _folder(view)).names()]
        kept = {found[1] for name in names if (found := parse(name))}
        return [part.removeprefix(f".{MAPS}") for part in self.parts if kept and part not in kept]

    def _spec_of(self, name: str) -> dict[str, Any]:
        """The spec of another store; empty for what is none."""
        try:
            path = (self.shelf / name).path("spec.json")
            return flatten(json.loads(path.read_text(encoding="utf-8"))) if path else {}
        except (ValueError, OSError):
            return {}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(shard: int, part: str) -> str:
    return f"s{shard:05d}{part}.safetensors"


def parse(name: str) -> tuple[int, str] | None:
    """Shard and part of a file's name, if it is a shard's."""
    found = re.fullmatch(r"s(\d{5,})((?:\.maps\..+)?)\.safetensors", name)
    return (int(found[1]), found[2]) if found and _name(int(found[1]), found[2]) == name else None


def _folder(view: int) -> str:
    return f"v{view:03d}"


def parse_view(name: str) -> int | None:
    """The view that a folder holds, if it holds one."""
    found = re.fullmatch(r"v(\d{3,})", name)
    return int(found[1]) if found else None


def _part(field: str) -> str:
    return f".{field}" if field.startswith(MAPS) else ""


def _rows_of(segment: Segment, keys: np.ndarray) -> np.ndarray:
    """For each of our clips its row in the segment; -1 where it has none."""
    if np.array_equal(keys, segment.keys):
        return np.arange(len(keys), dtype=np.int32)
    order = np.argsort(segment.keys, kind="stable")
    at = order[np.searchsorted(segment.keys, keys, sorter=order).clip(max=len(order) - 1)]
    return np.where(segment.keys[at] == keys, at, -1).astype(np.int32)
