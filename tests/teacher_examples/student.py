"""A run that was never trained."""

from __future__ import annotations

from pathlib import Path

import torch

from distill import plugins
from distill.checkpoint import StudentCard, build_student, save_student
from teacher_examples import Example

CLASSES = [f"class {i}" for i in range(5)]
SMALL = {
    "frames": 4,
    "size": 16,
    "widths": [8, 8, 16, 16],
    "strides": [[1, 2, 2], [2, 2, 2], [1, 2, 2], [1, 1, 1]],
    "pool": [1, 1, 1],
    "latent": 16,
    "hidden": 16,
    "blocks": 1,
}


def make(folder: Path) -> Example:
    options = plugins.schema("student", "tinyact")(**SMALL)
    torch.manual_seed(0)
    student = build_student(options, len(CLASSES))
    save_student(folder, student, StudentCard(dict(vars(options)), CLASSES, student.spec))
    saved = folder / "student"
    return Example({"run": str(saved)}, CLASSES, [saved / "model.safetensors"], maps=["block2"])
