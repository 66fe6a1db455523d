"""What a session leaves behind: the picture as it was shown, and a line for every prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Self, TextIO

import av
import numpy as np
from PIL import Image, ImageOps

from distill.errors import UserError
from distill.files import called, publish
from distill.live.asking import Prediction
from distill.live.request import LINES, VIDEO

CLOCK = 90_000  # ticks a second, as MPEG has them
CODEC = {"crf": "23", "preset": "veryfast", "bf": "0", "g": "60"}
# In pieces, each of which can be played, made one file at the end: a killed session loses its last seconds only.
CONTAINER = {"movflags": "hybrid_fragmented", "frag_duration": "1000000", "flush_packets": "1"}


class Recording:
    """An .mp4 of H.264 with the real times of its frames. It has its name once it is whole."""

    def __init__(self, folder: Path) -> None:
        self.path, self.part = folder / VIDEO, folder / f".{VIDEO}.part"
        self.size: tuple[int, int] | None = None  # width and height; the first frame's
        self.last = -1

    def add(self, picture: np.ndarray, seconds: float) -> None:
        """uint8 [H,W,3]; times rise."""
        if self.size is None:
            self._open(picture.shape[1], picture.shape[0])
        if (picture.shape[1], picture.shape[0]) != self.size:
            picture = np.asarray(ImageOps.pad(Image.fromarray(picture), self.size or (0, 0)))
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        self.last = max(self.last + 1, round(seconds * CLOCK))
        frame.pts, frame.time_base = self.last, Fraction(1, CLOCK)
        self.container.mux(self.stream.encode(frame))

    def _open(self, width: int, height: int) -> None:
        try:
            self.container = av.open(str(self.part), "w", format="mp4", options=CONTAINER)
            self.stream = self.container.add_stream("libx264", rate=30, options=CODEC)
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            self.stream.codec_context.time_base = Fraction(1, CLOCK)
            self.stream.codec_context.open()
        except av.ExternalError as error:
            raise UserError(f"{self.path}: H.264 cannot be made of pictures of {width} x {height} pixels") from error
        self.size = (width, height)

    def close(self) -> None:
        if self.size is None:
            return
        self.container.mux(self.stream.encode())
        self.container.close()
        publish(self.path, self.part.replace)


class Lines:
    """predictions.jsonl: a line of JSON for each prediction, on its way to the disk at once."""

    def __init__(self, folder: Path, classes: Sequence[str], top: int) -> None:
        self.path, self.classes, self.top = folder / LINES, classes, top
        try:
            self.stream: TextIO = self.path.open("x", encoding="utf-8")
        except FileExistsError as error:
            raise UserError(f"{self.path} is there already; choose another out=, or remove it") from error

    def add(self, prediction: Prediction, dropped: int) -> None:
        top = [{"class": self.classes[place], "probability": round(p, 6)} for place, p in prediction.best(self.top)]
        row = {
            "seconds": round(prediction.seconds, 6),
            "frame": prediction.number,
            "source": prediction.name,
            "top": top,
            "latency_ms": round(prediction.latency_ms, 2),
            "inference_ms": round(prediction.inference_ms, 2),
            "dropped": dropped,
        }
        with called(self.path):
            self.stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            self.stream.flush()

    def close(self) -> None:
        with called(self.path):
            self.stream.close()


class Records:
    """Both, in a folder that is made when there is something to put into it; or neither, without one."""

    def __init__(self, out: str, classes: Sequence[str], top: int) -> None:
        self.out, self.classes, self.top = out, classes, top
        self.lines: Lines | None = None
        self.video: Recording | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with ExitStack() as whatever_fails:
            for part in (self.video, self.lines):
                if part:
                    whatever_fails.callback(part.close)

    def begin(self) -> None:
        if self.out and self.lines is None:
            Path(self.out).mkdir(parents=True, exist_ok=True)
            self.lines = Lines(Path(self.out), self.classes, self.top)
            self.video = Recording(Path(self.out))

    def prediction(self, prediction: Prediction, dropped: int) -> None:
        if self.lines:
            self.lines.add(prediction, dropped)

    def picture(self, picture: np.ndarray, seconds: float) -> None:
        if self.video:
            self.video.add(picture, seconds)
