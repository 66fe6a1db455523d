"""The student that turns clips into latents, whichever file or run it comes from, and the name of its weights.

Shape legend: K clips, T frames, S side of what the model sees, L latent width.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from distill.deploy.recogniser import Recogniser, open_any
from distill.errors import UserError


class Encoder:
    def __init__(self, path: Path, threads: int) -> None:
        if not path.exists():
            raise UserError(
                f"model={path}: there is no such file or folder; distill export run=DIR makes exported files"
            )
        self.recogniser: Recogniser = open_any(path, "encoder", threads)
        self.card = self.recogniser.card
        if self.card.form != "encoder":
            raise UserError(f"{path} gives classes, no latents; export the student with form=encoder")
        self.id = _identity(path, self.card.origin)

    def __call__(self, clips: np.ndarray) -> tuple[np.ndarray, float]:
        """uint8 [K,T,S,S,3] -> float32 [K,L], and the milliseconds that a clip took."""
        started = time.perf_counter()
        latents = self.recogniser.clips(clips)
        return latents, (time.perf_counter() - started) * 1000 / len(clips)


def _identity(path: Path, origin: dict[str, str]) -> str:
    if path.is_dir():
        from distill.checkpoint import fingerprint_student  # torch, which a run needs anyway

        return fingerprint_student(path)
    if not origin.get("student"):
        raise UserError(f"{path}.json does not say which student was exported (origin.student); export it again")
    return origin["student"]
