"""Losses on maps, which keep where and when something is: [B,C,H,W] or [B,C,T,H,W].

`student` and `teacher` name one map each, or lists of the same length; over several pairs it is the sum.

Shape legend: B clips, C channels, T frames, H and W places, N = H*W.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.errors import UserError
from distill.objective.pairs import Pair, averaged, length, pairs, total, width
from distill.outputs import Clips, StudentOutput, TeacherOutput


def attention(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any,
    teacher: Any,
    power: float = 2.0,
    norm: bool = False,
    rows: bool = False,
) -> Tensor:
    """Attention transfer (Zagoruyko 2017): where the student is active should be where the teacher is.

    A map of attention is the sum over channels of |activation|^power, flattened over T*H*W and of length 1. The finer
    map is averaged to the coarser one. The loss is the mean squared difference, which falls as maps grow (usual weight
    1000), or with norm, as in the paper, the mean over clips of the difference's length, which does not. With rows the
    teacher's map is one of attention already: [B,T,H,W], or [B,T,N] with N places of a square.
    """
    if power < 1:
        raise UserError(f"objective.attention.power is {power}; it is at least 1")

    def compare(pair: Pair) -> Tensor:
        maps = [_video(pair, pair.student), _rows(pair) if rows else _video(pair, pair.teacher)]
        for axis in (2, 3, 4):
            size = min(video.shape[axis] for video in maps)
            maps = [averaged(video, axis, size) for video in maps]
        mine, other = maps
        other = other if rows else other.abs().pow(power)
        gap = _unit(mine.abs().pow(power)) - _unit(other)
        return length(gap).mean() if norm else gap.square().mean()

    return total(compare(pair) for pair in pairs("attention", said, taught, student, teacher))


def _unit(video: Tensor) -> Tensor:
    """[B,C,T,H,W] -> [B,T*H*W]: summed over channels, of length 1."""
    return F.normalize(video.sum(1).flatten(1))


def _video(pair: Pair, found: Tensor) -> Tensor:
    """A map as [B,C,T,H,W]."""
    if found.dim() not in (4, 5):
        raise pair.refusal("attention is of maps, [B,C,H,W] or [B,C,T,H,W]")
    return found if found.dim() == 5 else found[:, :, None]


def _rows(pair: Pair) -> Tensor:
    """The teacher's map of attention as [B,1,T,H,W]."""
    found = pair.teacher
    if found.dim() == 3 and (side := isqrt(found.shape[2])) ** 2 == found.shape[2]:
        found = found.reshape(*found.shape[:2], side, side)
    if found.dim() != 4:
        raise pair.refusal("with rows=true the teacher's is [B,T,H,W], or [B,T,N] with N places of a square")
    return found[:, None]


def reviewkd(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any,
    teacher: Any,
    learnt: nn.Module | None = None,
) -> Tensor:
    """Knowledge review (Chen 2021): each of the teacher's maps is learnt from the student's at that depth and deeper.

    Name both sides' maps from input to output. From the deepest on, the student's are blended with what came before
    (learnt; a single pair of the same shape is left as it is). Each result is compared in full and averaged to 4, 2
    and 1 places along a side; time is averaged to the smaller number of frames first. Usual weight 1 to 5.
    """
    found = pairs("reviewkd", said, taught, student, teacher)
    levels = [pair.levelled(places=False) for pair in found]
    reviewed = [mine for mine, _ in levels] if learnt is None else learnt(levels)
    for pair, mine, (_, other) in zip(found, reviewed, levels, strict=True):
        if mine.shape != other.shape or mine.dim() < 4:
            raise pair.refusal()
    return total(pyramid(mine, other) for mine, (_, other) in zip(reviewed, levels, strict=True))


def pyramid(mine: Tensor, other: Tensor) -> Tensor:
    """Mean squared error of two maps in full, half of it of them as 4 x 4, a quarter as 2 x 2 ...; over all weights."""
    value, weights, weight = F.mse_loss(mine, other), 1.0, 1.0
    for side in (4, 2, 1):
        if side < mine.shape[-2]:
            weight /= 2
            weights += weight
            small, wanted = (averaged(averaged(video, -2, side), -1, side) for video in (mine, other))
            value = value + weight * F.mse_loss(small, wanted)
    return value / weights


def review(
    said: StudentOutput,
    taught: TeacherOutput | None,
    training: Sequence[int],
    /,
    *,
    student: Any,
    teacher: Any,
    **options: Any,
) -> nn.Module | None:
    """What reviewkd learns."""
    found = pairs("reviewkd", said, taught, student, teacher)
    levels = [pair.levelled(places=False) for pair in found]
    for pair, (mine, _) in zip(found, levels, strict=True):
        if mine.dim() != levels[0][0].dim() or mine.dim() < 4:
            raise pair.refusal("reviewkd is of maps, either all [B,C,H,W] or all [B,C,T,H,W]")
    if len(levels) == 1 and levels[0][0].shape == levels[0][1].shape:
        return None
    return Review(levels)


class Review(nn.Module):
    """Pairs of maps, from input to output -> the student's, each of the shape of its teacher's."""

    WIDEST = 512

    def __init__(self, levels: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        deepest = levels[-1][0]
        inner, flat = min(self.WIDEST, width(deepest)), deepest.dim() == 4
        self.levels = nn.ModuleList(
            Level(width(mine), inner, width(other), flat, deepest=mine is deepest) for mine, other in levels
        )

    def forward(self, levels: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        found: list[Tensor] = []
        review: Tensor | None = None
        for level, (mine, other) in reversed(list(zip(self.levels, levels, strict=True))):
            result, review = level(mine, review, other.shape[2:])
            found.append(result)
        return found[::-1]


class Level(nn.Module):
    """A map, blended place by place with the review of the deeper ones, is the review at this depth."""

    def __init__(self, given: int, inner: int, wanted: int, flat: bool, deepest: bool) -> None:
        super().__init__()
        conv: type[nn.Module] = nn.Conv2d if flat else nn.Conv3d
        norm: type[nn.Module] = nn.BatchNorm2d if flat else nn.BatchNorm3d
        # Frame by frame: a clip with more frames is no other clip.
        kernel, padding = (3, 1) if flat else ((1, 3, 3), (0, 1, 1))
        self.narrow = nn.Sequential(conv(given, inner, 1, bias=False), norm(inner))
        self.shares = None if deepest else nn.Sequential(conv(2 * inner, 2, 1), nn.Sigmoid())
        self.widen = nn.Sequential(conv(inner, wanted, kernel, padding=padding, bias=False), norm(wanted))

    def forward(self, mine: Tensor, review: Tensor | None, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The map of the teacher's width and size, and the review."""
        mine = self.narrow(mine)
        if self.shares is not None:
            assert review is not None
            review = F.interpolate(review, mine.shape[2:])
            shares = self.shares(torch.cat([mine, review], 1))
            mine = mine * shares[:, :1] + review * shares[:, 1:]
        review = F.interpolate(mine, size)
        return self.widen(review), review
