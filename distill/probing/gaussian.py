"""Ridge regression and linear discriminant analysis from sums alone: a whole path costs about what one fit costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from scipy.linalg import eigh_tridiagonal, get_lapack_funcs, lapack, solveh_banded

from distill.probing.base import Array, LinearProbe, Setting, Softmax
from distill.probing.moments import Moments, View, training

BLOCK = 64  # reflections at once


class _FromSums(LinearProbe):
    """Weights are (share x matrix + added x unit matrix)^-1 right, so a matrix that is made tridiagonal once serves all
    settings."""

    standardise: bool

    def system(self, view: View) -> tuple[Array, Array]:
        """The matrix [D,D] and the right side [D,K]."""
        raise NotImplementedError

    def mixed(self, setting: Setting, mean: float) -> tuple[float, float]:
        """What a setting takes of the matrix, whose diagonal's mean is given, and what it adds."""
        raise NotImplementedError

    def constant(self, view: View, right: Array, weights: Array) -> Array:
        """[K], from the right side and the weights along whatever axes."""
        raise NotImplementedError

    def fit_encoded(self, X: Array, y: Array) -> None:
        view = View.of(Moments.of(X, y, len(self.classes_)), self.standardise)
        system = _Tridiagonal(self, view)
        weights, constant = system.solved({})
        self.coef_, self.intercept_ = view.straight(system.turned(weights.T, back=True).T, constant)

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        classes, encoded = np.unique(y, return_inverse=True)
        sums = training(X, encoded, folds, len(classes))
        for fold in todo:
            view, held_out = View.of(sums(fold), self.standardise), folds == fold
            system = _Tridiagonal(self, view)
            rows, truth = system.turned(view.seen(X[held_out])), encoded[held_out]
            found = np.empty(len(grid))
            for place, setting in enumerate(grid):
                weights, constant = system.solved(setting)
                scores = rows @ weights.astype(X.dtype) + constant.astype(X.dtype)
                found[place] = (scores.argmax(1) == truth).mean()
            yield fold, found


class _Tridiagonal:
    """A classifier's system along axes on which its matrix is tridiagonal: a quarter of the way to its own axes, and
    what a setting changes is changed there too."""

    def __init__(self, kind: _FromSums, view: View) -> None:
        self.kind, self.view = kind, view
        matrix, right = kind.system(view)
        reflected, self.diagonal, self.beside, tau, _ = lapack.dsytrd(matrix.T, lower=1, lwork=BLOCK * len(matrix))
        # The first axis stays as it is: one reflection more, by nothing, makes them those of a QR decomposition.
        self.reflections, self.tau = np.roll(reflected, 1, axis=1), np.concatenate([[0.0], tau])
        self.right = self.turned(right.T).T

    def turned(self, rows: Array, back: bool = False) -> Array:
        """Rows [N,D] along these axes, in the precision that they have."""
        (turn,) = get_lapack_funcs(("ormqr",), (rows,))
        like, tau = self.reflections.astype(rows.dtype), self.tau.astype(rows.dtype)
        found: Array = turn("R", "T" if back else "N", like, tau, rows, BLOCK * len(rows))[0]
        return found

    def solved(self, setting: Setting) -> tuple[Array, Array]:
        """Weights [D,K] along the axes, and constants [K]."""
        share, added = self.kind.mixed(setting, self.diagonal.mean())
        noise = share * self.noise
        if added > noise:
            bands = np.stack([share * self.diagonal + added, np.append(share * self.beside, 0.0)])
            bands = bands[: len(self.diagonal)]  # of one feature there is nothing beside
            weights = solveh_banded(bands, self.right, lower=True, check_finite=False)
        else:  # where there is no inverse the smallest solution leaves axes out
            lengths, axes = eigh_tridiagonal(self.diagonal, self.beside)
            length = share * lengths + added
            inverse = np.where(length > noise, 1 / np.where(length > noise, length, 1.0), 0.0)
            weights = axes @ (inverse[:, None] * (axes.T @ self.right))
        return weights, self.kind.constant(self.view, self.right, weights)

    @cached_property
    def noise(self) -> float:
        """What rounding makes of axes without a length: a share of the longest, by Gershgorin's bound."""
        beside = np.abs(np.concatenate([[0.0], self.beside, [0.0]]))
        longest = (np.abs(self.diagonal) + beside[1:] + beside[:-1]).max()
        sums = max(len(self.diagonal), self.view.count.sum())
        return float(sums * np.finfo(np.float64).eps * longest)


class Ridge(_FromSums):
    """RidgeClassifier: least squares on -1 and 1 with a penalty."""

    def __init__(self, alpha: float = 1.0, standardise: bool = True) -> None:
        self.alpha = alpha
        self.standardise = standardise

    def system(self, view: View) -> tuple[Array, Array]:
        return view.gram, 2 * view.total.T

    def mixed(self, setting: Setting, mean: float) -> tuple[float, float]:
        return 1.0, setting.get("alpha", self.alpha)

    def constant(self, view: View, right: Array, weights: Array) -> Array:
        share: Array = 2 * view.count / view.count.sum() - 1
        return share


class LDA(_FromSums, Softmax):
    """LinearDiscriminantAnalysis(solver="lsqr", shrinkage=...): classes that share one covariance."""

    def __init__(self, shrinkage: float = 0.1, standardise: bool = True) -> None:
        self.shrinkage = shrinkage
        self.standardise = standardise

    def system(self, view: View) -> tuple[Array, Array]:
        means = view.total / np.maximum(view.count, 1)[:, None]
        return (view.gram - means.T @ view.total) / view.count.sum(), means.T

    def mixed(self, setting: Setting, mean: float) -> tuple[float, float]:
        shrinkage = setting.get("shrinkage", self.shrinkage)
        return 1 - shrinkage, shrinkage * mean

    def constant(self, view: View, right: Array, weights: Array) -> Array:
        with np.errstate(divide="ignore"):  # a class that a fold lacks is never the answer
            found: Array = np.log(view.count / view.count.sum()) - 0.5 * (right * weights).sum(0)
        return found
