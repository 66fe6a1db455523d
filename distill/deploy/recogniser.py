"""One way to ask for actions, whatever runs underneath: video in, a number for each class out.

Shape legend: N clips, T frames, H height, W width, K classes, L latent width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distill.deploy.card import TORCH, ExportCard, Port, read_export
from distill.deploy.sessions import Session, open_session


@dataclass
class Recogniser:
    """An exported student, running."""

    card: ExportCard
    session: Session
    state: list[np.ndarray] = field(default_factory=list)

    @staticmethod
    def open(file: Path, threads: int = 1) -> Recogniser:
        card = read_export(file)
        return Recogniser(card, open_session(file, card, threads))

    @property
    def streams(self) -> bool:
        return self.card.form == "stream"

    def clip(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB [T,H,W,3] -> logits [K], or of an encoder the latent [L]."""
        logits: np.ndarray = self.clips(frames[None])[0]
        return logits

    def clips(self, frames: np.ndarray) -> np.ndarray:
        """uint8 RGB [N,T,H,W,3] -> float32 [N,K], or of an encoder [N,L]: as many at once as a file takes, in torch
        all."""
        taken, given = self.card.inputs[0], self.card.outputs[0]
        rows = [np.empty((0, *given.shape[1:]), np.float32)]
        for some in groups(frames, max(len(frames), 1) if self.card.format == TORCH else self.card.batch):
            (answer,) = self.session([as_pixels(some, taken)])
            rows.append(as_numbers(answer, given))
        return np.concatenate(rows)[: len(frames)]

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 RGB [H,W,3], the next frame -> logits [K]."""
        answer, *state = self.session([as_pixels(frame[None], self.card.inputs[0]), *(self.state or self.blank())])
        ports = zip(state, self.card.outputs[1:], self.card.inputs[1:], strict=True)
        self.state = [_carried(array, left, taken) for array, left, taken in ports]
        logits: np.ndarray = as_numbers(answer, self.card.outputs[0])[0]
        return logits

    def forget(self) -> None:
        """The next frame is a stream's first."""
        self.state = []

    def blank(self) -> list[np.ndarray]:
        """The state before the first frame."""
        return [as_type(np.zeros(port.shape, np.float32), port) for port in self.card.inputs[1:]]


def open_any(path: Path, form: str = "whole", threads: int = 1) -> Recogniser:
    """An exported file, or the student of a run folder in torch, in this form."""
    if path.is_dir():
        from distill.deploy.forms import open_run  # torch, which exported files do without

        return open_run(path, form, threads)
    return Recogniser.open(path, threads)


def groups(clips: np.ndarray, together: int) -> Iterator[np.ndarray]:
    """So many clips at a time; at the end the last one stands in for those that lack."""
    for first in range(0, len(clips), together):
        some = clips[first : first + together]
        yield some if len(some) == together else clips.take(range(first, first + together), 0, mode="clip")


def as_pixels(frames: np.ndarray, port: Port) -> np.ndarray:
    """Pixels of 0 to 255 as an input wants them."""
    if port.dtype == "int8":  # the scale is 1: see the converter
        return np.bitwise_xor(frames.view(np.int8), np.int8(-128))
    return frames if port.dtype == "uint8" else frames.astype(port.dtype)


def as_numbers(array: np.ndarray, port: Port) -> np.ndarray:
    """What an output means, float32."""
    if not port.scale:
        return array.astype(np.float32)
    return (array.astype(np.float32) - port.zero) * np.float32(port.scale)


def as_type(numbers: np.ndarray, port: Port) -> np.ndarray:
    """float32 as an input wants it."""
    if not port.scale:
        return numbers.astype(port.dtype)
    limits = np.iinfo(port.dtype)
    return np.clip(np.round(numbers / port.scale) + port.zero, limits.min, limits.max).astype(port.dtype)


def _carried(array: np.ndarray, left: Port, taken: Port) -> np.ndarray:
    """State that one call left, as the next one takes it."""
    same: Sequence[object] = (left.dtype, left.scale, left.zero)
    return array if same == (taken.dtype, taken.scale, taken.zero) else as_type(as_numbers(array, left), taken)
