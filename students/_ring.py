"""The latest frames of a stream, the oldest first: what a student that goes frame by frame keeps of them.

Shape legend: B streams, T frames of a clip, D of each.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rolled(ring: Tensor, newest: Tensor, started: Tensor) -> Tensor:
    """[B,T,D] with the newest frame's [B,D] behind and without the oldest's. The first frame of a stream, where
    `started` [B] is 0, stands in for those before it too."""
    newest = newest[:, None]
    return torch.where(started[:, None, None] > 0, torch.cat([ring[:, 1:], newest], 1), newest)
