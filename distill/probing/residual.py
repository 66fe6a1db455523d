"""TinyAct's residual classifier, trained on latents alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from distill.probing.base import Array, Softmax, chunks, take
from distill.probing.device import best_device
from distill.probing.plain import inside, scaler_arrays, scaler_of, within


class Residual(nn.Module):
    """Features [B,D] -> scores [B,K]."""

    def __init__(self, features: int, width: int, blocks: int, dropout: float, classes: int) -> None:
        super().__init__()
        self.project = nn.Linear(features, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, width),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(width, width),
                nn.Dropout(dropout),
            )
            for _ in range(blocks)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, features: Tensor) -> Tensor:
        inside = self.project(features)
        for block in self.blocks:
            inside = inside + block(inside)
        scores: Tensor = self.head(inside)
        return scores


class MLP(Softmax):
    """A residual multi-layer perceptron by AdamW, its rate falling as half a cosine, on standardised features."""

    def __init__(
        self,
        epochs: int = 20,
        lr: float = 1e-3,
        weight_decay: float = 0.05,
        width: int = 512,
        blocks: int = 2,
        dropout: float = 0.3,
        batch: int = 256,
        random_state: int = 0,
    ) -> None:
        self.epochs = epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.width = width
        self.blocks = blocks
        self.dropout = dropout
        self.batch = batch
        self.random_state = random_state

    def fit_encoded(self, X: Array, y: Array) -> None:
        self.scaler_ = StandardScaler().fit(X)
        device, rows, label = best_device(), self._seen(X), torch.from_numpy(y)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.random_state)
            shape = X.shape[1], self.width, self.blocks, self.dropout, len(self.classes_)
            self.network_ = Residual(*shape).to(device)
            optimizer = torch.optim.AdamW(self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            steps = self.epochs * -(-len(rows) // self.batch)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(rows)).split(self.batch):  # type: ignore[no-untyped-call]
                    scores = self.network_(rows[chosen].to(device))
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(scores, label[chosen].to(device)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    rate.step()
        self.network_.eval()

    def learnt(self) -> dict[str, Array]:
        state = {name: value.cpu().numpy() for name, value in self.network_.state_dict().items()}
        return {**within("scaler", scaler_arrays(self.scaler_)), **within("network", state)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self.scaler_ = scaler_of(inside("scaler", arrays), self.n_features_in_)
        given = inside("network", arrays)
        if len(given) != 4 + 6 * self.blocks:  # before so many blocks are made
            raise ValueError(f"{len(given)} arrays are no network of {self.blocks} blocks")
        with torch.device("meta"):
            network = Residual(self.n_features_in_, self.width, self.blocks, self.dropout, len(self.classes_))
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        state = {name: torch.from_numpy(take(given, name, "f", *shape)) for name, shape in shapes.items()}
        network.load_state_dict(state, assign=True)
        self.network_ = network.to(best_device()).eval()

    def _seen(self, X: Array) -> Tensor:
        return torch.from_numpy(self.scaler_.transform(X).astype(np.float32))

    @torch.no_grad()
    def decide(self, X: Array) -> Array:
        device = next(self.network_.parameters()).device
        found = [self.network_(self._seen(X[part]).to(device)).cpu().numpy() for part in chunks(len(X))]
        return np.concatenate(found)
