"""Every loss: a pure function (student, teacher, clips, *, options) -> scalar, and one line in the table below.

Keyword-only arguments are the loss's recipe options. A loss is a mean over the clips of its batch, so it does not
change with the batch's size. B clips, K classes; T as in `temperature`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Any, get_type_hints

import torch
from omegaconf import MISSING
from torch import Tensor
from torch.nn import functional as F

from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, StudentOutput, TeacherOutput, TopK


def cross_entropy(
    student: StudentOutput, teacher: TeacherOutput | None, clips: Clips, *, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the labels; clips without a label do not count."""
    if not 0 <= smoothing <= 1:
        raise UserError(f"objective.cross_entropy.smoothing is {smoothing}; it is a share between 0 and 1")
    known = clips.label.clamp(min=0)
    each = F.cross_entropy(student.logits, known, reduction="none", label_smoothing=smoothing)
    return (each * clips.label_weight).mean()


def kl(student: StudentOutput, teacher: TeacherOutput | None, clips: Clips, *, temperature: float = 4.0) -> Tensor:
    """Hinton's distillation: T^2 KL(teacher || student) of the softened probabilities, mean over clips."""
    assert teacher is not None
    if temperature <= 0:
        raise UserError(f"objective.kl.temperature is {temperature}; it is above 0")
    soft = student.logits / temperature
    if isinstance(teacher.logits, TopK):
        target, soft = _in_two_parts(teacher.logits, soft, temperature)
    else:
        target = teacher.logits / temperature
    target, answer = F.log_softmax(target, -1), F.log_softmax(soft, -1)
    return temperature**2 * F.kl_div(answer, target, reduction="batchmean", log_target=True)


def _in_two_parts(teacher: TopK, soft: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Teacher and student as [B,k+1]: the teacher's largest classes, and all others as one."""
    try:
        rest = teacher.rest_at(temperature, soft.shape[-1])
    except ValueError as error:
        raise UserError(
            f"objective.kl.temperature: {error}; raise it, or set cache.top_k to the number of classes"
        ) from error
    others = torch.logsumexp(soft.scatter(-1, teacher.indices, -torch.inf), -1)
    target = torch.cat([teacher.values / temperature, rest[:, None]], -1)
    return target, torch.cat([soft.gather(-1, teacher.indices), others[:, None]], -1)


def reconstruction(student: StudentOutput, teacher: TeacherOutput | None, clips: Clips) -> Tensor:
    """Mean squared error of the student's pictures, which are in [0,1]."""
    if student.reconstruction is None:
        raise UserError("objective.reconstruction needs a student with a decoder; this one gives no reconstruction")
    return F.mse_loss(student.reconstruction, pictures(student.reconstruction, clips))


def pictures(like: Tensor, clips: Clips) -> Tensor:
    """The clips' frames in [0,1], at the size of `like` [B,T,C,H,W]."""
    return ClipSpec(like.shape[1], like.shape[-1]).fit(clips.frames).float() / 255


@dataclass(frozen=True)
class Loss:
    """A loss function and what it asks for beyond logits and latent."""

    function: Callable[..., Tensor]
    teacher: bool = False
    want: frozenset[str] = field(default_factory=frozenset)
    answers: bool = False  # whether it trains the classifier

    def __call__(self, student: StudentOutput, teacher: TeacherOutput | None, clips: Clips, **options: Any) -> Tensor:
        return self.function(student, teacher, clips, **options)


LOSSES: dict[str, Loss] = {
    "cross_entropy": Loss(cross_entropy, answers=True),
    "kl": Loss(kl, teacher=True, answers=True),
    "reconstruction": Loss(reconstruction, want=frozenset({"reconstruction"})),
}


@dataclass
class Term:
    """What every term of an objective has; a loss's own options join it."""

    weight: float = MISSING
    """Factor of this loss in the sum; 0 switches it off."""
    warmup_steps: int = 0
    """Steps over which the weight rises from 0."""


def schema(name: str) -> type[Any]:
    """The recipe options of a loss: those of every term and its keyword-only arguments."""
    if name not in LOSSES:
        raise UserError(f"there is no loss named {name!r}; known: {', '.join(sorted(LOSSES))}")
    hints = get_type_hints(LOSSES[name].function)
    own = [(option, hints[option], field(default=value)) for option, value in defaults(name).items()]
    return make_dataclass(f"{name}.Term", own, bases=(Term,))


def defaults(name: str) -> dict[str, Any]:
    """A loss's own options: its keyword-only arguments."""
    options = inspect.signature(LOSSES[name].function).parameters.values()
    return {option.name: option.default for option in options if option.kind is inspect.Parameter.KEYWORD_ONLY}


def own_options(term: Any) -> dict[str, Any]:
    """A term's options without those that every term has."""
    return {name: value for name, value in vars(term).items() if name not in Term.__dataclass_fields__}
