"""Cameras of this machine, and OpenCV, which opens them and windows."""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from distill.clips.video import BrokenFileError
from distill.errors import UserError
from distill.live.sources import NOTHING, RATE, Shot, Shots


def the_opencv(what: str) -> Any:
    """OpenCV, imported no earlier than it is needed."""
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise UserError(f"{what} needs OpenCV, which is not installed: pip install 'distill[live]'") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # we say ourselves what is wrong
    return cv2


class Webcam:
    live, paced, blind = True, False, False

    def __init__(self, number: int) -> None:
        self.number, self.name = number, f"webcam {number}"
        self.cv2 = the_opencv(self.name)

    def shots(self) -> Shots:
        camera = self.cv2.VideoCapture(self.number)
        try:
            if not camera.isOpened():
                raise BrokenFileError("cannot be opened; is it there, and does nobody else use it?")
            camera.set(self.cv2.CAP_PROP_BUFFERSIZE, 1)  # the latest picture, not the one before
            first = before = time.monotonic()
            lasts = 1 / (camera.get(self.cv2.CAP_PROP_FPS) or RATE)
            while True:
                there, picture = (camera.grab(), NOTHING) if self.blind else camera.read()
                if not there:
                    raise BrokenFileError("gives no more pictures")
                now = time.monotonic()
                lasts, before = (now - before if before > first else lasts), now
                yield Shot(np.ascontiguousarray(picture[..., ::-1]), now - first, lasts)
        finally:
            camera.release()
