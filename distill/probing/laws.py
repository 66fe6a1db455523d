"""What each classifier's work consists of, by the number of rows, of features and of classes.

Constants were measured with tools/bench_probe_costs.py; where work depends on the data (steps to an optimum, depths of
trees) they are those of made-up latents that no classifier gets all right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from distill.probing.base import ROWS, Setting
from distill.probing.descent import MOST_STEPS
from distill.probing.kernels import AT_ONCE
from distill.probing.neighbours import SIDE
from distill.probing.work import DOUBLE, SINGLE, Law, Size, Work, linear, together

CALL = Work(passes=1e5)  # what anything takes, however small
STARTED = Work(passes=5e8)  # loading what PyTorch's optimisers need
MET = 4.5  # passes over a row's products with others in which its nearest are found

# ------------------------------------------------------------ from sums


class FromSums(Law):
    """Sums once, then for each fold a tridiagonal matrix that serves all settings."""

    def fit(self, rows: float, setting: Setting) -> Work:
        return _sums(rows, self.size) + _system(self.size)

    def search(self) -> Work:
        return _paths(self.size, len(self.settings))

    def memory(self) -> Mapping[str, float]:
        return {"sums of the folds": _sums_bytes(self.size)}


def _sums(rows: float, size: Size) -> Work:
    """Of rows, by class, and products of features; in double precision."""
    return Work(2 * rows * size.width**2, 3 * rows * size.width + size.classes * size.width)


def _system(size: Size) -> Work:
    width = size.width
    return CALL + Work(10 * width**3 + 8 * width**2 * size.classes, 10 * width**2)


def _paths(size: Size, settings: int) -> Work:
    turned = Work(2 * size.tested * size.width**2, 4 * size.tested * size.width)
    one = CALL + linear(size.tested, size) + Work(passes=10 * size.width * size.classes)
    return _sums(size.rows, size) + size.folds * (_system(size) + turned + settings * one)


def _sums_bytes(size: Size) -> float:
    square = DOUBLE * (size.width + size.classes) * size.width
    chunk = DOUBLE * min(ROWS, size.rows) * size.width
    return (size.folds + 6) * square + chunk + 3 * SINGLE * size.tested * (size.width + size.classes)


class Landmarks(Law):
    """A map for each fold and gamma, then ridge regression on what it shows."""

    def _mapped(self, rows: float) -> Size:
        return replace(self.size, width=round(min(self.settings[0]["landmarks"], rows)))

    def fit(self, rows: float, setting: Setting) -> Work:
        mapped = self._mapped(rows)
        return self._map(mapped) + self._see(rows, mapped) + _sums(rows, mapped) + _system(mapped)

    def _map(self, mapped: Size) -> Work:
        return CALL + Work(40 * mapped.width**3)

    def _see(self, rows: float, mapped: Size) -> Work:
        count, width = mapped.width, self.size.width
        return Work(2 * rows * count * (width + count), 6 * rows * count + 3 * rows * width)

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        mapped = self._mapped(learnt)
        return self._see(rows, mapped) + linear(rows, mapped)

    def search(self) -> Work:
        size, maps = self.size, self.apart("alpha")
        mapped = replace(self._mapped(size.training), rows=round(size.training), held_out=round(size.tested), folds=1)
        path = _paths(mapped, len(self.settings) // len(maps))
        seen = self._see(size.training + size.tested, mapped)
        return size.folds * len(maps) * (self._map(mapped) + seen + path)

    def memory(self) -> Mapping[str, float]:
        size, mapped = self.size, replace(self._mapped(self.size.rows), folds=1)
        return {
            "copies of the rows": (SINGLE + DOUBLE) * size.rows * size.width,
            f"a map to {mapped.width} landmarks": 2.0 * SINGLE * size.rows * mapped.width,
            "sums of the rows": _sums_bytes(mapped),
        }


# ------------------------------------------------------------ neighbours


class Nearest(Law):
    """All folds in one pass over pairs of rows, of which a product serves both."""

    def fit(self, rows: float, setting: Setting) -> Work:
        return CALL

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        return Work(2 * rows * learnt * self.size.width, MET * rows * learnt) + self._votes(rows, setting)

    def _votes(self, rows: float, setting: Setting) -> Work:
        return CALL + Work(passes=rows * (10 * setting["n_neighbors"] + 5 * self.size.classes))

    def search(self) -> Work:
        size = self.size
        pairs = size.held_out * (size.rows - size.held_out / 2)
        votes = together(self._votes(size.tested, setting) for setting in self.settings)
        return Work(2 * pairs * size.width, MET * size.held_out * size.rows) + size.folds * votes

    def memory(self) -> Mapping[str, float]:
        size = self.size
        most = max(setting["n_neighbors"] for setting in self.settings)
        return {
            "copies of the rows": 2.0 * SINGLE * size.rows * size.width,
            "products of rows": 2.5 * SINGLE * min(SIDE, size.rows) ** 2,
            "the nearest": 2.0 * (SINGLE + DOUBLE) * max(size.held_out, size.test) * most,
        }


# ------------------------------------------------------------ steps to an optimum


class Descent(Law):
    """Steps of two products with all rows; folds share their sums."""

    looks: float  # passes over the scores in a step

    def steps(self, reach: float) -> float:
        """By how much the loss weighs: C x rows."""
        raise NotImplementedError

    def fit(self, rows: float, setting: Setting) -> Work:
        return _sums(rows, self.size) + self._descent(rows, setting)

    def _descent(self, rows: float, setting: Setting) -> Work:
        width, classes = self.size.width, self.size.classes
        products = 4.7 * rows * width * classes + 16 * width**2 * classes
        step = Work(products, 1e6 + self.looks * rows * classes)
        return Work(2 * width**3, 2e6) + self.steps(setting["C"] * rows) * step

    def search(self) -> Work:
        size = self.size
        return _sums(size.rows, size) + size.folds * together(
            self._descent(size.training, setting) + self.scores(size.tested, size.training, setting)
            for setting in self.settings
        )

    def memory(self) -> Mapping[str, float]:
        size = self.size
        return {
            "copies of the rows": 2.0 * SINGLE * size.rows * size.width,
            "scores of the rows": 4.0 * SINGLE * size.rows * size.classes,
            "sums of the folds": _sums_bytes(size),
        }


class Hinge(Descent):
    looks = 18.0

    def steps(self, reach: float) -> float:
        return min(MOST_STEPS, 1 + 3.5 * math.pow(max(20, self.size.classes), -0.2) * math.pow(reach, 0.53))


class Entropy(Descent):
    looks = 11.0

    def steps(self, reach: float) -> float:
        return min(MOST_STEPS, 1 + 1.8 * math.pow(self.size.width, 0.3) * math.pow(reach, 0.34))


class Network(Law):
    """Batches forth and back, each with a step of all weights."""

    def fit(self, rows: float, setting: Setting) -> Work:
        batch: float = min(rows, setting["batch"])
        steps: float = setting["epochs"] * math.ceil(rows / batch)
        seen = batch * (self.size.width + setting["width"] * (2 + 6 * setting["blocks"]) + self.size.classes)
        weights = self._weights(setting)
        return CALL + steps * (CALL + Work(6 * batch * weights, 5 * weights + 3 * seen))

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        return Work(2 * rows * self._weights(setting), rows * (self.size.width + 6 * setting["width"]))

    def search(self) -> Work:
        return STARTED + super().search()

    def _weights(self, setting: Setting) -> float:
        inside = 2 * setting["blocks"] * setting["width"]
        return float(setting["width"] * (self.size.width + inside + self.size.classes))

    def memory(self) -> Mapping[str, float]:
        size, weights = self.size, max(self._weights(setting) for setting in self.settings)
        return {
            "copies of the rows": 3.0 * SINGLE * size.rows * size.width,
            "the network": 5 * SINGLE * weights + 2e8,
        }


# ------------------------------------------------------------ pairs of classes


class Pairs(Law):
    """libsvm: a machine for each pair of classes, whose kernel is reckoned anew."""

    def fit(self, rows: float, setting: Setting) -> Work:
        classes = self.size.classes
        return CALL + Work(16 * rows**2 * self.size.width, 12 * rows**2 + 6e3 * classes**2)

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        classes = self.size.classes
        return Work(44 * rows * learnt * self.size.width, rows * (1.5 * learnt * classes + 4 * classes**2))

    def memory(self) -> Mapping[str, float]:
        size, pairs = self.size, self.size.classes * (self.size.classes - 1) / 2
        return {
            "copies of the rows": size.rows * (size.width * (2.0 * SINGLE + 2 * DOUBLE) + size.classes * 2 * DOUBLE),
            "kernels": min(2e8, DOUBLE * (2 * size.rows / size.classes) ** 2),
            f"scores of {pairs:.0f} pairs of classes": (2 * DOUBLE + 1) * min(size.test, AT_ONCE) * pairs,
        }


# ------------------------------------------------------------ trees


def tree(rows: float, features: float, classes: float, leaf: float) -> float:
    """Nanoseconds: on each level every row is sorted by every feature, and at each of them Gini's index is taken over
    all classes; there are more levels where classes have few rows."""
    levels = math.log2(max(2.0, rows / leaf))
    sorting = 4.7 * math.log2(max(2.0, rows)) * levels
    judging = 3.15 * classes * (1 + 3 * classes / rows) * max(1.0, levels - 2 + 2 / leaf)  # none where leaves are near
    return rows * features * (sorting + judging) + 3000 * _nodes(rows, leaf) + 5e5


def _nodes(rows: float, leaf: float) -> float:
    return rows * min(1.15, 1.4 / leaf)


class OneTree(Law):
    """All depths from one."""

    def fit(self, rows: float, setting: Setting) -> Work:
        size = self.size
        return CALL + Work(splits=tree(rows, size.width, size.classes, setting["min_samples_leaf"]))

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        return CALL + Work(passes=rows * (50 + 2 * self.size.classes))

    def search(self) -> Work:
        size = self.size
        fits = together(self.fit(size.training, setting) for setting in self.apart("max_depth"))
        read = together(self.scores(size.tested, size.training, setting) for setting in self.settings)
        return size.folds * (fits + read)

    def memory(self) -> Mapping[str, float]:
        leaf = min(setting["min_samples_leaf"] for setting in self.settings)
        return {
            "copies of the rows": SINGLE * self.size.rows * self.size.width,
            "shares of nodes": 2 * DOUBLE * _nodes(self.size.rows, leaf) * self.size.classes,
        }


class Trees(Law):
    """A forest; all numbers of trees from one."""

    def fit(self, rows: float, setting: Setting) -> Work:
        size, drawn = self.size, 0.632 * rows  # different ones of so many that are drawn
        one = tree(drawn, math.sqrt(size.width), size.classes, setting["min_samples_leaf"])
        return CALL + Work(splits=setting["n_estimators"] * one)

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        return CALL + Work(passes=setting["n_estimators"] * (1e5 + rows * (50 + 2 * self.size.classes)))

    def search(self) -> Work:
        size = self.size
        return size.folds * together(
            self.fit(size.training, setting) + self.scores(size.tested, size.training, setting)
            for setting in self.apart("n_estimators")
        )

    def memory(self) -> Mapping[str, float]:
        size, leaf = self.size, min(setting["min_samples_leaf"] for setting in self.settings)
        count = max(setting["n_estimators"] for setting in self.settings)
        nodes = _nodes(size.rows, leaf)
        return {
            "copies of the rows": 2.0 * SINGLE * size.rows * size.width,
            f"leaf tables of {count} trees x {size.classes} classes": nodes * (DOUBLE * size.classes + 64) * count,
        }


class Rounds(Law):
    """XGBoost on principal axes: in each round a tree for each class; all numbers of rounds from one fit."""

    def fit(self, rows: float, setting: Setting) -> Work:
        return self._binned(rows, setting) + self._rounds(rows, setting)

    def _binned(self, rows: float, setting: Setting) -> Work:
        width, kept = self.size.width, self._kept(setting)
        axes = Work(rows * width**2 + 20 * width**3) if kept < width else Work()
        return CALL + axes + Work(2 * rows * width * kept, 4 * rows * width + 20 * rows * kept)

    def _kept(self, setting: Setting) -> int:
        return min(int(setting["components"]) or self.size.width, self.size.width)

    def _rounds(self, rows: float, setting: Setting) -> Work:
        trees: float = setting["n_estimators"] * self.size.classes
        level = 1.2e5 + rows * (4 + 0.72 * self._kept(setting))
        return trees * Work(passes=3 * rows, splits=setting["max_depth"] * level)

    def scores(self, rows: float, learnt: float, setting: Setting) -> Work:
        walked = rows * self.size.classes * setting["n_estimators"] * setting["max_depth"]
        return CALL + Work(2 * rows * self.size.width * self._kept(setting), walked)

    def search(self) -> Work:
        size, fits, rows = self.size, self.apart("n_estimators"), self.size.training
        binned = {(setting["components"], setting["max_bin"]): self._binned(rows, setting) for setting in fits}
        path = together(self._rounds(rows, setting) + self.scores(size.tested, rows, setting) for setting in fits)
        return size.folds * (together(binned.values()) + path)

    def memory(self) -> Mapping[str, float]:
        size, kept = self.size, max(self._kept(setting) for setting in self.settings)
        trees = max(setting["n_estimators"] for setting in self.settings) * size.classes
        return {
            "copies of the rows": size.rows * (16.0 * size.width + 3 * SINGLE * kept),
            "gradients": 5.0 * SINGLE * size.rows * size.classes,
            f"{trees} trees": 2e4 * trees,
        }


LAWS: dict[str, type[Law]] = {
    "ridge": FromSums,
    "lda": FromSums,
    "knn": Nearest,
    "svm": Hinge,
    "svm_rbf": Pairs,
    "logistic_regression": Entropy,
    "nystroem": Landmarks,
    "decision_tree": OneTree,
    "random_forest": Trees,
    "xgboost": Rounds,
    "mlp": Network,
}
