"""What is found about a table of latents, as the pages about it read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from distill.probing.base import Array
from distill.probing.metrics import effective_rank, spectrum
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


def latent_facts(table: LatentTable) -> dict[str, Any]:
    """What the latents of the training split are like, as JSON has it."""
    train = table.splits["train"]
    variances, mean = spectrum(train.latent), train.latent.mean(0, dtype=np.float64)
    whole = float(variances.sum())
    return {
        "width": table.width,
        "effective_rank": effective_rank(variances),
        "variances": [_share(float(variance), whole) for variance in variances[:AXES]],
        "spread": _share(whole**0.5, (whole + float(mean @ mean)) ** 0.5),
        "between": _share(_between(train.latent, train.label, mean), whole),
        "rows": {name: len(split.label) for name, split in table.splits.items()},
    }


def _between(latent: Array, label: Array, mean: Array) -> float:
    """The variance of the means of the rows' classes."""
    found = 0.0
    for number in np.unique(label):
        own = latent[label == number]
        away = own.mean(0, dtype=np.float64) - mean
        found += len(own) / len(label) * float(away @ away)
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
