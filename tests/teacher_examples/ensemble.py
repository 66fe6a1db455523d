"""Two runs that were never trained, of other sizes and with their classes in another order."""

from __future__ import annotations

from pathlib import Path

import torch

from distill import plugins
from distill.checkpoint import StudentCard, build_student, save_student
from teacher_examples import Example
from teacher_examples.student import CLASSES, SMALL

MEMBERS = {"a": (4, 16, CLASSES), "b": (8, 32, [*CLASSES[::-1], "one more"])}  # frames, size, classes


def make(folder: Path) -> Example:
    for seed, (name, (frames, size, classes)) in enumerate(MEMBERS.items()):
        options = plugins.schema("student", "tinyact")(**{**SMALL, "frames": frames, "size": size})
        torch.manual_seed(seed)
        student = build_student(options, len(classes))
        save_student(folder / name, student, StudentCard(dict(vars(options)), classes, student.spec))
    members = [{"name": "student", "run": str(folder / name)} for name in MEMBERS]
    # Of logits, because probabilities among fewer classes are others, and rightly so.
    return Example(
        {"members": members, "average": "logits"},
        CLASSES,
        [folder / name / "student" / "model.safetensors" for name in MEMBERS],
        changes=[
            {"average": "probabilities"},
            {"weights": [1.0, 2.0]},
            {"members": members[:1]},
            {"members": members[::-1]},
        ],
        maps=["1.block2", "0.block2"],
    )
