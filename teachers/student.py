"""Any earlier run of ours as a teacher."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING
from torch import Tensor, nn

from distill.checkpoint import StudentCard, fingerprint_student, load_student, read_card
from distill.outputs import ClipSpec, Student, StudentOutput, TeacherOutput


@dataclass
class Options:
    run: str = MISSING
    """Run folder of the network that teaches, or a folder that holds a student itself, from the Hub for one."""


class StudentTeacher(nn.Module):
    """A trained student in the teacher's chair: its latent is the feature, its features are the maps."""

    def __init__(self, student: Student, card: StudentCard) -> None:
        super().__init__()
        self.student, self.classes, self.spec = student, card.classes, card.spec
        self.map_names = student.feature_names

    def forward(self, frames: Tensor, want: Collection[str] = ()) -> TeacherOutput:
        answer: StudentOutput = self.student(frames, want=want)
        return TeacherOutput(logits=answer.logits, feature=answer.latent, maps=answer.features)


def build(options: Options, classes: Sequence[str]) -> StudentTeacher:
    return StudentTeacher(load_student(Path(options.run)), read_card(Path(options.run)))


def fingerprint(options: Options) -> str:
    return fingerprint_student(Path(options.run))


def wants(options: Options) -> ClipSpec:
    return read_card(Path(options.run)).spec
