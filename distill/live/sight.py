"""From the frames of a running picture to what a model is asked, cut out and chosen as for the evaluation's plain view.

Shape legend: T frames, H height, W width, S side of what the model sees.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from distill.clips.square import plain
from distill.live.feed import Frame
from distill.live.sources import NOTHING

ABOUT = 1e-3  # seconds; files round the times of their frames to as much
SETTLED = 4  # times as many frames as a clip has: to a model that saw the same one as often, it is nothing new
MOST = 256  # frames that a clip is chosen from: memory stays small however many come


@dataclass(frozen=True)
class Question:
    """What the model is asked about, and the latest frame of it."""

    pixels: np.ndarray  # uint8 RGB: a clip [T,S,S,3], or of a stream the next frame [S,S,3]
    frame: Frame


def chosen(times: np.ndarray, end: float, seconds: float, count: int) -> np.ndarray:
    """Which of the frames shown from these times on are in the middles of `count` equal parts of the `seconds` before
    `end`: of frames that follow each other evenly, those of sampling.uniform."""
    middles = end - seconds + (np.arange(count) + 0.5) * seconds / count
    about = least(seconds / len(times), count)
    return np.clip(np.searchsorted(times, middles + about, side="right") - 1, 0, len(times) - 1)


def least(lasts: float, count: int) -> float:
    """What may be rounding: where frames last so long, a middle of `count` parts is half a `count`-th of that away
    from a frame's beginning, or at it."""
    return min(ABOUT, lasts / (4 * count))


class ClipSight:
    """For a model that sees whole clips: keeps the latest seconds, and asks every so often."""

    def __init__(self, count: int, size: int, seconds: float, every: float) -> None:
        self.count, self.size, self.seconds, self.every = count, size, seconds, every
        self.forget()

    def forget(self) -> None:
        self.kept: deque[tuple[Frame, np.ndarray]] = deque()
        self.due, self.asked = -math.inf, False

    def see(self, frame: Frame, busy: bool) -> list[Question]:
        """What is to be asked now, if the model is not busy."""
        self.kept.append((_lean(frame), plain(frame.picture, self.size)))
        if len(self.kept) > MOST:
            self._thin_out()
        end = frame.seconds + frame.lasts
        while len(self.kept) > 1 and self.kept[1][0].seconds <= end - self.seconds + ABOUT:
            self.kept.popleft()
        if not self._whole(end) or busy or frame.seconds < self.due - ABOUT:
            return []
        late = self.due < frame.seconds - self.every  # the rhythm is lost: by the model, or because this is the first
        self.due = (frame.seconds if late else self.due) + self.every
        return [self._ask(end - self.seconds, end)]

    def latest(self) -> list[Question]:
        """Out of turn: the seconds up to now, if there were as many."""
        if not self.kept:
            return []
        last = self.kept[-1][0]
        end = last.seconds + last.lasts
        return [self._ask(end - self.seconds, end)] if self._whole(end) else []

    def rest(self) -> list[Question]:
        """At the end of a stream that was too short to ask about: all there is of it, as the evaluation does."""
        if self.asked or not self.kept:
            return []
        last = self.kept[-1][0]
        return [self._ask(self.kept[0][0].seconds, last.seconds + last.lasts)]

    def _whole(self, end: float) -> bool:
        return self.kept[0][0].seconds <= end - self.seconds + ABOUT

    def _thin_out(self) -> None:
        """Leave out the frame that is missed least: the one whose neighbours are the closest."""
        times = self._times()
        del self.kept[1 + int((times[2:] - times[:-2]).argmin())]

    def _times(self) -> np.ndarray:
        return np.array([frame.seconds for frame, _ in self.kept])

    def _ask(self, start: float, end: float) -> Question:
        self.asked = True
        places = chosen(self._times(), end, end - start, self.count)
        return Question(np.stack([self.kept[place][1] for place in places]), self.kept[-1][0])


class FrameSight:
    """For a model that goes frame by frame: at the rate it was trained at, however fast the frames come.

    It is shown the frames in the middles of equal parts of time, as in training; one that never came is made up for by
    the next, and one that lasts for several parts is shown as often.
    """

    def __init__(self, count: int, size: int, seconds: float) -> None:
        self.count, self.size, self.step = count, size, seconds / count
        self.forget()

    def forget(self) -> None:
        self.start, self.shown = math.nan, 0  # when the stream began, and for how many parts of time the model was fed
        self.latest: Question | None = None

    def see(self, frame: Frame, busy: bool) -> list[Question]:
        """The frame as often as it is to be shown now; busy or not, since what a stream misses changes its answers."""
        self.start = frame.seconds if math.isnan(self.start) else self.start
        about = least(frame.lasts, self.count)
        before = self._middles_before(frame.seconds - about)
        after = self._middles_before(frame.seconds + frame.lasts - about)
        times = max(1, after - max(before, self.shown)) if after > self.shown else 0
        self.shown = max(self.shown, after)
        if not times and self.shown:
            return []
        question = self.latest = Question(plain(frame.picture, self.size), _lean(frame))
        return [question] * min(times, SETTLED * self.count)

    def rest(self) -> list[Question]:
        """At the end of a stream that was too short for a single part of time: its latest frame."""
        return [self.latest] if self.latest and not self.shown else []

    def _middles_before(self, seconds: float) -> int:
        """How many middles of parts of time come before this moment."""
        return max(0, math.ceil((seconds - self.start) / self.step - 0.5))


def _lean(frame: Frame) -> Frame:
    """The frame without its picture, which is large."""
    return Frame(NOTHING, frame.number, frame.seconds, frame.lasts, frame.stream, frame.name, frame.captured)
