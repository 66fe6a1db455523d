"""Ridge regression and linear discriminant analysis from sums alone: a whole path costs about what one fit costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import eigh

from distill.probing.base import Array, LinearProbe, Setting, Softmax
from distill.probing.moments import Moments, View, per_fold


class _FromSums(LinearProbe):
    """Weights are (share x matrix + added x unit matrix)^-1 right, so along the matrix's own axes all settings differ
    by a factor."""

    standardise: bool

    def system(self, view: View) -> tuple[Array, Array]:
        """The matrix [D,D] and the right side [D,K]."""
        raise NotImplementedError

    def mixed(self, setting: Setting, matrix: Array) -> tuple[float, float]:
        """What a setting takes of the matrix, and what it adds."""
        raise NotImplementedError

    def constant(self, view: View, right: Array, weights: Array) -> Array:
        """[K], from the right side and the weights along whatever axes."""
        raise NotImplementedError

    def fit_encoded(self, X: Array, y: Array) -> None:
        view = View.of(Moments.of(X, y, len(self.classes_)), self.standardise)
        axes = _Axes(self, view)
        weights, constant = axes.solved({})
        self.coef_, self.intercept_ = view.straight(axes.axes @ weights, constant)

    def cv_path(self, X: Array, y: Array, folds: Array, grid: Sequence[Setting]) -> Array:
        classes, encoded = np.unique(y, return_inverse=True)
        training = per_fold(X, encoded, folds, len(classes))
        found = np.empty((len(grid), len(training)))
        for fold, moments in enumerate(training):
            view, held_out = View.of(moments, self.standardise), folds == fold
            axes = _Axes(self, view)
            turned = (axes.axes / view.scale[:, None]).astype(X.dtype)
            tested, truth = (X[held_out] - view.centre).astype(X.dtype) @ turned, encoded[held_out]
            for place, setting in enumerate(grid):
                weights, constant = axes.solved(setting)
                scores = tested @ weights.astype(X.dtype) + constant.astype(X.dtype)
                found[place, fold] = (scores.argmax(1) == truth).mean()
        return found


class _Axes:
    """A classifier's system along the axes of its matrix."""

    def __init__(self, kind: _FromSums, view: View) -> None:
        self.kind, self.view = kind, view
        self.matrix, right = kind.system(view)
        self.lengths, self.axes = eigh(self.matrix, check_finite=False)
        self.right = self.axes.T @ right

    def solved(self, setting: Setting) -> tuple[Array, Array]:
        """Weights [D,K] along the axes, and constants [K]."""
        share, added = self.kind.mixed(setting, self.matrix)
        length = share * self.lengths + added
        # Where there is no inverse the smallest solution leaves these axes out.
        gone = length <= len(length) * np.finfo(length.dtype).eps * length.max()
        weights = np.where(gone[:, None], 0.0, self.right / np.where(gone, 1.0, length)[:, None])
        return weights, self.kind.constant(self.view, self.right, weights)


class Ridge(_FromSums):
    """RidgeClassifier: least squares on -1 and 1 with a penalty."""

    def __init__(self, alpha: float = 1.0, standardise: bool = True) -> None:
        self.alpha = alpha
        self.standardise = standardise

    def system(self, view: View) -> tuple[Array, Array]:
        return view.gram, 2 * view.total.T

    def mixed(self, setting: Setting, matrix: Array) -> tuple[float, float]:
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

    def mixed(self, setting: Setting, matrix: Array) -> tuple[float, float]:
        shrinkage = setting.get("shrinkage", self.shrinkage)
        return 1 - shrinkage, shrinkage * np.trace(matrix) / len(matrix)

    def constant(self, view: View, right: Array, weights: Array) -> Array:
        with np.errstate(divide="ignore"):  # a class that a fold lacks is never the answer
            found: Array = np.log(view.count / view.count.sum()) - 0.5 * (right * weights).sum(0)
        return found
