"""The sum of weighted losses. The only place that weighs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from distill.errors import UserError
from distill.objective.losses import LOSSES, own_options
from distill.objective.schedule import weight_at
from distill.outputs import Clips, StudentOutput, TeacherOutput


class Objective:
    """Terms of a recipe: loss name -> weight, warm-up and the loss's options. Weight 0 switches a term off."""

    def __init__(self, terms: Mapping[str, Any]) -> None:
        self.terms = {name: term for name, term in terms.items() if term.weight}
        self.options = {name: own_options(term) for name, term in self.terms.items()}
        if not self.terms:
            raise UserError("objective has no term with a weight; try objective.cross_entropy.weight=1")

    @property
    def needs_teacher(self) -> bool:
        return any(LOSSES[name].teacher for name in self.terms)

    @property
    def want(self) -> frozenset[str]:
        """What to ask of the student beyond logits and latent."""
        return frozenset().union(*(LOSSES[name].want for name in self.terms))

    def weights(self, step: int) -> dict[str, float]:
        return {name: weight_at(term.weight, term.warmup_steps, step) for name, term in self.terms.items()}

    def __call__(self, student: StudentOutput, teacher: TeacherOutput | None, clips: Clips) -> dict[str, Tensor]:
        """Every term, raw."""
        return {name: LOSSES[name](student, teacher, clips, **self.options[name]) for name in self.terms}
