"""Grown trees as plain arrays, whoever grew them.

scikit-learn and XGBoost walk wherever a tree's arrays point, outside of memory too: here nothing is walked that was not
checked. And a leaf tells of the classes that came to it only, where scikit-learn's has a number for every class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xgboost

from distill.probing.base import Array, chunks, take
from distill.probing.plain import smallest

DEEPEST = 1000
AT_ONCE = 1 << 20  # leaves' shares looked up at once


@dataclass(frozen=True)
class Nodes:
    """Trees one after another. Children are places in their own tree, after their parent; a leaf has 0 for both."""

    sizes: Array  # int64 [T] nodes of each tree
    left: Array  # int32 [M]
    right: Array  # int32 [M]
    feature: Array  # int32 [M], 0 of a leaf
    value: Array  # float32 [M]: where a node parts rows; of XGBoost's leaves, what they say

    @staticmethod
    def joined(trees: Sequence[Sequence[Array]]) -> Nodes:
        """From children, features and values of each tree; a leaf has no child above 0."""
        left, right, feature, value = (np.concatenate(parts) for parts in zip(*trees, strict=True))
        inner = left > 0
        left, right, feature = (np.where(inner, part, 0).astype(np.int32) for part in (left, right, feature))
        return Nodes(np.array([len(tree[0]) for tree in trees]), left, right, feature, value.astype(np.float32))

    @staticmethod
    def of(arrays: Mapping[str, Array], features: int) -> Nodes:
        """What was learnt, if every walk from a root ends at a leaf."""
        value = take(arrays, "value", "f", None)
        limit = len(value) + 1  # of a number of nodes, or of a place
        sizes = take(arrays, "sizes", "u", None, below=limit).astype(np.int64)
        limits = {"left": limit, "right": limit, "feature": features}
        left, right, feature = (
            take(arrays, name, "u", len(value), below=below).astype(np.int32) for name, below in limits.items()
        )
        found = Nodes(sizes, left, right, feature, value.astype(np.float32))
        found.check()
        return found

    def arrays(self) -> dict[str, Array]:
        whole = {"sizes": self.sizes, "left": self.left, "right": self.right, "feature": self.feature}
        return {"value": self.value, **{name: smallest(value) for name, value in whole.items()}}

    @property
    def starts(self) -> Array:
        starts: Array = np.cumsum(self.sizes) - self.sizes
        return starts

    def check(self) -> None:
        if not len(self.sizes) or self.sizes.min() < 1 or self.sizes.sum() != len(self.left):
            raise ValueError("trees have other sizes than their nodes")
        start, size = np.repeat(self.starts, self.sizes), np.repeat(self.sizes, self.sizes)
        inner, own = (self.left > 0) | (self.right > 0), np.arange(len(start)) - start
        children = np.stack([self.left, self.right])[:, inner]
        if (children <= own[inner]).any() or (children >= size[inner]).any():
            raise ValueError("a tree leads out of itself or back")
        parents = np.bincount((children + start[inner]).ravel(), minlength=len(start))
        if not np.array_equal(parents, own > 0):
            raise ValueError("a tree has nodes that belong to none or to two")
        level, depth = self.starts, 0
        while len(level := level[inner[level]]):
            level = np.concatenate([start[level] + self.left[level], start[level] + self.right[level]])
            if (depth := depth + 1) > DEEPEST:
                raise ValueError(f"a tree is deeper than {DEEPEST}")


@dataclass(frozen=True)
class Grown:
    """A forest of scikit-learn's, or one tree."""

    nodes: Nodes
    count: Array  # int64 [L] classes that came to each leaf
    place: Array  # int32 [E] which
    share: Array  # float64 [E] and how much of the leaf each is
    classes: int

    @staticmethod
    def of(model: Any, classes: int) -> Grown:
        """Of a tree or a forest of scikit-learn's."""
        if isinstance(model, Grown):
            return model
        trees = [one.tree_ for one in getattr(model, "estimators_", [model])]
        nodes = Nodes.joined(
            [(tree.children_left, tree.children_right, tree.feature, _single(tree.threshold)) for tree in trees]
        )
        counts, places, shares = [], [], []
        for tree in trees:
            table = tree.value[tree.children_left < 0, 0]
            leaf, place = np.nonzero(table)
            counts.append(np.bincount(leaf, minlength=len(table)))
            places.append(place.astype(np.int32))
            shares.append(table[leaf, place])
        return Grown(nodes, np.concatenate(counts), np.concatenate(places), np.concatenate(shares), classes)

    @staticmethod
    def restored(arrays: Mapping[str, Array], features: int, classes: int) -> Grown:
        nodes = Nodes.of(arrays, features)
        count = take(arrays, "count", "u", int((nodes.left == 0).sum()), below=classes + 1).astype(np.int64)
        place = take(arrays, "place", "u", int(count.sum()), below=classes).astype(np.int32)
        share = take(arrays, "share", "f", len(place)).astype(np.float64)
        return Grown(nodes, count, place, share, classes)

    def arrays(self) -> dict[str, Array]:
        found = {"count": smallest(self.count), "place": smallest(self.place), "share": self.share}
        return {**self.nodes.arrays(), **found}

    @cached_property
    def _leaf(self) -> Array:
        """[M] which leaf a node is."""
        return (np.cumsum(self.nodes.left == 0) - 1).astype(np.int32)

    @cached_property
    def _first(self) -> Array:
        """[L] where a leaf's shares begin."""
        return np.cumsum(self.count) - self.count

    def predict_proba(self, X: Array) -> Array:
        """The trees' shares, added in their order as scikit-learn does."""
        rows, trees = X.astype(np.float32), len(self.nodes.sizes)
        found = np.empty((len(rows), self.classes))
        for part in chunks(len(rows), max(1, AT_ONCE // max(trees * int(self.count.max()), self.classes))):
            leaf = self._leaf[self._ends(rows[part])]
            count = self.count[leaf]
            steps = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            entry = np.repeat(self._first[leaf], count) + steps
            row = np.repeat(np.arange(len(leaf)) // trees, count)
            shape = part.stop - part.start, self.classes
            total = np.bincount(
                row * self.classes + self.place[entry], self.share[entry], minlength=shape[0] * shape[1]
            )
            found[part] = total.reshape(shape) / trees
        return found

    def _ends(self, rows: Array) -> Array:
        """[N T] the leaf, as a place among all nodes, where each tree ends for each row."""
        nodes = self.nodes
        start = np.tile(nodes.starts, len(rows))
        row, at = np.repeat(np.arange(len(rows)), len(nodes.sizes)), start.copy()
        walking = np.flatnonzero(nodes.left[at])
        while len(walking):
            node = at[walking]
            near = rows[row[walking], nodes.feature[node]] <= nodes.value[node]
            at[walking] = start[walking] + np.where(near, nodes.left[node], nodes.right[node])
            walking = walking[nodes.left[at[walking]] > 0]
        return at


def _single(threshold: Array) -> Array:
    """The next number in single precision that is not above: rows, in single precision too, fall on the same side."""
    near = threshold.astype(np.float32)
    return np.where(near > threshold, np.nextafter(near, np.float32(-np.inf)), near)


def boosted_arrays(booster: xgboost.Booster) -> dict[str, Array]:
    learner = json.loads(booster.save_raw("json"))["learner"]
    trees = learner["gradient_booster"]["model"]["trees"]
    names = ("left_children", "right_children", "split_indices", "split_conditions")
    nodes = Nodes.joined([[np.array(tree[name]) for name in names] for tree in trees])
    base = json.loads(learner["learner_model_param"]["base_score"])
    return {**nodes.arrays(), "base": np.atleast_1d(np.array(base, np.float32))}


def booster_of(
    arrays: Mapping[str, Array], features: int, classes: int, parameters: Mapping[str, Any]
) -> xgboost.Booster:
    """From a round's trees, one for each class, after another's."""
    nodes, base = Nodes.of(arrays, features), take(arrays, "base", "f", classes)
    count = len(nodes.sizes)
    if count % classes:
        raise ValueError(f"{count} trees are no whole rounds of {classes}")
    model = {
        "gbtree_model_param": {"num_trees": str(count), "num_parallel_tree": "1"},
        "iteration_indptr": list(range(0, count + 1, classes)),
        "tree_info": [place % classes for place in range(count)],
        "trees": list(_trees(nodes, features)),
        "cats": {"enc": [], "feature_segments": [], "sorted_idx": []},
    }
    shape = {"num_class": str(classes), "num_feature": str(features), "num_target": "1", "boost_from_average": "1"}
    learner = {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "gradient_booster": {"name": "gbtree", "model": model},
        "learner_model_param": {**shape, "base_score": json.dumps(_short(base))},
        "objective": {"name": "multi:softprob", "softmax_multiclass_param": {"num_class": str(classes)}},
    }
    booster = xgboost.Booster(dict(parameters))
    booster.load_model(bytearray(json.dumps({"version": [3, 2, 0], "learner": learner}).encode()))
    return booster


def _trees(nodes: Nodes, features: int) -> Iterator[dict[str, Any]]:
    """As XGBoost's JSON has them."""
    inner, start = nodes.left > 0, np.repeat(nodes.starts, nodes.sizes)
    parents = np.full(len(inner), 2**31 - 1)
    for children in (nodes.left, nodes.right):
        parents[(start + children)[inner]] = (np.arange(len(inner)) - start)[inner]
    columns = {
        "left_children": np.where(inner, nodes.left, -1).tolist(),
        "right_children": np.where(inner, nodes.right, -1).tolist(),
        "parents": parents.tolist(),
        "split_indices": nodes.feature.tolist(),
        "split_conditions": _short(nodes.value),
        **dict.fromkeys(("split_type", "default_left"), [0] * len(inner)),
        **dict.fromkeys(("base_weights", "loss_changes", "sum_hessian"), [0.0] * len(inner)),
    }
    nothing: dict[str, list[int]] = {f"categories{name}": [] for name in ("", "_nodes", "_segments", "_sizes")}
    for place, (at, size) in enumerate(zip(nodes.starts.tolist(), nodes.sizes.tolist(), strict=True)):
        shape = {"num_nodes": size, "num_feature": features, "num_deleted": 0, "size_leaf_vector": 1}
        found = {name: column[at : at + size] for name, column in columns.items()}
        yield {"id": place, "tree_param": {name: str(value) for name, value in shape.items()}, **found, **nothing}


def _short(single: Array) -> list[float]:
    """With no more digits than single precision needs: XGBoost's reader may stumble over more."""
    found: list[float] = single.astype(np.float32).astype("U32").astype(np.float64).tolist()
    return found
