"""TinyAct's residual classifier, trained on latents alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from distill import plugins
from distill.probing.base import Array, Softmax, chunks, take
from distill.probing.device import best_device
from distill.probing.plain import inside, scaler_arrays, scaler_of, within


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
            self.network_ = self._network().to(device)
            optimizer = torch.optim.AdamW(self.network_.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            steps = self.epochs * -(-len(rows) // self.batch)
            rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
            for _ in range(self.epochs):
                for chosen in torch.randperm(len(rows)).split(self.batch):  # type: ignore[no-untyped-call]
                    scores, _ = self.network_(rows[chosen].to(device))
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(scores, label[chosen].to(device)).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    rate.step()
        self.network_.eval()

    def _network(self) -> nn.Module:
        """The student's own: rows [B,D] -> scores [B,K], embedding."""
        tinyact = plugins.module("student", "tinyact")
        shape = {"latent": self.n_features_in_, "hidden": self.width, "blocks": self.blocks, "dropout": self.dropout}
        found: nn.Module = tinyact.ResidualMLP(tinyact.Options(**shape), len(self.classes_))
        return found

    def learnt(self) -> dict[str, Array]:
        state = {name: value.cpu().numpy() for name, value in self.network_.state_dict().items()}
        return {**within("scaler", scaler_arrays(self.scaler_)), **within("network", state)}

    def restore(self, arrays: Mapping[str, Array]) -> None:
        self.scaler_ = scaler_of(inside("scaler", arrays), self.n_features_in_)
        given = inside("network", arrays)
        if len(given) != 4 + 6 * self.blocks:  # before so many blocks are made
            raise ValueError(f"{len(given)} arrays are no network of {self.blocks} blocks")
        with torch.device("meta"):
            network = self._network()
        shapes = {name: value.shape for name, value in network.state_dict().items()}
        state = {name: torch.from_numpy(take(given, name, "f", *shape)) for name, shape in shapes.items()}
        network.load_state_dict(state, assign=True)
        self.network_ = network.to(best_device()).eval()

    def _seen(self, X: Array) -> Tensor:
        return torch.from_numpy(self.scaler_.transform(X).astype(np.float32))

    @torch.no_grad()
    def decide(self, X: Array) -> Array:
        device = next(self.network_.parameters()).device
        found = [self.network_(self._seen(X[part]).to(device))[0].cpu().numpy() for part in chunks(len(X))]
        return np.concatenate(found)
