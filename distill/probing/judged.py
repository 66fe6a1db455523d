"""What is found about a table of latents, as the pages about it read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.probing.base import Array
from distill.probing.metrics import effective_rank, variances
from distill.probing.moments import Moments
from distill.probing.table import LatentTable

AXES = 64  # whose shares of the variance are told


@dataclass(frozen=True)
class Judged:
    """A table, what its latents are like, and what classifiers make of them."""

    name: str
    table: LatentTable
    latents: Mapping[str, Any]
    probes: Mapping[str, Mapping[str, Any]]  # found, by classifier
    said: Mapping[str, Array]  # int64 [N]: each classifier's answers about the test rows
    teaches: bool = False  # whether these are latents of a teacher, which the others are measured by


def latent_facts(table: LatentTable) -> dict[str, Any]:
    """What the latents of the training split are like, as JSON has it."""
    train = table.splits["train"]
    sums = Moments.of(train.latent, train.label, len(table.classes))
    along, mean = variances(sums), sums.shift + sums.mean
    whole = float(along.sum())
    return {
        "width": table.width,
        "effective_rank": effective_rank(along),
        "variances": [_share(float(variance), whole) for variance in along[:AXES]],
        "spread": _share(whole**0.5, (whole + float(mean @ mean)) ** 0.5),
        "between": _share(_between(sums), whole),
        "rows": {name: len(split.label) for name, split in table.splits.items()},
    }


def _between(sums: Moments) -> float:
    """The variance of the means of the rows' classes."""
    there = sums.count > 0
    away = sums.total[there] / sums.count[there, None] - sums.mean
    return float(sums.count[there] @ (away**2).sum(1) / sums.rows)


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
