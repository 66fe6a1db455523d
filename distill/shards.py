"""Records over a grid of (clip, view), kept in plain safetensors files.

    <folder>/spec.json                       everything that the records depend on, in clear
    <folder>/v003/s00007.safetensors         view 3 of the clips [7 * rows, 8 * rows)

A shard's final name exists only when its whole content is on the disk, so the listing is the state of progress: no
index to go stale, nothing to repair after a kill. A view is one folder, so an epoch reads just the bytes it needs.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from distill.errors import UserError
from distill.files import publish, publish_text
from distill.randomness import number

ROWS = 128
MOST_OPEN = 256  # every mapped file holds a file descriptor
TYPES = {"U8": np.uint8, "F16": np.float16, "F32": np.float32, "I64": np.int64}


class Shards:
    """A folder of records about `clips` clips, identified by `spec`."""

    def __init__(self, root: Path, group: str, spec: Mapping[str, Any], clips: int, rows: int = ROWS) -> None:
        self.spec = json.loads(json.dumps({**spec, "rows": rows}))
        self.group, self.clips, self.rows = group, clips, rows
        self.folder = root / group / f"{number(json.dumps(self.spec, sort_keys=True)):016x}"
        self._open: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def path(self, view: int, shard: int) -> Path:
        return self.folder / f"v{view:03d}" / f"s{shard:05d}.safetensors"

    def missing(self, indices: Iterable[int], views: Sequence[int]) -> list[tuple[int, list[int]]]:
        """The shards that hold these clips, each with its views that are not there yet."""
        shards = sorted({index // self.rows for index in indices})
        gaps = ((shard, [view for view in views if not self.path(view, shard).exists()]) for shard in shards)
        return [(shard, views) for shard, views in gaps if views]

    def members(self, shard: int) -> range:
        """The clips of a shard."""
        return range(shard * self.rows, min((shard + 1) * self.rows, self.clips))

    def commit(self, shard: int, view: int, records: Mapping[str, np.ndarray]) -> None:
        """Keep the records of one view of a whole shard, for ever."""
        for name, rows in records.items():
            assert len(rows) == len(self.members(shard)), f"{name} has {len(rows)} rows"
            if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                raise UserError(
                    f"{self.group} of view {view} has {name} that are not finite in {rows.dtype}; "
                    "if the teacher is sound, cache.precision=float32 may hold them"
                )
        if not (self.folder / "spec.json").exists():
            publish_text(self.folder / "spec.json", json.dumps(self.spec, indent=1, sort_keys=True))
        blob = save({name: np.ascontiguousarray(rows) for name, rows in records.items()})
        publish(self.path(view, shard), lambda part: part.write_bytes(blob))

    def read(self, field: str, index: np.ndarray, view: np.ndarray) -> np.ndarray:
        """One field of the records (index[i], view[i]), in that order."""
        return np.stack(
            [self._shard(v, i // self.rows)[field][i % self.rows] for i, v in zip(index, view, strict=True)]
        )

    def fields(self, index: int, view: int) -> set[str]:
        return set(self._shard(view, index // self.rows))

    def _shard(self, view: int, shard: int) -> dict[str, np.ndarray]:
        found = self._open.pop((view, shard), None)
        if found is None:
            found = _map(self.path(view, shard))
            if len(self._open) >= MOST_OPEN:
                self._open.pop(next(iter(self._open)))
        self._open[view, shard] = found  # the one used last comes last
        return found

    def __getstate__(self) -> dict[str, Any]:
        """A worker process maps the files anew."""
        return {**self.__dict__, "_open": {}}

    def require(self, indices: Iterable[int], views: Sequence[int], command: str) -> None:
        """Refuse to go on when records are missing; says which command makes them and what is there instead."""
        gaps = self.missing(indices, views)
        if not gaps:
            return
        lacking = sum(len(views) for _, views in gaps)
        raise UserError(
            f"{self.folder} lacks {lacking} shards of the {self.group} that this recipe needs{self._others()}; "
            f"run: {command}"
        )

    def _others(self) -> str:
        """How the nearest other record in the cache differs, for the person who expected a hit."""
        if self.folder.exists():
            return ""
        mine = flatten(self.spec)
        differences = []
        for file in self.folder.parent.glob("*/spec.json"):
            other = flatten(json.loads(file.read_text()))
            keys = [key for key in sorted(mine.keys() | other.keys()) if mine.get(key) != other.get(key)]
            differences.append((len(keys), file.parent, keys, other))
        if not differences:
            return ""
        _, folder, keys, other = min(differences, key=lambda found: (found[0], str(found[1])))
        changes = ", ".join(f"{key} ({other.get(key)} there, {mine.get(key)} here)" for key in keys[:3])
        return f" ({folder.name} beside it differs in {changes})"


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} -> {'a.b': 1}"""
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _map(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file as read-only views of the mapped file."""
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(mapped[:8], "little")
        header = {name: entry for name, entry in json.loads(mapped[8:start]).items() if name != "__metadata__"}
        whole = len(mapped) == start + max(entry["data_offsets"][1] for entry in header.values())
    except ValueError:  # empty, or cut inside the header
        whole = False
    if not whole:
        raise UserError(f"{path} is damaged: its length is not what its header says; delete it and cache again")
    records = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(
            mapped,
            TYPES[entry["dtype"]],
            offset=start + begin,
            count=-1 if begin == end else (end - begin) // np.dtype(TYPES[entry["dtype"]]).itemsize,
        )
        records[name] = values.reshape(entry["shape"])
    return records
