"""Unstructured pruning: the weights that are nearest to 0 become 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from distill.checkpoint import StudentCard, copy_student
from distill.outputs import Student
from distill.parts import layers


def cut_weights(
    student: Student, card: StudentCard, amount: float, scope: str, keep: Sequence[str]
) -> tuple[Student, StudentCard]:
    """A copy in which this share of the weights that recognise is 0, and its card; biases and norms stay."""
    names = [f"{name}.weight" for name in layers(student, keep)]
    card = replace(card, sparse=sorted({*card.sparse, *names}))
    cut = copy_student(student, card)
    weights = {name: cut.get_parameter(name) for name in names}
    with torch.no_grad():
        for name, gone in smallest(weights, amount, scope).items():
            weights[name].masked_fill_(gone, 0)
    return cut, card


def smallest(weights: Mapping[str, Tensor], amount: float, scope: str) -> dict[str, Tensor]:
    """Where the smallest weights are: this share of all together (global), or of each tensor (layer)."""
    if scope == "layer":
        return {name: _smallest(weight.abs().flatten(), amount).view(weight.shape) for name, weight in weights.items()}
    found = _smallest(torch.cat([weight.abs().flatten() for weight in weights.values()]), amount)
    parts = torch.split(found, [weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}


def _smallest(sizes: Tensor, amount: float) -> Tensor:
    """Exactly this share; of those alike, the first."""
    gone = torch.zeros_like(sizes, dtype=torch.bool)
    gone[sizes.argsort(stable=True)[: round(amount * len(sizes))]] = True
    return gone
