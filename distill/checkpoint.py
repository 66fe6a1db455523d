"""What a run leaves behind: checkpoints to go on from, and the student it made.

A student is a folder, RUN/student, of the form that the Hub knows: model.safetensors, config.json and README.md; see
distill/hub.py. Nothing is ever unpickled into code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from distill import plugins
from distill.errors import UserError
from distill.files import publish, publish_text
from distill.hub import CARD, CONFIG, WEIGHTS, DistilledStudent, read_config, unfetched
from distill.outputs import ClipSpec, Student
from distill.surroundings import surroundings
from distill.weights import digest_facts, digest_file
from distill.widths import Widths

KEEP = 2


@dataclass(frozen=True)
class StudentCard:
    """How to build a student again."""

    options: dict[str, Any]  # of its plug-in, with the plug-in's name
    classes: list[str]
    spec: ClipSpec
    widths: Widths = field(default_factory=dict)
    """Of the layers that pruning made narrower than the options do."""
    sparse: list[str] = field(default_factory=list)
    """The tensors whose zeros stay zeros."""


def build_student(options: Any, classes: int) -> Student:
    student: Student = plugins.build("student", options, classes=classes)
    return student


def blank_student(options: Any, classes: int) -> Student:
    """The same network for who wants to know its shape, or has weights for it: no pretrained ones are fetched."""
    return build_student(unfetched(options), classes)


def outline(options: Any, classes: int) -> Student:
    """The network without memory, for who asks for its shapes alone; random numbers stay as they are."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return blank_student(options, classes)


def copy_student(student: Student, card: StudentCard) -> Student:
    """A trained student as load_student will give it: on the CPU, without what training put around its parts."""
    return _distilled(student, card, {}).student.eval()


def save_student(
    run: Path,
    student: Student,
    card: StudentCard,
    summary: Mapping[str, Any] | None = None,
    splits: Mapping[str, int] | None = None,
) -> None:
    """Keep a student in RUN/student. Its model card tells of RUN/recipe.yaml, the run's figures and its clips."""
    recipe = run / "recipe.yaml"
    facts = {
        "recipe": OmegaConf.to_container(OmegaConf.load(recipe)) if recipe.exists() else {},
        "summary": {name: value for name, value in (summary or {}).items() if not isinstance(value, list)},
        "splits": dict(splits or {}),
        "made": surroundings(),
    }
    kept, folder = _distilled(student, card, facts), run / "student"
    publish_text(folder / CARD, str(kept.generate_model_card()))  # the mixin leaves a card alone that is there
    kept.save_pretrained(folder)


def _distilled(student: Student, card: StudentCard, facts: dict[str, Any]) -> DistilledStudent:
    kept = DistilledStudent(asdict(card)["options"], list(card.classes), facts, card.widths, card.sparse)
    kept.fill(student.state_dict(), "the trained student")
    return kept


def student_folder(where: Path) -> Path:
    """Where the student of a run is; a folder that holds a student itself, from the Hub for one, is one too."""
    for folder in (where / "student", where):
        if (folder / CONFIG).is_file():
            return folder
    missing = where / "student" / CONFIG
    raise UserError(f"{where} holds no finished student ({missing} is missing); train it first, or name another run")


def read_card(run: Path) -> StudentCard:
    found = read_config(student_folder(run))
    return StudentCard(found["options"], found["classes"], ClipSpec(**found["spec"]), found["widths"], found["sparse"])


def load_student(run: Path) -> Student:
    return DistilledStudent.from_pretrained(student_folder(run)).student


def fingerprint_student(run: Path) -> str:
    """Of the weights, and of what they are built into; a change of the plug-in's own code is not seen."""
    card = asdict(read_card(run))  # what pruning did to it shows in the weights
    return digest_file(student_folder(run) / WEIGHTS) + digest_facts(
        {part: card[part] for part in ("options", "classes", "spec")}
    )


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
