"""Digits that move, drawn as long as somebody looks: the embedded data as a camera would see it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from distill.clips import motion
from distill.live.sources import DEMO, Shot, Shots

CLIPS = 3  # how many clips of the data set a motion lasts


class Demo:
    """One motion after the other, those that the model knows."""

    live = paced = blind = False

    def __init__(self, classes: Sequence[str]) -> None:
        self.name = DEMO
        self.motions = [name for name in classes if name in motion.CLASSES] or list(motion.DEFAULT_CLASSES)

    def shots(self) -> Shots:
        usual = motion.Drawing()
        longer = motion.Drawing(
            frames=CLIPS * usual.frames, speed=CLIPS * usual.speed, drift=CLIPS * usual.drift
        )  # at the speed of the data set
        frames = itertools.count()
        for take, name in enumerate(itertools.cycle(self.motions)):
            for picture in motion.draw(longer, f"{DEMO}/{take}", name, "test"):
                yield Shot(picture, next(frames) / motion.FPS, 1 / motion.FPS, name=name)
