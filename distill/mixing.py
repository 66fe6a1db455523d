"""Mixup and CutMix: each clip of a batch is blended with another, and so is its label.

Shape legend: B clips, T frames, C colours, H and W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.outputs import Blend, Clips


@dataclass(frozen=True)
class Mixer:
    """Blends batches; `mixup` and `cutmix` are the two parameters of the shares' Beta distributions, 0 = never."""

    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"train.{name} is {getattr(self, name)}; it is at least 0")

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, clips: Clips, chance: np.random.Generator) -> Clips:
        """Clip i with clip order[i]; one share for the batch. With both kinds on, each has half of the batches."""
        order = torch.from_numpy(chance.permutation(len(clips))).to(clips.frames.device)
        cut = self.cutmix > 0 and (self.mixup == 0 or chance.random() < 0.5)
        strength = self.cutmix if cut else self.mixup
        share = float(chance.beta(strength, strength))
        other = clips.frames[order]
        if cut:
            frames, share = paste(clips.frames, other, share, chance)
        else:
            frames = (clips.frames * share + other * (1 - share)).round().to(torch.uint8)
        shares = torch.full_like(clips.label_weight, share)
        blend = Blend(clips.label[order], clips.label_weight[order], shares)
        return replace(clips, frames=frames, blend=blend)


def paste(frames: Tensor, other: Tensor, share: float, chance: np.random.Generator) -> tuple[Tensor, float]:
    """A rectangle of `other`, at one place in all frames; and the share of the pixels that stayed."""
    height, width = frames.shape[-2:]
    side = math.sqrt(1 - share)
    top, left = (int(chance.integers(length)) for length in (height, width))
    rows = slice(max(0, top - int(height * side) // 2), min(height, top + int(height * side) // 2))
    columns = slice(max(0, left - int(width * side) // 2), min(width, left + int(width * side) // 2))
    frames = frames.clone()
    frames[..., rows, columns] = other[..., rows, columns]
    return frames, 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
