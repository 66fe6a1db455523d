"""The window on a screen, through OpenCV."""

from __future__ import annotations

import os
import sys
from typing import Self

import numpy as np

from distill.errors import UserError
from distill.live.webcam import the_opencv

TITLE = "distill live"
ENOUGH = (ord("q"), 27)  # q and Esc end it
HEADLESS = "say headless=true out=FOLDER"


class Window:
    def __init__(self) -> None:
        self.cv2 = the_opencv("a window")
        if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            raise UserError(f"there is no screen here to show a window on; {HEADLESS}")  # Qt would abort the process
        try:
            self.cv2.namedWindow(TITLE, self.cv2.WINDOW_NORMAL | self.cv2.WINDOW_KEEPRATIO)
        except self.cv2.error as error:
            raise UserError(
                f"this OpenCV has no windows: pip uninstall opencv-python-headless, then pip install opencv-python; "
                f"or {HEADLESS}"
            ) from error
        self.size: tuple[int, int] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cv2.destroyAllWindows()

    def show(self, picture: np.ndarray) -> bool:
        """uint8 RGB [H,W,3]. False once the person has had enough."""
        size = picture.shape[1], picture.shape[0]
        if self.size is None:
            self.cv2.resizeWindow(TITLE, *size)
        self.size = size
        self.cv2.imshow(TITLE, np.ascontiguousarray(picture[..., ::-1]))
        return self.stays()

    def stays(self) -> bool:
        """Let the window live; False once a key has ended it or it was closed."""
        if self.cv2.waitKey(1) & 0xFF in ENOUGH:
            return False
        return self.size is None or self.cv2.getWindowProperty(TITLE, self.cv2.WND_PROP_VISIBLE) >= 1
