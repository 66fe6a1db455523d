"""What is known of a clip's file once it has been looked at: what training would otherwise have to find out."""

from __future__ import annotations

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
    bytes: int = 0
    digest: str = ""  # of the file's content
    trouble: str = ""  # why the file is broken, in a few words

    @property
    def status(self) -> str:
        if self.trouble:
            return "broken"
        return "damaged" if self.lost else "ok"

    def span(self, start: float, end: float | None) -> range:
        """The frames between two times in seconds; never empty."""
        last = self.frames if end is None else round(end * self.fps)
        first = min(round(start * self.fps), self.frames - 1)
        return range(first, max(first + 1, min(last, self.frames)))
