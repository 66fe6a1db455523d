"""The sum of weighted losses. The only place that weighs."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.objective.losses import LEARNT, LOSSES
from distill.objective.schedule import read_course
from distill.objective.terms import moving, own_options
from distill.outputs import Clips, Student, StudentOutput, TeacherOutput

OF_STUDENT = ("latent", "logits")  # what every student gives without being asked
OF_TEACHER = ("feature", "logits")
Terms = Mapping[str, Any]


def live(terms: Terms) -> dict[str, Any]:
    """The terms that act at some time."""
    return {name: term for name, term in terms.items() if read_course(term.weight, f"objective.{name}.weight").ever}


def needs_teacher(terms: Terms) -> bool:
    return any(LOSSES[name].teacher for name in live(terms))


def named(term: Any, side: str) -> list[str]:
    """What a term's option `student` or `teacher` names: nothing, one, or several."""
    given = getattr(term, side, ())
    return [given] if isinstance(given, str) else list(given)


def student_names(name: str, term: Any) -> list[str]:
    """What has to be asked of the student for a term."""
    return [*sorted(LOSSES[name].want), *(item for item in named(term, "student") if item not in OF_STUDENT)]


def teacher_maps(terms: Terms) -> list[str]:
    """The teacher's maps that the objective looks at."""
    found = [*(item for term in live(terms).values() for item in [*named(term, "teacher"), *term.members])]
    return [item for item in dict.fromkeys(found) if item not in OF_TEACHER]


def check_features(terms: Terms, student: Student) -> None:
    """Whether the student has the features that the terms name."""
    known = [*student.feature_names, *OF_STUDENT, "reconstruction"]
    for name, term in live(terms).items():
        for item in named(term, "student"):
            if item not in known:
                raise UserError(
                    f"objective.{name}.student is {item!r}, which this student does not have; it has {', '.join(known)}"
                )


def check_mixable(terms: Terms) -> None:
    """Whether the terms can do with clips that are mixed of two."""
    for name in live(terms):
        if LOSSES[name].hard:
            raise UserError(
                f"objective.{name} needs clips that are one thing each; set train.mixup and train.cutmix to 0"
            )


class Objective(nn.Module):
    """Terms of a recipe: loss name -> weight and the loss's options. What the losses learn are its parts."""

    def __init__(self, terms: Terms, epoch_steps: int = 1) -> None:
        super().__init__()
        self.terms = live(terms)
        if not self.terms:
            raise UserError("objective has no term with a weight; try objective.cross_entropy.weight=1")
        self.courses = {
            name: {
                option: read_course(getattr(term, option), f"objective.{name}.{option}", epoch_steps)
                for option in ("weight", *moving(name))
            }
            for name, term in self.terms.items()
        }
        for name, term in self.terms.items():
            if term.members and not (LOSSES[name].logits and min(term.members.values()) > 0):
                able = ", ".join(sorted(other for other, loss in LOSSES.items() if loss.logits))
                raise UserError(f"objective.{name}.members: weights above 0, and only for {able}")
        self.parts = nn.ModuleDict()

    def check_times(self, steps: int) -> None:
        """Whether there is something to learn at every step."""
        turns = {0}.union(*({c["weight"].after, c["weight"].until} for c in self.courses.values()))
        for step in sorted(turn for turn in turns if turn < steps):
            if not self.weights(int(step)):
                raise UserError(f"objective: no term acts at step {int(step) + 1}; see the weights' after and until")

    def meet(self, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, training: Sequence[int]) -> None:
        """Make what the losses learn, and let each term say something about an example: what is wrong shows now.

        `training` are the indices of the clips that will be trained on.
        """
        for name, term in self.terms.items():
            with _told(name):
                part = LOSSES[name].learns(said, taught, training, **own_options(term))
            if part is not None:
                self.parts[name] = part.to(said.logits.device)
        trial = copy.deepcopy(self)  # a memory would remember the example
        for name in self.terms:
            with torch.no_grad(), _told(name):
                trial._value(name, said, taught, clips, 0)

    def weights(self, step: int) -> dict[str, float]:
        """The weights of the terms that act at this step."""
        weights = {name: courses["weight"].at(step) for name, courses in self.courses.items()}
        return {name: weight for name, weight in weights.items() if weight}

    def want(self, step: int) -> Collection[str]:
        """What to ask of the student beyond logits and latent."""
        return {item for name in self.weights(step) for item in student_names(name, self.terms[name])}

    def forward(
        self, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, step: int = 0
    ) -> dict[str, Tensor]:
        """Every term that acts at this step, raw."""
        return {name: self._value(name, said, taught, clips, step) for name in self.weights(step)}

    def _value(self, name: str, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, step: int) -> Tensor:
        options = own_options(self.terms[name]) | {
            option: course.at(step) for option, course in self.courses[name].items() if option != "weight"
        }
        if name in self.parts:
            options[LEARNT] = self.parts[name]
        loss, members = LOSSES[name], self.terms[name].members
        if not members:
            return loss(said, taught, clips, **options)
        assert taught is not None
        each = [loss(said, replace(taught, logits=taught.maps[member]), clips, **options) for member in members]
        shares = torch.tensor([*members.values()], dtype=each[0].dtype, device=each[0].device)
        return (torch.stack(each) * shares).sum() / shares.sum()


@contextmanager
def _told(name: str) -> Iterator[None]:
    """torch's complaints about shapes, as an error of the term."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UserError(f"objective.{name}: {str(error).splitlines()[0]}") from error
