"""The nearest neighbours of every row outside its own fold, found once for all settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from distill.probing.base import Array, Setting, Shares, chunks, take
from distill.probing.device import best_device

METRICS = ("cosine", "euclidean")
WEIGHTS = ("uniform", "distance", "softmax")
SIDE = 8192  # of the squares of distances that are held at once
AT_ONCE = {"cpu": 1 << 21, "cuda": SIDE * SIDE}  # of them, while the nearest are chosen: on a processor from its cache
GROUP = 8
ROUNDING = 16  # times the precision: what a product of long rows may be off


class KNN(Shares):
    """KNeighborsClassifier, and votes weighted by exp(similarity / temperature) as DINO's are."""

    def __init__(
        self, n_neighbors: int = 20, weights: str = "softmax", metric: str = "cosine", temperature: float = 0.07
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.metric = metric
        self.temperature = temperature

    def fit_encoded(self, X: Array, y: Array) -> None:
        self._check([{}])
        self.rows_, self.labels_ = X, y

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self._check([{}])
        self.rows_ = take(arrays, "rows_", "f", None, self.n_features_in_)
        self.labels_ = take(arrays, "labels_", "i", len(self.rows_), below=len(self.classes_))

    def _check(self, grid: Sequence[Setting]) -> None:
        for setting in grid:
            given = {**self.get_params(), **setting}
            for key, known in (("weights", WEIGHTS), ("metric", METRICS)):
                if given[key] not in known:
                    raise ValueError(f"{key}={given[key]!r}; known: {', '.join(known)}")
            if given["n_neighbors"] < 1 or given["temperature"] <= 0:
                raise ValueError("n_neighbors is at least 1 and temperature above 0")

    def decide(self, X: Array) -> Array:
        known = _Seen(self.rows_, self.rows_, self.metric)
        asking = _Seen(X.astype(self.rows_.dtype, copy=False), self.rows_, self.metric)
        nearest = _Nearest(len(X), min(self.n_neighbors, len(self.rows_)), known.rows)
        label, found = torch.from_numpy(self.labels_).to(known.rows.device), []
        for queries in _tiles(0, len(X)):
            for rows in _tiles(0, len(self.rows_)):
                nearest.meet(queries, asking.products(queries, known, rows), known, rows)
            distance = asking.distance(queries, nearest.close[queries])
            found.append(votes(distance, label[nearest.place[queries]], len(self.classes_), self))
        return torch.cat(found).cpu().numpy()

    def cv_path(
        self, X: Array, y: Array, folds: Array, grid: Sequence[Setting], todo: Sequence[int]
    ) -> Iterator[tuple[int, Array]]:
        self._check(grid)
        settings = [type(self)(**{**self.get_params(), **setting}) for setting in grid]
        rows, label, starts = _in_turn(X, y, folds, todo)
        most: dict[str, int] = {}
        for setting in settings:
            most[setting.metric] = max(setting.n_neighbors, most.get(setting.metric, 0))
        passes = [elsewhere(rows, starts, count, metric) for metric, count in most.items()]
        for fold, first, last, *found in zip(todo, starts, starts[1:], *passes, strict=False):
            near = {metric: (distance, label[place]) for metric, (distance, place) in zip(most, found, strict=True)}
            said = [votes(*near[setting.metric], int(label.max()) + 1, setting).argmax(1) for setting in settings]
            yield fold, np.array([float((answer == label[first:last]).double().mean()) for answer in said])


def _in_turn(X: Array, y: Array, folds: Array, todo: Sequence[int]) -> tuple[Array, Tensor, list[int]]:
    """Rows and places of their classes, each fold of `todo` a stretch of them and the rest after; where each starts."""
    turn = np.full(folds.max() + 2, len(todo))
    turn[list(todo)] = np.arange(len(todo))
    order = np.argsort(turn[folds], kind="stable")
    label = torch.from_numpy(np.unique(y, return_inverse=True)[1][order]).to(best_device())
    return X[order], label, np.searchsorted(turn[folds][order], np.arange(len(todo) + 1)).tolist()


class _Seen:
    """Rows as a metric sees them: the nearer two of them, the larger is their product less half the other's square."""

    def __init__(self, rows: Array, known: Array, metric: str) -> None:
        self.metric = metric
        if metric == "euclidean":  # distances are what is left of squares, so the squares are kept small
            rows = rows - known.mean(0, dtype=np.float64).astype(rows.dtype)
        self.rows = torch.from_numpy(np.ascontiguousarray(rows)).to(best_device())
        if metric == "cosine":
            self.rows = torch.nn.functional.normalize(self.rows, dim=1, eps=torch.finfo(self.rows.dtype).tiny)
        self.half = self.rows.square().sum(1) / 2 if metric == "euclidean" else self.rows.new_zeros(len(rows))

    def products(self, queries: slice, known: _Seen, rows: slice) -> Tensor:
        """[n,m]; on a processor by NumPy, which takes half the time for a square of rows with themselves."""
        one, other = self.rows[queries], known.rows[rows]
        return torch.from_numpy(one.numpy() @ other.numpy().T) if one.device.type == "cpu" else one @ other.T

    def distance(self, queries: slice, close: Tensor) -> Tensor:
        cosine, square = self.metric == "cosine", 2 * self.half[queries, None]
        apart = 1 - close if cosine else square - 2 * close
        noise = ROUNDING * torch.finfo(apart.dtype).eps * (1 if cosine else square)
        apart = torch.where(apart <= noise, 0, apart)  # or else one of equal rows would be nearer than another
        return apart if cosine else apart.sqrt()


class _Nearest:
    """To each row that asks, the nearest of the rows that it has met."""

    def __init__(self, asking: int, most: int, like: Tensor) -> None:
        self.close = like.new_full((asking, most), -math.inf)
        self.place = torch.zeros(self.close.shape, dtype=torch.int64, device=like.device)

    def meet(self, queries: slice, product: Tensor, known: _Seen, rows: slice) -> None:
        close, place, most = self.close[queries], self.place[queries], self.close.shape[1]
        for some in chunks(len(product), max(1, AT_ONCE[product.device.type] // product.shape[1])):
            close[some], chosen = _largest(torch.cat([close[some], product[some] - known.half[rows]], 1), most)
            before = place[some].gather(1, chosen.clamp(max=most - 1))
            place[some] = torch.where(chosen < most, before, chosen + (rows.start - most))


def _largest(values: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """topk by two that are shorter, so in half the time: the largest are in the groups whose own largest are."""
    groups = values.shape[1] // GROUP
    if groups < most:
        return values.topk(most)
    heads = values[:, : GROUP * groups].view(-1, GROUP, groups).amax(1)
    members = torch.arange(0, GROUP * groups, groups, device=values.device)[:, None]
    inside = (heads.topk(most, sorted=False).indices[:, None] + members).flatten(1)
    beyond = torch.arange(GROUP * groups, values.shape[1], device=values.device).expand(len(values), -1)
    places = torch.cat([inside, beyond], 1)
    best, chosen = values.gather(1, places).topk(most)
    return best, places.gather(1, chosen)


def elsewhere(rows: Array, starts: Sequence[int], most: int, metric: str) -> Iterator[tuple[Tensor, Tensor]]:
    """To the rows of each stretch in turn the nearest that are not in it: their distances, rising, and places [n,most].

    Rows after the last stretch ask nothing. The product of two rows serves both.
    """
    seen, stretches = _Seen(rows, rows, metric), list(pairwise(starts))
    nearest = _Nearest(starts[-1], min(most, len(rows)), seen.rows)
    asking, rest = (_tiles(first, last) for first, last in pairwise([0, starts[-1], len(rows)]))
    for at, tile in enumerate(asking):
        for place, other in enumerate(asking[at:] + rest, at):
            product = seen.products(tile, seen, other)
            for stretch in stretches:
                product[_part(stretch, tile), _part(stretch, other)] = -math.inf
            nearest.meet(tile, product, seen, other)
            if at < place < len(asking):
                nearest.meet(other, product.T, seen, tile)
        for first, last in stretches:
            if tile.start < last <= tile.stop:
                there = slice(0, len(rows) - (last - first))
                distance = seen.distance(slice(first, last), nearest.close[first:last, there])
                yield distance, nearest.place[first:last, there]


def _tiles(first: int, last: int) -> list[slice]:
    return [slice(at, min(at + SIDE, last)) for at in range(first, last, SIDE)]


def _part(stretch: tuple[int, int], tile: slice) -> slice:
    """What of the stretch is in the tile, counted from the tile's start."""
    return slice(max(stretch[0] - tile.start, 0), max(min(stretch[1], tile.stop) - tile.start, 0))


def votes(distance: Tensor, label: Tensor, classes: int, setting: KNN) -> Tensor:
    """Shares [N,K] of the nearest n_neighbors."""
    distance, label = distance[:, : setting.n_neighbors], label[:, : setting.n_neighbors]
    if setting.weights == "uniform":
        weight = torch.ones_like(distance)
    elif setting.weights == "distance":
        same = distance == 0
        weight = torch.where(same.any(1, keepdim=True), same.to(distance.dtype), 1 / distance)
    else:
        weight = ((distance[:, :1] - distance) / setting.temperature).exp()
    found = torch.zeros(len(label), classes, dtype=distance.dtype, device=distance.device)
    return found.scatter_add_(1, label, weight / weight.sum(1, keepdim=True))
