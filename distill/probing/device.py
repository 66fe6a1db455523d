"""Where the batched solvers compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def best_device() -> torch.device:
    import torch  # which trees, for one, need for nothing else

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
