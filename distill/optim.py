"""The optimiser and its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from distill.errors import UserError


@dataclass
class Optim:
    lr: float = 1e-3
    """Highest learning rate of AdamW."""
    weight_decay: float = 0.05
    """Decay of weight matrices and kernels; biases and norms are left alone."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises; then it falls along a half cosine."""
    clip_norm: float = 5.0
    """Largest norm of the whole gradient; 0 = no limit."""


def make_optimizer(module: nn.Module, options: Optim) -> torch.optim.AdamW:
    for name in ("lr", "weight_decay", "clip_norm", "warmup_steps"):
        if not 0 <= getattr(options, name) < math.inf:
            raise UserError(f"optim.{name} is {getattr(options, name)}; it is at least 0")
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr)


def learning_rate(options: Optim, step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps > 0 else 1.0
    rest = max(0, step - options.warmup_steps) / max(1, steps - options.warmup_steps)
    return options.lr * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
