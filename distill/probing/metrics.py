"""What answers are worth: everything from one ranking and one table of counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from distill.evaluate import counts
from distill.probing.base import Array
from distill.probing.moments import Moments

IMPOSSIBLE = float(np.finfo(np.float32).eps)  # what a share of 0 counts as, whatever a classifier reckons in


@dataclass(frozen=True)
class PerClass:
    """Arrays over the classes; 0 where nothing was to find, or nothing was said."""

    precision: Array
    recall: Array
    f1: Array
    support: Array

    @staticmethod
    def of(table: Array, lost: Array | int = 0) -> PerClass:
        """From counts [true class, answer]; `lost` counts each class's clips that gave no answer."""
        right, said, true = table.diagonal(), table.sum(0), table.sum(1) + lost
        precision, recall = _share(right, said), _share(right, true)
        return PerClass(precision, recall, _share(2 * precision * recall, precision + recall), true)


def _share(part: Array, whole: Array) -> Array:
    found: Array = np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
    return found


def ranks(truth: Array, scores: Array) -> Array:
    """How many classes score above the true one; of equals the first counts as above, as argmax has it."""
    own = scores[np.arange(len(truth)), truth][:, None]
    earlier = np.arange(scores.shape[1]) < truth[:, None]
    found: Array = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return found


def measures(
    truth: Array, scores: Array, shares: Array | None = None, unanswered: Array | None = None
) -> Iterator[tuple[str, float]]:
    """`scores` [N,K]; `shares` are probabilities, where the classifier has them.

    `unanswered` are labels of further clips that gave no answer, which is wrong; log-loss and precision are about
    answers and leave them out, but for a class's weight.
    """
    place, classes = ranks(truth, scores), scores.shape[1]
    table = counts(truth, scores.argmax(1), classes)
    each = PerClass.of(table, 0 if unanswered is None else np.bincount(unanswered, minlength=classes))
    clips = each.support.sum()
    present, weight = each.support > 0, each.support / clips
    seen = present | (table.sum(0) > 0)  # what neither is there nor was said does not count, as scikit-learn has it
    yield "top1", float((place == 0).sum() / clips)
    if classes > 5:
        yield "top5", float((place < 5).sum() / clips)
    yield "balanced_accuracy", float(each.recall[present].mean())
    for name in ("precision", "recall", "f1"):
        values = getattr(each, name)
        yield f"{name}_macro", float(values[seen].mean())
        yield f"{name}_weighted", float((values * weight).sum())
    if shares is not None:
        own = shares[np.arange(len(truth)), truth].astype(np.float64)
        yield "log_loss", float(-np.log(own.clip(min=IMPOSSIBLE)).mean())


def interval(right: int, of: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's, of a share."""
    z = norm.ppf(0.5 + confidence / 2)
    share, weight = right / of, 1 / (1 + z**2 / of)
    middle = weight * (share + z**2 / (2 * of))
    reach = weight * z * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    return float(middle - reach), float(middle + reach)


def variances(sums: Moments) -> Array:
    """Of rows, along their principal axes, the largest first."""
    found: Array = np.linalg.eigvalsh(sums.centred / sums.rows)[::-1].clip(min=0)
    return found


def effective_rank(variances: Array) -> float:
    """The exponential of their entropy (Roy and Vetterli 2007): how many axes are in use."""
    shares = variances[variances > 0] / variances.sum() if variances.sum() > 0 else np.ones(1)
    return float(np.exp(-(shares * np.log(shares)).sum()))
