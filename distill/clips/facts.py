"""What is known of a clip's file once it has been looked at: what training would otherwise have to find out."""

from __future__ import annotations

import bisect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Facts:
    """One file. A broken one has `trouble` and no frames; a damaged one has frames, and lost some."""

    frames: int = 0  # that can really be decoded; headers lie
    fps: float = 0.0
    width: int = 0  # as shown, after rotation
    height: int = 0
    rotation: int = 0  # degrees that a player turns the picture
    codec: str = ""
    container: str = ""
    keyframes: int = 0
    timestamps: bool = False  # every frame has one, and they rise
    skips: bool = False  # frames that nobody asked for may be left undecoded: tried on this file, same pictures
    avoid: Mapping[str, str] = field(default_factory=dict)  # decoders that go wrong on it, and how
    lost: int = 0  # frames that are missing, or patched up by the decoder
    times: tuple[float, ...] = ()  # seconds from the first frame to each; only where the rate varies
    bytes: int = 0
    stamp: str = ""  # the file's state when it was looked at; empty: not known, or not worth trusting
    digest: str = ""  # of the file's content
    trouble: str = ""  # why the file is broken, in a few words

    @property
    def status(self) -> str:
        if self.trouble:
            return "broken"
        return "damaged" if self.lost else "ok"

    def span(self, start: float, end: float | None) -> range:
        """The frames between two times in seconds; never empty."""
        last = self.frames if end is None else self._number(end)
        first = min(self._number(start), self.frames - 1)
        return range(first, max(first + 1, min(last, self.frames)))

    def _number(self, seconds: float) -> int:
        """The frame that is nearest to a time."""
        if not self.times:
            return round(seconds * self.fps)
        after = bisect.bisect_left(self.times, seconds)
        if after == len(self.times):
            return after
        return after - (after > 0 and seconds - self.times[after - 1] < self.times[after] - seconds)


def stamp(path: str) -> str:
    """A file's state: its size and when it changed; a folder's: those of what is in it. Empty when it is not there."""
    try:
        if os.path.isdir(path):  # noqa: PTH112 - 240,000 Path objects cost seconds
            with os.scandir(path) as entries:
                states = [entry.stat() for entry in entries if entry.is_file()]
            return f"{len(states)}-{sum(s.st_size for s in states)}-{max((s.st_mtime_ns for s in states), default=0)}"
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return ""
    return f"{state.st_size}-{state.st_mtime_ns}"
