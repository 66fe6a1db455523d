"""Losses on the answer: what the student's logits are, and what they should be.

The means are over clips. Everything is computed from logits in logarithms, so that answers as certain as they come
leave value and gradient finite.

Shape legend: B clips, K classes, k of them cached. T is the temperature: probabilities are softmax(logits / T).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.pairs import ONLY_LARGEST, length
from distill.objective.schedule import Moving
from distill.outputs import Clips, StudentOutput, TeacherOutput, TopK


def cross_entropy(
    said: StudentOutput, taught: TeacherOutput | None, clips: Clips, /, *, smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy with the labels; clips without a label do not count. Mixed clips have a share of two labels."""
    if not 0 <= smoothing <= 1:
        raise UserError(f"objective.cross_entropy.smoothing is {smoothing}; it is a share between 0 and 1")

    def each(label: Tensor, weight: Tensor) -> Tensor:
        known = label.clamp(min=0)
        return F.cross_entropy(said.logits, known, reduction="none", label_smoothing=smoothing) * weight

    own, blend = each(clips.label, clips.label_weight), clips.blend
    if blend is None:
        return own.mean()
    return (blend.share * own + (1 - blend.share) * each(blend.label, blend.label_weight)).mean()


def kl(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    temperature: Moving = 4.0,
    standardise: bool = False,
) -> Tensor:
    """Hinton's distillation: T^2 KL(teacher || student) of the softened probabilities, mean over clips.

    With standardise (Sun 2024) both sides' logits first get mean 0 and deviation 1 over the classes; usual then: T=2,
    weight 9. Of cached top-k logits, all classes outside of the teacher's k count as one, on both sides.
    """
    answer, target = _soft("kl", said, taught, temperature, standardise)
    return temperature**2 * _kl(answer, target).mean()


def dkd(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    alpha: Moving = 1.0,
    beta: Moving = 8.0,
    temperature: Moving = 4.0,
    standardise: bool = False,
) -> Tensor:
    """Decoupled distillation (Zhao 2022): T^2 (alpha KL of label against rest + beta KL among the rest).

    Clips without a label do not count. Usual: weight 1 that rises over 20 epochs, beta between 0.5 (T=1) and 8 (T=4).
    Of cached top-k logits, all classes outside of the teacher's k count as one, on both sides; a label among them
    is that one class.
    """
    answer, target = _soft("dkd", said, taught, temperature, standardise)
    if answer.shape[-1] < 3:
        raise UserError("objective.dkd needs three classes or more: beside the label of two there is nothing to weigh")
    assert taught is not None
    label = _place(taught.logits, clips.label.clamp(min=0))
    (answer, mine), (target, theirs) = _decoupled(answer, label), _decoupled(target, label)
    each = alpha * _kl(answer, target) + beta * _kl(mine, theirs)
    return temperature**2 * (each * clips.label_weight).mean()


def dist(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    temperature: Moving = 1.0,
    beta: Moving = 1.0,
    gamma: Moving = 1.0,
) -> Tensor:
    """DIST (Huang 2022): T^2 (beta (1 - correlation over classes) + gamma (1 - correlation over clips)).

    The first is a mean over clips, the second over classes and within a process's part of the batch, so it needs many
    clips. Usual weight 2. Of cached top-k logits, what is outside of the teacher's k is spread evenly, on both sides.
    """
    assert taught is not None
    answer, target = (x.softmax(-1) for x in _soft("dist", said, taught, temperature))
    if isinstance(taught.logits, TopK):
        indices, classes = taught.logits.indices, said.logits.shape[-1]
        answer, target = _spread(answer, indices, classes), _spread(target, indices, classes)
    inter, intra = 1 - _correlation(answer, target).mean(), 1 - _correlation(answer.T, target.T).mean()
    return temperature**2 * (beta * inter + gamma * intra)


def _kl(answer: Tensor, target: Tensor) -> Tensor:
    """[B]: KL(target || answer) of the probabilities that two rows of logits [B,n] stand for."""
    answer, target = F.log_softmax(answer, -1), F.log_softmax(target, -1)
    each: Tensor = F.kl_div(answer, target, reduction="none", log_target=True)
    return each.sum(-1)


def _soft(
    loss: str, said: StudentOutput, taught: TeacherOutput | None, temperature: float, standardise: bool = False
) -> tuple[Tensor, Tensor]:
    """The student's logits and the teacher's over T: [B,K], or [B,k+1] where only k are cached."""
    assert taught is not None
    if temperature <= 0:
        raise UserError(f"objective.{loss}.temperature is {temperature}; it is above 0")
    answer, target = said.logits, taught.logits
    if isinstance(target, TopK):
        if standardise:
            raise UserError(f"objective.{loss}.standardise: {ONLY_LARGEST}")
        return _in_two_parts(loss, target, answer / temperature, temperature)
    if standardise:
        answer, target = _standardised(answer), _standardised(target)
    return answer / temperature, target.detach() / temperature


def _standardised(logits: Tensor) -> Tensor:
    centred = logits - logits.mean(-1, keepdim=True)
    # Not std(), whose gradient is not a number where all logits are equal.
    deviation = length(centred) / math.sqrt(logits.shape[-1] - 1)
    return centred / (deviation + 1e-7)


def _in_two_parts(loss: str, teacher: TopK, soft: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Student and teacher as [B,k+1]: the teacher's largest classes, and all others as one."""
    try:
        rest = teacher.rest_at(temperature, soft.shape[-1])
    except ValueError as error:
        raise UserError(
            f"objective.{loss}.temperature: {error}; raise it, or set cache.top_k to the number of classes"
        ) from error
    others = torch.logsumexp(soft.scatter(-1, teacher.indices, -torch.inf), -1)
    target = torch.cat([teacher.values / temperature, rest[:, None]], -1).detach()
    return torch.cat([soft.gather(-1, teacher.indices), others[:, None]], -1), target


def _place(logits: Tensor | TopK, label: Tensor) -> Tensor:
    """Which column of what _soft gives is a label's."""
    if not isinstance(logits, TopK):
        return label
    same = logits.indices == label[:, None]
    return torch.where(same.any(-1), same.int().argmax(-1), same.shape[-1])


def _decoupled(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B,n] as [B,2], the label's and that of all others as one; and as [B,n-1], the others'."""
    other = torch.arange(logits.shape[-1] - 1, device=label.device).expand(len(label), -1)
    others = logits.gather(-1, other + (other >= label[:, None]))
    return torch.stack([logits.gather(-1, label[:, None])[:, 0], torch.logsumexp(others, -1)], -1), others


def _spread(shares: Tensor, indices: Tensor, classes: int) -> Tensor:
    """[B,k+1] probabilities as [B,K]: the last one is shared out among the classes that are not in `indices`."""
    each = shares[:, -1:] / (classes - indices.shape[-1])
    return each.expand(-1, classes).scatter(-1, indices, shares[:, :-1])


def _correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, row by row; 0 for a row without variance."""
    one, other = one - one.mean(-1, keepdim=True), other - other.mean(-1, keepdim=True)
    products = (one * other).sum(-1, keepdim=True)
    return products / (length(one) * length(other) + 1e-8)
