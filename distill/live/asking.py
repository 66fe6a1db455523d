"""The model at work, in a thread of its own where the picture must not wait for it; its answers smoothed over time.

Shape legend: K classes.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import dataclass
from typing import Self

import numpy as np

from distill.deploy.recogniser import Recogniser
from distill.live.buffer import Buffer
from distill.live.sight import Question

WAITING = 2  # questions that may lie before a model that is busy
PATIENCE = 10.0  # seconds that the model is given to finish its last answer


@dataclass(frozen=True)
class Prediction:
    probabilities: np.ndarray  # float64 [K], smoothed
    number: int  # of the latest frame that was looked at
    seconds: float
    stream: int
    name: str
    inference_ms: float
    latency_ms: float  # from that frame's capture to the answer

    def best(self, count: int) -> list[tuple[int, float]]:
        """The likeliest classes and their probabilities."""
        order = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(int(place), float(self.probabilities[place])) for place in order]


class Smoothing:
    """An exponential mean of probabilities over time: what is `constant` seconds old counts 1/e of the newest. The
    steps need not be even."""

    def __init__(self, constant: float) -> None:
        self.constant = constant
        self.forget()

    def forget(self) -> None:
        self.mean: np.ndarray | None = None
        self.seconds = 0.0

    def take(self, probabilities: np.ndarray, seconds: float) -> np.ndarray:
        if self.mean is None or not self.constant:
            self.mean = probabilities
        else:
            kept = math.exp(-(seconds - self.seconds) / self.constant)
            self.mean = kept * self.mean + (1 - kept) * probabilities
        self.seconds = seconds
        return self.mean


class Asker:
    """Answers questions in their order while it is entered: each before `ask` returns, or in a thread."""

    def __init__(self, recogniser: Recogniser, smoothing: float, threaded: bool) -> None:
        self.recogniser, self.smoothing = recogniser, Smoothing(smoothing)
        self.answers: queue.SimpleQueue[Prediction] = queue.SimpleQueue()
        self.inbox = Buffer[Question](WAITING)
        self.failure: Exception | None = None
        self._stream, self._asked, self._answered = -1, 0, 0
        self._thread = (
            threading.Thread(target=self._work, daemon=True, name="distill live: model") if threaded else None
        )

    def __enter__(self) -> Self:
        if self._thread:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        return self._asked - self.inbox.dropped > self._answered

    def ask(self, question: Question) -> None:
        if self.failure is not None:
            raise self.failure
        if self._thread is None:
            self.answers.put(self._answer(question))
            return
        self._asked += 1
        self.inbox.put(question)

    def taken(self) -> list[Prediction]:
        """The answers that came since the last time."""
        found = []
        while not self.answers.empty():
            found.append(self.answers.get())
        return found

    def finish(self) -> None:
        """Answer what is still there. Raises what went wrong in the thread."""
        self.close()
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        self.inbox.close()
        if self._thread:
            self._thread.join(PATIENCE)

    def _work(self) -> None:
        try:
            while (question := self.inbox.get()) is not None:
                self.answers.put(self._answer(question))
                self._answered += 1
        except Exception as error:
            self.failure = error

    def _answer(self, question: Question) -> Prediction:
        frame = question.frame
        if frame.stream != self._stream:
            self._stream = frame.stream
            self.recogniser.forget()
            self.smoothing.forget()
        started = time.monotonic()
        ask = self.recogniser.frame if self.recogniser.streams else self.recogniser.clip
        logits = ask(question.pixels)
        now = time.monotonic()
        probabilities = self.smoothing.take(softmax(logits), frame.seconds)
        return Prediction(
            probabilities, frame.number, frame.seconds, frame.stream, frame.name,
            inference_ms=1e3 * (now - started), latency_ms=1e3 * (now - frame.captured),
        )  # fmt: skip


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(powers / powers.sum())
