"""Which clip stands in which row. Clips join, nobody moves: rows that are written stay what they are.

A roll is a folder of segments, each a list of clips that joined together. The first that publishes a segment's number
decides what it holds, so independent jobs agree without a lock. A segment is cut into shards of its own, and the shards
of all segments are numbered through.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from distill.files import publish
from distill.shards import files
from distill.shards.folder import Folder

FEWEST, MOST = 32, 512  # clips of a shard
UNITS = 64  # shards that a segment is cut into, if it has enough clips: what several jobs can share, and a kill undo


@dataclass(frozen=True)
class Segment:
    keys: np.ndarray  # uint64 [n]
    rows: int  # clips of a shard
    first: int  # number of its first shard

    @property
    def shards(self) -> range:
        return range(self.first, self.first - (-len(self.keys) // self.rows))


def rows_for(clips: int, most: int) -> int:
    """Clips of a shard: a power of two, so that many jobs can share a small data set and a large one has few files."""
    wanted = 1 << max(0, -(-clips // UNITS) - 1).bit_length()
    return max(1, min(max(FEWEST, wanted), MOST, most))


class Roll:
    """The segments of a store, as they were when last looked at."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.segments: list[Segment] = []

    def refresh(self) -> None:
        while path := self.folder.path(_name(len(self.segments))):
            found = files.read(path, {"segment": len(self.segments)})
            self.segments.append(Segment(found["keys"], int(found["rows"][0]), self.shards))

    @property
    def shards(self) -> int:
        return self.segments[-1].shards.stop if self.segments else 0

    def join(self, keys: np.ndarray, most: int) -> bool:
        """Publish a segment of these clips. False: somebody else took its number first; look again who is missing."""
        number = len(self.segments)
        records = {"keys": keys, "rows": np.array([rows_for(len(keys), most)], np.int64)}
        blob = files.encode(records, {"segment": number})
        ours = publish(self.folder.local / _name(number), lambda part: part.write_bytes(blob), once=True)
        self.refresh()
        return ours

    def place(self, shard: int) -> tuple[int, slice]:
        """Which segment a shard is of, and which of its rows."""
        number = next(i for i, segment in enumerate(self.segments) if shard in segment.shards)
        segment = self.segments[number]
        start = (shard - segment.first) * segment.rows
        return number, slice(start, min(start + segment.rows, len(segment.keys)))

    def members(self, shard: int) -> np.ndarray:
        """The keys of a shard's clips, row by row."""
        number, rows = self.place(shard)
        return self.segments[number].keys[rows]


def _name(segment: int) -> str:
    return f"{segment:05d}.safetensors"
