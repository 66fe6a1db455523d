"""From latents to shares of classes: a fitted probe, or a student's own classifier; neither is unpickled.

Shape legend: N clips, L latent width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.errors import UserError


@dataclass(frozen=True)
class Classifier:
    kind: str
    classes: list[str]
    width: int
    encoder: str  # id of the student whose latents it knows
    shares: Callable[[np.ndarray], np.ndarray]  # float32 [N,L] -> [N,K]
    calibrated: bool  # whether the shares are meant as probabilities


def open_classifier(name: str, encoder: str = "") -> Classifier:
    """A file is a probe, a folder a run."""
    if not name:
        raise UserError("classifier= is missing; say classifier=RUN/probe/PROBE.safetensors, or classifier=RUN")
    path = Path(name)
    if not path.exists():
        raise UserError(f"classifier={path}: there is no such file or folder; distill probe run=RUN fits classifiers")
    return _head(path, encoder) if path.is_dir() else _probe(path, encoder)


def _probe(path: Path, encoder: str) -> Classifier:
    from distill.probing.base import softmax  # scikit-learn takes its time
    from distill.probing.saved import encoder_id, load_probe

    saved = load_probe(path)
    made_by = encoder or encoder_id(saved.about)
    if not made_by:
        raise UserError(f"{path} does not say whose latents it knows; fit it again, or say encoder=ID")

    def shares(latents: np.ndarray) -> np.ndarray:
        scores = saved.probe.scores(latents)
        found = saved.probe.shares(scores)
        return softmax(scores) if found is None else found

    probe, blank = saved.probe, np.zeros((1, saved.probe.n_features_in_), np.float32)
    calibrated = probe.shares(probe.scores(blank)) is not None
    return Classifier(type(probe).__name__, list(saved.classes), len(blank[0]), made_by, shares, calibrated)


def _head(run: Path, encoder: str) -> Classifier:
    import torch

    from distill.checkpoint import fingerprint_student, student_folder
    from distill.hub import DistilledStudent

    loaded = DistilledStudent.from_pretrained(student_folder(run))
    student = loaded.student.eval()
    with torch.inference_mode():
        spec = student.spec
        blank = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
        width = student(blank).latent.shape[1]

    def shares(latents: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = student.classify(torch.from_numpy(latents)).double().softmax(1).numpy()
        return found

    name = type(student).__name__
    return Classifier(name, list(loaded.classes), width, encoder or fingerprint_student(run), shares, True)
