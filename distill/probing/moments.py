"""Sums over training sets, from which ridge regression and discriminant analysis follow without another look at rows.

A fold's training set is the other folds, and its sums are theirs together: ten folds cost what one training set costs.
To take the fold's from the whole's would be less work yet, but would lose the digits below its largest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array

from distill.probing.base import Array, chunks


@dataclass(frozen=True)
class Moments:
    """Sums of rows from which `shift` was taken, so that digits are not lost to a mean far from 0."""

    shift: Array  # [D]
    count: Array  # [K] rows of each class
    total: Array  # [K,D] their sums
    square: Array  # [D,D] products of all rows

    @staticmethod
    def of(X: Array, y: Array, classes: int, shift: Array | None = None) -> Moments:
        if shift is None:
            shift = X.mean(0, dtype=np.float64)
        total, square = np.zeros((classes, X.shape[1])), np.zeros((X.shape[1], X.shape[1]))
        for rows in chunks(len(X)):
            near = X[rows] - shift
            total += _membership(y[rows], classes) @ near
            square += near.T @ near
        return Moments(shift, np.bincount(y, minlength=classes).astype(np.float64), total, square)

    @staticmethod
    def together(parts: Iterable[Moments]) -> Moments:
        first, *others = parts
        count, total, square = first.count.copy(), first.total.copy(), first.square.copy()
        for other in others:
            count += other.count
            total += other.total
            square += other.square
        return Moments(first.shift, count, total, square)

    @property
    def rows(self) -> float:
        return float(self.count.sum())

    @cached_property
    def mean(self) -> Array:
        """Less the shift."""
        mean: Array = self.total.sum(0) / self.rows
        return mean

    @cached_property
    def centred(self) -> Array:
        """[D,D] products of the rows less their mean."""
        centred = np.outer(-self.rows * self.mean, self.mean)
        centred += self.square
        return centred

    @cached_property
    def spread(self) -> Array:
        """[D] standard deviations; 1 where a feature does not vary, as StandardScaler has it."""
        variance = self.centred.diagonal() / self.rows
        noise = np.finfo(np.float64).eps * self.rows
        still = variance <= noise * variance + (noise * self.mean) ** 2
        spread: Array = np.sqrt(np.where(still, 1.0, variance))
        return spread


@dataclass(frozen=True)
class View:
    """How features are seen: less their centre, and over their scale."""

    centre: Array  # [D]
    scale: Array  # [D]
    gram: Array  # [D,D] products of the training rows, so seen
    total: Array  # [K,D] sums of each class
    count: Array  # [K]

    @staticmethod
    def of(moments: Moments, standardise: bool) -> View:
        scale = moments.spread if standardise else np.ones_like(moments.mean)
        total = (moments.total - moments.count[:, None] * moments.mean) / scale
        gram = moments.centred / scale
        gram /= scale[:, None]
        return View(moments.shift + moments.mean, scale, gram, total, moments.count)

    def seen(self, rows: Array) -> Array:
        found: Array = ((rows - self.centre) / self.scale).astype(rows.dtype)
        return found

    def straight(self, weights: Array, constant: Array) -> tuple[Array, Array]:
        """Weights [D,K] on features so seen, as weights [K,D] and constants on features as they are."""
        # Laid out as it will be read from a file: some processors add up in another order what lies otherwise.
        coef = np.ascontiguousarray((weights / self.scale[:, None]).T)
        return coef, constant - coef @ self.centre


def training(X: Array, y: Array, folds: Array, classes: int) -> Callable[[int], Moments]:
    """Of the rows that a fold learns from."""
    shift = X.mean(0, dtype=np.float64)
    parts = {fold: Moments.of(X[folds == fold], y[folds == fold], classes, shift) for fold in np.unique(folds).tolist()}
    return lambda fold: Moments.together(part for other, part in parts.items() if other != fold)


def _membership(y: Array, classes: int) -> csr_array:
    """[K,N], 1 where a row is of the class."""
    return csr_array((np.ones(len(y)), y, np.arange(len(y) + 1)), shape=(len(y), classes)).T
