"""What `distill live` is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.keys import pair, read_group

FORMS = ("", "whole", "stream")
LEAST = {
    "seconds": 0,
    "every": 0,
    "smoothing": 0,
    "threads": 1,
    "top": 1,
    "reconnect": -1,
    "most_frames": 0,
    "most_seconds": 0,
}
LEAST_SECONDS = 0.01  # of a clip
VIDEO, LINES = "live.mp4", "predictions.jsonl"  # what `out` gets


@dataclass
class Options:
    model: str = ""
    """Who recognises: an exported file, or a run folder, whose student runs in torch."""
    source: str = ""
    """What is looked at: the number of a webcam, a video, a folder of videos or pictures, a URL (rtsp://, http:// and
    the like), or demo, which draws moving digits."""
    form: str = ""
    """How a run's student is asked: whole (a clip at a time, also if empty) or stream (frame by frame)."""
    seconds: float = 0.0
    """Of video that a clip spans; 0: as the model says."""
    every: float = 0.5
    """Seconds from one prediction to the next, of a model that sees whole clips; 0: at every frame."""
    smoothing: float = 1.0
    """Seconds over which probabilities are averaged, the latest counting most; 0: not at all."""
    top: int = 5
    """How many classes are shown and written."""
    threads: int = 1
    """Of the processor, for the model."""
    headless: bool = False
    """No window; `out` is needed then."""
    out: str = ""
    """Folder that gets live.mp4, the picture as it was shown, and predictions.jsonl."""
    realtime: bool | None = None
    """Whether a file passes as fast as it was filmed, frames being dropped like a camera's if that is too fast; or all
    frames are looked at, in order, however long it takes. Empty: as filmed in a window, all frames if headless."""
    fps: float = 25.0
    """Frames a second of a folder of pictures, which does not say its own."""
    silence: float = 10.0
    """Seconds without a frame after which a webcam or URL counts as lost and is opened anew."""
    reconnect: int = -1
    """How many times in a row that is tried, at growing intervals of up to half a minute; -1: for ever."""
    most_frames: int = 0
    """Stop after so many frames; 0: when the source ends."""
    most_seconds: float = 0.0
    """Stop after so many seconds of video; 0: when the source ends."""

    @property
    def in_order(self) -> bool:
        """Whether every frame of a source that can wait is looked at."""
        return self.headless if self.realtime is None else not self.realtime


def read(arguments: Sequence[str]) -> Options:
    """`model=FILE-or-RUN source=... key=value ...`."""
    for argument in arguments:
        pair(argument, "example: model=runs/quickstart/distilled source=0")
    options = read_group(Options, arguments)
    check(options)
    return options


def check(options: Options) -> None:
    for name, what in (("model", "an exported file or a run folder"), ("source", "a webcam number, file, URL or demo")):
        if not getattr(options, name):
            raise UserError(f"{name}= is missing; say {name}= and {what}")
    if options.form not in FORMS:
        raise UserError(f"form is {options.form!r}; it is whole or stream")
    for name, least in LEAST.items():
        if not least <= getattr(options, name) < math.inf:
            raise UserError(f"{name} is {getattr(options, name)}; it is at least {least}")
    if 0 < options.seconds < LEAST_SECONDS:
        raise UserError(f"seconds is {options.seconds}; it is at least {LEAST_SECONDS}, or 0: as the model says")
    for name in ("fps", "silence"):
        if not 0 < getattr(options, name) < math.inf:
            raise UserError(f"{name} is {getattr(options, name)}; it is above 0")
    if options.headless and not options.out:
        raise UserError("headless=true shows nothing, so say where the answers go: out=FOLDER")
    for name in (VIDEO, LINES) if options.out else ():
        if Path(options.out, name).exists():
            raise UserError(f"{Path(options.out, name)} is there already; choose another out=, or remove it")
