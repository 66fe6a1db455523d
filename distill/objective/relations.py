"""Losses on relations: clips should lie to each other as they do in the teacher. Widths may differ; nothing is learnt.

`student` and `teacher` name one thing each, or lists of the same length; over several pairs it is the sum. Whatever
has more axes is flattened to a vector. Relations are those among the clips of one process's part of a batch.

Shape legend: B clips, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.objective.pairs import length, pairs, total
from distill.outputs import Clips, StudentOutput, TeacherOutput

TINY = 1e-12


def rkd_distance(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "latent",
    teacher: Any = "feature",
    normalise: bool = False,
) -> Tensor:
    """Relational distillation (Park 2019) of distances: smooth L1 of distances between clips, mean over pairs of clips.

    Distances are in units of the batch's mean distance; with normalise those of vectors of length 1. Usual weight 25.
    """

    def relation(vectors: Tensor) -> Tensor:
        """[B,B]; a difference of squared lengths would be no distance for neighbours far from the origin."""
        found = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        return found / (found.sum() / found.count_nonzero().clamp(min=1)).clamp(min=TINY)

    return total(
        F.smooth_l1_loss(relation(mine), relation(other))
        for mine, other in _vectors("rkd_distance", said, taught, student, teacher, normalise)
    )


def rkd_angle(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "latent",
    teacher: Any = "feature",
    normalise: bool = False,
) -> Tensor:
    """Relational distillation (Park 2019) of angles: smooth L1 of the cosines in every triangle of clips.

    Mean over triples; memory grows with B^2 (B + width). Usual weight 50.
    """

    def relation(vectors: Tensor) -> Tensor:
        """[B,B,B]: at each clip, the cosine between the ways to two others; 0 where two are the same."""
        ways = vectors[None] - vectors[:, None]
        lengths = length(ways)
        ways = torch.where(lengths > TINY, ways / lengths.clamp(min=TINY), 0)
        return ways @ ways.mT

    return total(
        F.smooth_l1_loss(relation(mine), relation(other))
        for mine, other in _vectors("rkd_angle", said, taught, student, teacher, normalise)
    )


def pkt(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "latent",
    teacher: Any = "feature",
) -> Tensor:
    """Probabilistic knowledge transfer (Passalis 2018): each clip's likeness to the others as probabilities, their KL.

    Likeness is (1 + cosine) / 2. The published mean is over all B^2 entries while a row adds up to 1, so the value
    falls as the batch grows; usual weight 30000.
    """
    least = 1e-7

    def relation(vectors: Tensor) -> Tensor:
        vectors = vectors / (length(vectors) + least)
        likeness = (vectors @ vectors.T + 1) / 2
        return likeness / likeness.sum(1, keepdim=True)

    def compare(answer: Tensor, target: Tensor) -> Tensor:
        return (target * ((target + least) / (answer + least)).log()).mean()

    return total(
        compare(relation(mine), relation(other)) for mine, other in _vectors("pkt", said, taught, student, teacher)
    )


def similarity(
    said: StudentOutput,
    taught: TeacherOutput | None,
    clips: Clips,
    /,
    *,
    student: Any = "latent",
    teacher: Any = "feature",
) -> Tensor:
    """Similarity-preserving distillation (SP, 2019): squared difference of clips' scalar products, rows of length 1.

    Divided by B^2 as published, while there are B rows, so the value falls as the batch grows; usual weight 3000.
    """

    def relation(vectors: Tensor) -> Tensor:
        return F.normalize(vectors @ vectors.T)

    return total(
        F.mse_loss(relation(mine), relation(other))
        for mine, other in _vectors("similarity", said, taught, student, teacher)
    )


def _vectors(
    loss: str, said: StudentOutput, taught: TeacherOutput | None, student: Any, teacher: Any, normalise: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Both of each pair as [B,D], with `normalise` of length 1."""
    found = [(pair.student.flatten(1), pair.teacher.flatten(1)) for pair in pairs(loss, said, taught, student, teacher)]
    return [(F.normalize(mine), F.normalize(other)) for mine, other in found] if normalise else found
