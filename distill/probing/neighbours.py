"""The nearest neighbours of every row outside its own fold, found once for all settings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distill.probing.base import Array, Setting, Shares
from distill.probing.device import best_device

METRICS = ("cosine", "euclidean")
WEIGHTS = ("uniform", "distance", "softmax")
AT_ONCE = 1 << 25  # distances held at once


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

    def _check(self, grid: Sequence[Setting]) -> None:
        for setting in grid:
            given = {**self.get_params(), **setting}
            for key, known in (("weights", WEIGHTS), ("metric", METRICS)):
                if given[key] not in known:
                    raise ValueError(f"{key}={given[key]!r}; known: {', '.join(known)}")
            if given["n_neighbors"] < 1 or given["temperature"] <= 0:
                raise ValueError("n_neighbors is at least 1 and temperature above 0")

    def decide(self, X: Array) -> Array:
        near = Neighbours(self.rows_, self.metric)
        found = [
            votes(*near.of(X[rows], self.n_neighbors, self.labels_), len(self.classes_), self)
            for rows in near.chunks(len(X))
        ]
        return torch.cat(found).cpu().numpy()

    def cv_path(self, X: Array, y: Array, folds: Array, grid: Sequence[Setting]) -> Array:
        self._check(grid)
        classes, encoded = np.unique(y, return_inverse=True)
        settings = [type(self)(**{**self.get_params(), **setting}) for setting in grid]
        found = np.zeros((len(grid), folds.max() + 1))
        for metric in dict.fromkeys(setting.metric for setting in settings):
            places = [place for place, setting in enumerate(settings) if setting.metric == metric]
            most = max(settings[place].n_neighbors for place in places)
            for fold in range(found.shape[1]):
                tested = np.flatnonzero(folds == fold)
                near = Neighbours(X[folds != fold], metric)
                for rows in near.chunks(len(tested)):
                    distance, label = near.of(X[tested[rows]], most, encoded[folds != fold])
                    truth = torch.from_numpy(encoded[tested[rows]]).to(label.device)
                    for place in places:
                        said = votes(distance, label, len(classes), settings[place]).argmax(1)
                        found[place, fold] += int((said == truth).sum())
                found[places, fold] /= len(tested)
        return found


class Neighbours:
    """Rows to be near to."""

    def __init__(self, rows: Array, metric: str) -> None:
        self.metric, self.device, self.kind = metric, best_device(), rows.dtype
        self.rows = self._seen(rows)
        self.half = self.rows.square().sum(1) / 2

    def _seen(self, rows: Array) -> Tensor:
        seen = torch.from_numpy(np.ascontiguousarray(rows, self.kind)).to(self.device)
        return torch.nn.functional.normalize(seen, dim=1, eps=0.0).nan_to_num() if self.metric == "cosine" else seen

    def chunks(self, count: int) -> list[slice]:
        size = max(1, AT_ONCE // len(self.rows))
        return [slice(at, at + size) for at in range(0, count, size)]

    def of(self, queries: Array, most: int, labels: Array) -> tuple[Tensor, Tensor]:
        """Distances of the nearest, in order, and their labels [N,most]."""
        seen = self._seen(queries)
        close = torch.addmm(-self.half, seen, self.rows.T)  # orders as the distance does
        top = close.topk(min(most, len(self.rows)), sorted=True)
        if self.metric == "cosine":
            distance = (0.5 - top.values).clamp(min=0)
        else:
            distance = (seen.square().sum(1, keepdim=True) - 2 * top.values).clamp(min=0).sqrt()
        return distance, torch.from_numpy(labels).to(self.device)[top.indices]


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
