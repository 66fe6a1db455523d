"""Whether an exported file says what the student says, in its own runtime, about real clips.

Shape legend: N clips, T frames, K classes, L latent width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from distill.deploy.export_request import Options
from distill.deploy.real_clips import RealClips
from distill.deploy.recogniser import Recogniser
from distill.evaluate import top_shares
from distill.outputs import Student

TOGETHER = 8  # clips that the student is asked about at a time
CLOSE = 1e-3  # how far a file of float32 may be from the student, relative to its largest answer


@dataclass(frozen=True)
class Reference:
    """What the student itself says of clips."""

    clips: RealClips
    answers: np.ndarray  # float32 [N,K], of an encoder [N,L]


@torch.no_grad()
def ask_student(student: Student, clips: RealClips, form: str) -> Reference:
    """In torch, as it was trained; of a stream, what the whole clip gets."""
    rows = []
    for at in range(0, len(clips), TOGETHER):
        answer = student(torch.from_numpy(clips.frames[at : at + TOGETHER]).movedim(-1, 2))
        rows.append(answer.latent if form == "encoder" else answer.logits)
    return Reference(clips, torch.cat(rows).numpy())


def compare(recogniser: Recogniser, reference: Reference) -> dict[str, float]:
    """How far the file is from the student; top-1 where clips have labels."""
    frames, wanted = reference.clips.frames, reference.answers
    said = _played(recogniser, frames) if recogniser.streams else recogniser.clips(frames)
    found = {"clips": len(said), "max_error": float(np.abs(said - wanted).max())}
    found["relative_error"] = found["max_error"] / max(float(np.abs(wanted).max()), 1e-12)
    if recogniser.card.form == "encoder":
        return found | dict(_cosines(said, wanted))
    found["agreement"] = float((said.argmax(1) == wanted.argmax(1)).mean())
    for name, logits in (("top1", said), ("student_top1", wanted)):
        shares = dict(top_shares(reference.clips.labels, logits))
        found |= {name: shares["top1"]} if shares else {}
    return found


def _played(recogniser: Recogniser, clips: np.ndarray) -> np.ndarray:
    """What is said after the last frame of each."""
    rows = []
    for clip in clips:
        recogniser.forget()
        rows.append([recogniser.frame(frame) for frame in clip][-1])
    return np.stack(rows)


def _cosines(said: np.ndarray, wanted: np.ndarray) -> Iterator[tuple[str, float]]:
    lengths = np.linalg.norm(said, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = (said * wanted).sum(1) / np.maximum(lengths, 1e-12)
    yield "cosine", float(cosines.mean())
    yield "least_cosine", float(cosines.min())


def complaint(found: dict[str, float], precision: str, options: Options) -> str:
    """Why a file is refused; empty if it is not."""
    if not np.isfinite(found["max_error"]):
        return "it answers numbers that are not numbers"
    if "cosine" in found and found["cosine"] < options.cosine:
        return f"the cosine between its latents and the student's is {found['cosine']:.4f}, below {options.cosine}"
    if found.get("agreement", 1.0) < options.agreement:
        return (
            f"it names the student's action for {100 * found['agreement']:.1f} % of {found['clips']:.0f} clips, "
            f"fewer than agreement={options.agreement} asks for"
        )
    if precision == "fp32" and found["relative_error"] > CLOSE:
        return f"its answers are up to {found['relative_error']:.1e} away from the student's, relative to the largest"
    return ""
