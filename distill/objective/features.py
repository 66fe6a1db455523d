"""Losses on features: the student's, led to the teacher's width where they differ, should equal the teacher's.

`student` and `teacher` name one thing each, or lists of the same length; over several pairs it is the sum. What is
learnt is one module for each pair, and nothing where the shapes are equal. Where one side is finer in frames or places
it is averaged (distill.objective.pairs says how), so that none of these depends on the number of clips or frames.

Shape legend: B clips, T frames, D or C channels, H and W places.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.pairs import Channels, Pair, averaged, channels, length, linked, total, width
from distill.outputs import Clips, StudentOutput, TeacherOutput

KINDS = ("cosine", "smooth_l1")


def mse(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "logits",
    teacher: Any = "logits",
    learnt: nn.Module | None = None,
) -> Tensor:
    """Mean squared error, of the logits or of any features; those of different width through a linear layer."""
    return total(F.mse_loss(*pair.meet(link)) for pair, link in linked("mse", said, taught, student, teacher, learnt))


def feature(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "latent",
    teacher: Any = "feature",
    kind: str = "cosine",
    learnt: nn.Module | None = None,
) -> Tensor:
    """The student's embedding should be the teacher's, through a linear layer where their widths differ.

    kind=cosine is 1 - cosine, so lengths do not count; smooth_l1 is a mean over the channels, and they do.
    """
    if kind not in KINDS:
        raise UserError(f"objective.feature.kind is {kind!r}; known: {', '.join(KINDS)}")

    def compare(mine: Tensor, other: Tensor) -> Tensor:
        if kind == "smooth_l1":
            return F.smooth_l1_loss(mine, other)
        return 1 - F.cosine_similarity(mine, other, channels(mine)).mean()

    return total(compare(*pair.meet(link)) for pair, link in linked("feature", said, taught, student, teacher, learnt))


def projection(pair: Pair, **options: Any) -> nn.Module | None:
    """A linear layer over the channels, where their numbers differ."""
    mine, other = (width(thing) for thing in pair.levelled())
    return None if mine == other else Channels(mine, other)


def hint(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any,
    teacher: Any,
    normalise: bool = False,
    relu: bool = True,
    learnt: nn.Module | None = None,
) -> Tensor:
    """FitNets' hint: mean squared error of intermediate features, led to the teacher's shape. Usual weight 100.

    Maps go through a convolution, batch norm and, unless relu=false (for a teacher with negative values), a ReLU;
    vectors through a linear layer. With normalise each clip's features get length 1 first, and their squared
    differences are summed, not averaged; usual weight then: 10.
    """

    def compare(mine: Tensor, other: Tensor) -> Tensor:
        if not normalise:
            return F.mse_loss(mine, other)
        gap = F.normalize(mine.flatten(1)) - F.normalize(other.flatten(1))
        return gap.square().sum(1).mean()

    found = linked("hint", said, taught, student, teacher, learnt)
    return total(compare(*pair.meet(link, places=False)) for pair, link in found)


def regressor(pair: Pair, relu: bool, **options: Any) -> nn.Module | None:
    """From the student's shape to the teacher's: along each axis as big, twice as big, or smaller by whole places."""
    mine, other = pair.levelled(places=False)
    if mine.shape == other.shape:
        return None
    if mine.dim() < 4:
        return Channels(width(mine), width(other))
    sizes = list(zip(mine.shape[2:], other.shape[2:], strict=True))
    layer: type[nn.Module]
    if all(big >= small for big, small in sizes):
        layer = nn.Conv3d if mine.dim() == 5 else nn.Conv2d
        shapes = [(3, 2, 1) if big == 2 * small else (1 + big - small, 1, 0) for big, small in sizes]
    elif all(big in (small, 2 * small) for small, big in sizes):
        layer = nn.ConvTranspose3d if mine.dim() == 5 else nn.ConvTranspose2d
        shapes = [(1, 1, 0) if small == big else (4, 2, 1) for small, big in sizes]
    else:
        raise pair.refusal("the student's map has to be larger than the teacher's, as large, or half as large")
    norm = nn.BatchNorm3d if mine.dim() == 5 else nn.BatchNorm2d
    kernel, stride, padding = zip(*shapes, strict=True)
    after = [norm(width(other)), *([nn.ReLU()] if relu else [])]
    return nn.Sequential(layer(width(mine), width(other), kernel, stride, padding), *after)


def temporal(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any,
    teacher: Any,
    learnt: nn.Module | None = None,
) -> Tensor:
    """Motion and not appearance: what changes from frame to frame should change as it does in the teacher.

    Features of frames are compared by their differences between neighbours, so what is the same in all frames says
    nothing. The loss is the length of the path that student minus teacher takes through a clip (the sum over
    neighbours of the root mean square over channels), mean over clips: a path is as long with more frames along it.
    Maps are averaged over the picture; where one side has more frames they are averaged in time; where the widths
    differ the student's go through a linear layer without a constant.
    """

    def compare(pair: Pair, link: nn.Module) -> Tensor:
        mine, other = (frames.diff(dim=1) for frames in _frames(pair))
        mine = link(mine)
        if mine.shape != other.shape:
            raise pair.refusal()
        gaps = length(mine - other) / math.sqrt(width(other))
        return gaps.sum(1).mean()

    return total(compare(*each) for each in linked("temporal", said, taught, student, teacher, learnt))


def motion_projection(pair: Pair, **options: Any) -> nn.Module | None:
    mine, other = (width(frames) for frames in _frames(pair))
    return None if mine == other else Channels(mine, other, bias=False)


def _frames(pair: Pair) -> tuple[Tensor, Tensor]:
    """Both as [B,T,D], of two frames or more."""
    mine, other = pair.reduced(3)
    frames = min(mine.shape[1], other.shape[1])
    if frames < 2:
        raise pair.refusal("there is no motion in a single frame")
    return averaged(mine, 1, frames), averaged(other, 1, frames)


def vid(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any,
    teacher: Any,
    learnt: nn.Module | None = None,
) -> Tensor:
    """Variational information distillation (Ahn 2019): how surprised the student is by the teacher's features.

    It learns to predict them, and for each channel how wrong it expects to be: mean of half of
    (prediction - feature)^2 / variance + log variance, which may be below 0. Usual weight 1.
    """

    def compare(pair: Pair, link: nn.Module) -> Tensor:
        mine, other = pair.levelled()
        mean, variance = link(mine)
        surprise: Tensor = (mean - other).square() / variance + variance.log()
        return 0.5 * surprise.mean()

    return total(compare(*each) for each in linked("vid", said, taught, student, teacher, learnt))


class Forecast(nn.Module):
    """Predicts the teacher's channels from the student's at the same place, and the variance of its error."""

    LEAST, AT_FIRST = 1e-5, 5.0  # variance

    def __init__(self, given: int, wanted: int) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            Channels(given, wanted, bias=False),
            nn.ReLU(),
            Channels(wanted, wanted, bias=False),
            nn.ReLU(),
            Channels(wanted, wanted, bias=False),
        )
        start = math.log(math.expm1(self.AT_FIRST - self.LEAST))  # softplus turns it into the variance at first
        self.scale = nn.Parameter(torch.full((wanted,), start))

    def forward(self, thing: Tensor) -> tuple[Tensor, Tensor]:
        variance = F.softplus(self.scale) + self.LEAST
        return self.mean(thing), variance.view(-1, *[1] * (thing.dim() - 2)) if thing.dim() > 3 else variance


def forecast(pair: Pair, **options: Any) -> nn.Module:
    return Forecast(*(width(thing) for thing in pair.levelled()))
