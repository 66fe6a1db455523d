"""What a run leaves behind: checkpoints to go on from, and the student it made.

A student is two files: `student.safetensors` (weights) and `student.json` (its card: which plug-in, its options, the
classes). Nothing is ever unpickled into code.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from distill import plugins
from distill.errors import UserError
from distill.files import digest, publish, publish_text
from distill.outputs import ClipSpec, Student
from distill.weights import digest_file

KEEP = 2


@dataclass(frozen=True)
class StudentCard:
    """How to build a student again."""

    options: dict[str, Any]  # of its plug-in, with the plug-in's name
    classes: list[str]
    spec: ClipSpec


def build_student(options: Any, classes: int) -> Student:
    student: Student = plugins.build("student", options, classes=classes)
    return student


def save_student(run: Path, student: Student, card: StudentCard) -> None:
    weights = {name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()}
    publish(run / "student.safetensors", lambda part: save_file(weights, part))
    publish_text(run / "student.json", json.dumps(asdict(card), indent=1))


def read_card(run: Path) -> StudentCard:
    path = run / "student.json"
    if not path.exists():
        raise UserError(f"{run} holds no finished student ({path} is missing); train it first, or name another run")
    found = json.loads(path.read_text(encoding="utf-8"))
    return StudentCard(found["options"], found["classes"], ClipSpec(**found["spec"]))


def load_student(run: Path) -> Student:
    card = read_card(run)
    options = plugins.schema("student", card.options["name"])(**card.options)
    student = build_student(options, len(card.classes))
    student.load_state_dict(load_file(run / "student.safetensors"))
    return student


def fingerprint_student(run: Path) -> str:
    """Of the weights and of the card; a change of the plug-in's own code is not seen."""
    read_card(run)
    return digest_file(run / "student.safetensors") + digest(run / "student.json")


def save_checkpoint(run: Path, step: int, state: dict[str, Any]) -> None:
    """Keep the state after `step` steps, and only the newest few."""
    path = run / "checkpoints" / f"step-{step:09d}.pt"
    publish(path, lambda part: torch.save(state, part))
    for old in checkpoints(run)[:-KEEP]:
        old.unlink()


def newest_checkpoint(run: Path) -> dict[str, Any] | None:
    found = checkpoints(run)
    if not found:
        return None
    state: dict[str, Any] = torch.load(found[-1], map_location="cpu", weights_only=True)
    return state


def checkpoints(run: Path) -> list[Path]:
    """Oldest first."""
    return sorted((run / "checkpoints").glob("step-*.pt"))
