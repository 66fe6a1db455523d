"""The sum of weighted losses. The only place that weighs."""

from __future__ import annotations

import copy
import math
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


def named(name: str, term: Any, side: str) -> list[str]:
    """What a term's option `student` or `teacher` names: nothing, one, or several."""
    given = getattr(term, side, ())
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not all(isinstance(item, str) and item for item in names):
        raise UserError(f"objective.{name}.{side} is {given!r}; it is a name, or a list of names")
    return list(names)


def student_names(name: str, term: Any) -> list[str]:
    """What has to be asked of the student for a term."""
    return [*sorted(LOSSES[name].want), *(item for item in named(name, term, "student") if item not in OF_STUDENT)]


def teacher_maps(terms: Terms) -> list[str]:
    """The teacher's maps that the objective looks at."""
    acting = live(terms).items()
    found = [item for name, term in acting for item in [*named(name, term, "teacher"), *term.members]]
    return [item for item in dict.fromkeys(found) if item not in OF_TEACHER]


def check_features(terms: Terms, student: Student) -> None:
    """Whether the student has the features that the terms name."""
    known = [*student.feature_names, *OF_STUDENT, "reconstruction"]
    for name, term in live(terms).items():
        for item in named(name, term, "student"):
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


def check_members(name: str, members: Mapping[str, Any]) -> None:
    """Whether a loss can be averaged over these members of an ensemble."""
    if members and not LOSSES[name].logits:
        able = ", ".join(sorted(other for other, loss in LOSSES.items() if loss.logits))
        raise UserError(f"objective.{name}.members: only for {able}")
    for member, share in members.items():
        if member in OF_TEACHER or isinstance(share, bool) or not isinstance(share, int | float):
            raise UserError(
                f"objective.{name}.members names maps of an ensemble with weights: {{0.logits: 0.7, 1.logits: 0.3}}"
            )
        if not 0 < share < math.inf:
            raise UserError(f"objective.{name}.members.{member} is {share}; it is above 0")


class Objective(nn.Module):
    """Terms of a recipe: loss name -> weight and the loss's options. What the losses learn are its parts."""

    def __init__(self, terms: Terms, epoch_steps: int = 1) -> None:
        super().__init__()
        self.terms = live(terms)
        if not self.terms:
            raise UserError("objective has no term with a weight; try objective.cross_entropy.weight=1")
        self.courses = {
            name: {
                option: read_course(
                    getattr(term, option), f"objective.{name}.{option}", epoch_steps, option == "weight"
                )
                for option in ("weight", *moving(name))
            }
            for name, term in self.terms.items()
        }
        for name, term in self.terms.items():
            check_members(name, term.members)
        self.parts = nn.ModuleDict()

    def check_times(self, steps: int) -> None:
        """Whether there is something to learn at every step, and no term for nothing."""
        for step in self.turns(steps):
            if not self.weights(step):
                raise UserError(f"objective: no term acts at step {step + 1}; see how the weights move")
        for name, courses in self.courses.items():
            if steps and not any(courses["weight"].at(step) for step in self.turns(steps)):
                raise UserError(f"objective.{name} acts at none of the {steps} steps; see its weight's after and until")

    def turns(self, steps: int) -> list[int]:
        """The steps of so many at which anything turns; 0 is one of them."""
        found = {turn for courses in self.courses.values() for course in courses.values() for turn in course.turns}
        return sorted({0} | {turn for turn in found if turn < steps})

    def meet(self, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, training: Sequence[int]) -> None:
        """Make what the losses learn, and let each term say something about an example: what is wrong shows now.

        `training` are the indices of the clips that will be trained on.
        """
        for name, term in self.terms.items():
            with _told(name):
                part = LOSSES[name].learns(said, taught, training, **own_options(term))
            if part is not None:
                self.parts[name] = part.to(said.logits.device)
        trial = copy.deepcopy(self).requires_grad_(False)  # a memory would remember the example
        for name in self.terms:
            with _told(name):
                trial._value(name, said, taught, clips, 0)

    def try_on(self, said: StudentOutput, taught: TeacherOutput | None, clips: Clips, step: int) -> None:
        """Whether every term that acts at this step teaches the student something."""
        trial = copy.deepcopy(self).requires_grad_(False)
        for name in self.weights(step):
            with _told(name):
                if not trial._value(name, said, taught, clips, step).requires_grad:
                    raise UserError(
                        f"objective.{name} acts at step {step + 1} on what schedule keeps as it is: it teaches nothing"
                    )

    def weights(self, step: int) -> dict[str, float]:
        """The weights of the terms that act at this step."""
        weights = {name: courses["weight"].at(step) for name, courses in self.courses.items()}
        return {name: weight for name, weight in weights.items() if weight}

    @property
    def ever_wanted(self) -> Collection[str]:
        return {item for name, term in self.terms.items() for item in student_names(name, term)}

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
