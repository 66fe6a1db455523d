"""Clips on their way to the cloud: on the disk before they are sent, and until the cloud has said that it has them.

One SQLite file, which one edge has for itself. It survives the end of the process at any moment; after a power cut the
latest clips may be missing. While the disk takes nothing, the latest clips wait in memory.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import make_folder, make_private
from distill.live import wire

JUMP_SECONDS = 60.0  # by which a clock is set, not merely adjusted
MOST_IN_MEMORY = 1024  # clips
ROW_BYTES = 256  # that a clip takes besides itself, its places in the indices included
BUSY_MS = 2000
PAGE_BYTES = 16384  # a latent fills most of a common page, the rest of which would be lost
SCHEMA = """
CREATE TABLE IF NOT EXISTS clips (
    place INTEGER PRIMARY KEY AUTOINCREMENT, camera TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    kept REAL NOT NULL, encoder TEXT NOT NULL, bytes INTEGER NOT NULL, clip BLOB NOT NULL,
    UNIQUE (camera, boot, seq));
CREATE INDEX IF NOT EXISTS ages ON clips (kept, bytes);
CREATE INDEX IF NOT EXISTS encoders ON clips (encoder);
CREATE TABLE IF NOT EXISTS dropped (camera TEXT PRIMARY KEY, clips INTEGER NOT NULL);
"""
INSERT = "INSERT OR IGNORE INTO clips (camera, boot, seq, kept, encoder, bytes, clip) VALUES (?, ?, ?, ?, ?, ?, ?)"
COUNT = "INSERT INTO dropped VALUES (?, ?) ON CONFLICT (camera) DO UPDATE SET clips = clips + excluded.clips"
REMOVE = "DELETE FROM clips WHERE camera = ? AND boot = ? AND seq = ?"
Key = tuple[str, str, int]  # camera, boot, seq: of one clip


@dataclass(frozen=True)
class Spooled:
    clip: wire.Clip
    encoder: str

    @property
    def key(self) -> Key:
        return self.clip.camera, self.clip.boot, self.clip.seq


@dataclass(frozen=True)
class Depth:
    """What waits, and what was given up."""

    clips: int
    bytes: int
    seconds: float  # age of the oldest
    dropped: Counter[str]


class Spool:
    """For several threads. `tell` hears once that the disk fails, and once that it is well again."""

    def __init__(self, path: Path, most_bytes: float, most_seconds: float, tell: Callable[[str], object]) -> None:
        self.path, self.most_bytes, self.most_seconds, self.tell = path, most_bytes, most_seconds, tell
        self.trouble, self._closed = "", False
        self._lock = threading.RLock()
        # What the disk has not been told yet: which clips came, which may go, and how many of a camera were dropped.
        self._came, self._gone, self._lost = deque[Spooled](), set[Key](), Counter[str]()
        make_folder(path.parent)
        make_private(path)
        self._database = _open(path)
        self._clock = time.time(), time.monotonic()
        self._clips, self._bytes = self._database.execute("SELECT count(*), total(bytes) FROM clips").fetchone()
        self._dropped = Counter(dict(self._database.execute("SELECT camera, clips FROM dropped")))
        self._write()

    def close(self) -> None:
        with self._lock:
            self._write()
            self._database.close()
            self._closed = True

    def add(self, clips: Iterable[Spooled]) -> None:
        with self._lock:
            self._came.extend(clips)
            self._write()
            while len(self._came) > MOST_IN_MEMORY:
                self._lost[self._came.popleft().clip.camera] += 1

    def oldest(self, count: int, but: Sequence[str] = ()) -> list[Spooled]:
        """At most so many, all of one encoder, which is none of `but`; the oldest first."""
        with self._lock:
            encoders = [row[0] for row in self._read("SELECT encoder FROM clips GROUP BY encoder ORDER BY min(place)")]
            encoders += [item.encoder for item in self._came]
            encoder = next((name for name in encoders if name not in but), "")
            rows = self._read(
                "SELECT camera, boot, seq, clip FROM clips WHERE encoder = ? ORDER BY place LIMIT ?",
                encoder,
                count + len(self._gone),
            )
            found = [item for row in rows if (item := self._read_clip(row, encoder))]
            found += [item for item in self._came if item.encoder == encoder]
            return [item for item in found if item.key not in self._gone][:count]

    def remove(self, keys: Iterable[Key]) -> None:
        """The cloud has them."""
        with self._lock:
            going = set(keys)
            self._gone |= going - {item.key for item in self._came}
            self._came = deque(item for item in self._came if item.key not in going)
            self._write()

    def give_up(self, item: Spooled) -> None:
        """The cloud will never have it."""
        with self._lock:
            self._lost[item.clip.camera] += 1
            self.remove([item.key])

    def depth(self) -> Depth:
        with self._lock:
            times = [row[0] for row in self._read("SELECT min(kept) FROM clips") if row[0] is not None]
            times += [item.clip.captured for item in self._came]
            seconds = max(0.0, time.time() - min(times)) if times else 0.0
            clips = max(0, int(self._clips) - len(self._gone)) + len(self._came)
            return Depth(clips, int(self._bytes), seconds, self._dropped + self._lost)

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """What the disk has, as far as it can be read."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            self._complain(error)
            return []

    def _read_clip(self, row: tuple[Any, ...], encoder: str) -> Spooled | None:
        """None: another version wrote it otherwise, and nobody can send it."""
        *key, body = row
        try:
            return Spooled(wire.load(body, wire.MSGPACK, wire.Clip), encoder)
        except wire.WireError:
            self._lost[key[0]] += 1
            self.remove([(key[0], key[1], key[2])])
            return None

    def _write(self) -> None:
        """Bring the disk up to date, all at once or not at all."""
        clock = time.time(), time.monotonic()
        try:
            with self._database:
                self._follow(clock)
                clips, size, lost = self._change()
                self._database.executemany(COUNT, lost.items())
        except sqlite3.Error as error:
            self._complain(error)
            return
        self._clock = clock
        self._clips, self._bytes, self._dropped = clips, size, self._dropped + lost
        self._came.clear()
        self._gone.clear()
        self._lost.clear()
        if self.trouble:
            self.trouble = ""
            self.tell(f"{self.path} takes clips again")

    def _follow(self, clock: tuple[float, float]) -> None:
        """A box may learn the time long after it started: what it kept until then does not become old by that."""
        (now, ticks), (before, ticks_before) = clock, self._clock
        jump = (now - before) - (ticks - ticks_before)
        if abs(jump) > JUMP_SECONDS:
            self._database.execute("UPDATE clips SET kept = kept + ?", (jump,))

    def _change(self) -> tuple[int, float, Counter[str]]:
        """How many clips there are then, their bytes, and which were dropped."""
        clips, size, lost = self._clips, self._bytes, Counter(self._lost)
        for key in self._gone:
            for (freed,) in self._database.execute(f"{REMOVE} RETURNING bytes", key).fetchall():
                clips, size = clips - 1, size - freed
        for item in self._came:
            body = wire.dump(item.clip, wire.MSGPACK)
            row = (*item.key, time.time(), item.encoder, len(body) + ROW_BYTES, body)
            if self._database.execute(INSERT, row).rowcount:
                clips, size = clips + 1, size + len(body) + ROW_BYTES
        too_old = "DELETE FROM clips WHERE kept < ? RETURNING camera, bytes"
        oldest = "DELETE FROM clips WHERE place = (SELECT min(place) FROM clips) RETURNING camera, bytes"
        dropped = self._database.execute(too_old, (time.time() - self.most_seconds,)).fetchall()
        freed = sum(row[1] for row in dropped)
        while size - freed > self.most_bytes and (row := self._database.execute(oldest).fetchone()):
            dropped.append(row)
            freed += row[1]
        lost.update(row[0] for row in dropped)
        return clips - len(dropped), size - freed, lost

    def _complain(self, error: sqlite3.Error) -> None:
        if not (self.trouble or self._closed):  # a sender may come too late
            self.trouble = f"{self.path} cannot be written ({error})"
            self.tell(f"{self.trouble}; is the disk full? The latest {MOST_IN_MEMORY} clips wait in memory meanwhile")


def _open(path: Path) -> sqlite3.Connection:
    try:
        database = sqlite3.connect(path, check_same_thread=False)
        database.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        database.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        database.execute("PRAGMA locking_mode = EXCLUSIVE")  # as long as this process lives
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(SCHEMA)
        with database:
            database.execute("DELETE FROM clips WHERE 0")  # takes the lock of a writer
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UserError(f"{path} is used by another edge; stop that one, or choose another out=") from error
        raise UserError(f"{path} cannot be used ({error}); make room, or choose another out=") from error
    except sqlite3.DatabaseError as error:
        raise UserError(f"{path} is damaged ({error}); move it away, or choose another out=") from error
    return database
