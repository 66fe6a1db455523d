"""Where running pictures come from: webcams, files, folders, links, and drawings. What a source is, its name tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import av
import numpy as np

from distill.clips import listing
from distill.clips.pictures import each_picture, listed
from distill.clips.video import BrokenFileError, Film, Painter
from distill.errors import UserError
from distill.live.request import Options

DEMO = "demo"
RATE = 25.0  # frames a second of what does not say its own
NOTHING = np.zeros((0, 0, 3), np.uint8)
Tell = Callable[[str], object]


@dataclass(frozen=True)
class Shot:
    """One frame, as its source gives it."""

    picture: np.ndarray  # uint8 RGB [H,W,3]; NOTHING if nobody will look at it
    seconds: float  # since the first of its stream
    lasts: float  # seconds, up to the next
    stream: int = 0  # what is not one recording with the frame before has another number
    name: str = ""  # of what is shown, where one source shows several things


Shots = Generator[Shot, None, None]


class Source(Protocol):
    name: str
    live: bool  # goes on whether one looks or not, and may come back after it was lost
    paced: bool  # gives frames before their time; known once the first frame is there
    blind: bool  # whoever reads it sets this when it will not look at the next frames: painting them can be spared

    def shots(self) -> Shots:
        """From the first frame to the last. Raises BrokenFileError where there is none, or if it breaks off."""


def open_source(options: Options, classes: Sequence[str], tell: Tell) -> Source:
    """What `source=` names. A model's classes are those that the demo draws."""
    name = options.source
    if options.realtime is False and (name.isdecimal() or "://" in name):
        raise UserError("realtime=false is for files: a webcam or a link goes on whether one looks or not")
    if name.isdecimal():
        from distill.live.webcam import Webcam  # OpenCV, which nothing else needs

        return Webcam(int(name))
    if re.match(r"\w[\w+.-]*://", name):
        from distill.live.links import Link

        return Link(name, options.silence)
    if name == DEMO:
        from distill.live.demo import Demo  # scikit-learn takes its time

        return Demo(classes)
    return _of_path(Path(name), options.fps, tell)


def _of_path(path: Path, fps: float, tell: Tell) -> Source:
    if not path.exists():
        raise UserError(f"source={path}: there is no such file or folder; a webcam number, a URL or demo will do, too")
    if not path.is_dir():
        return Videos(str(path), {"": path}, tell)
    try:
        listed(path)
    except BrokenFileError:
        videos = {name: path / name for name in listing.videos(path)}
        if not videos:
            raise UserError(f"source={path} is a folder without videos or pictures") from None
        return Videos(str(path), videos, tell)
    return Pictures(path, fps)


class Videos:
    """A video, or several one after the other; of several those that cannot be read are left out, and named."""

    live = paced = blind = False

    def __init__(self, name: str, files: dict[str, Path], tell: Tell) -> None:
        self.name, self.files, self.tell = name, files, tell

    def shots(self) -> Shots:
        read = 0
        for stream, (name, path) in enumerate(self.files.items()):
            try:
                with Film(path) as film:
                    for shot in film_shots(film, self, stream, name):
                        read += 1
                        yield shot
            except (BrokenFileError, OSError) as error:
                if len(self.files) == 1:
                    raise
                self.tell(f"{path} {error}; it is left out")
        if not read:
            raise BrokenFileError("gives no frame that can be decoded")


class Pictures:
    """A folder of pictures, in the order of their names."""

    live = paced = blind = False

    def __init__(self, folder: Path, fps: float) -> None:
        self.name, self.folder, self.fps = str(folder), folder, fps

    def shots(self) -> Shots:
        for number, picture in enumerate(each_picture(self.folder)):
            yield Shot(picture, number / self.fps, 1 / self.fps)


def film_shots(film: Film, source: Source, stream: int = 0, name: str = "") -> Shots:
    """The frames of a film, upright, when they are shown."""
    paint, usual = Painter(), 1 / film_rate(film)
    first, end, last = None, 0.0, -1.0
    for frame in film.frames():
        lasts = float(frame.duration * frame.time_base) if frame.duration and frame.time_base else usual
        first = frame.time if first is None else first
        told = end if frame.time is None or first is None else frame.time - first
        last = told if told > last else end  # damaged files step back
        end = last + lasts
        picture = NOTHING if source.blind else paint.picture(frame)
        yield Shot(picture, last, lasts, stream, name)


def film_rate(film: Film) -> float:
    """Frames a second, as far as is known."""
    stream = film.stream
    assert isinstance(stream, av.VideoStream)
    return float(stream.average_rate or stream.guessed_rate or RATE)
