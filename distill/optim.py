"""The optimiser, and its learning rate over time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from distill.errors import UserError
from distill.objective.schedule import Span, steps_of

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "step", "constant")


@dataclass
class Optim:
    name: str = "adamw"
    """The optimiser: adamw, adam or sgd."""
    lr: float = 1e-3
    """Highest learning rate."""
    weight_decay: float = 0.05
    """Decay of weight matrices and kernels."""
    decay_norms: bool = False
    """Whether norms and biases decay too."""
    momentum: float = 0.9
    """Momentum of sgd."""
    schedule: str = "cosine"
    """How the rate falls: cosine (half of one, to final_lr), step (by factor, at milestones) or constant."""
    final_lr: float = 0.0
    """Where the cosine ends; other schedules have no use for it."""
    milestones: list[Any] = field(default_factory=list)
    """When the rate falls, e.g. [45 epochs, 60 epochs]; for schedule=step."""
    factor: float = 0.1
    """By what it is multiplied then."""
    warmup_steps: Span = 50
    """Time over which the rate rises from 0: steps, or a text like '5 epochs'."""
    clip_norm: float = 5.0
    """Largest norm of the whole gradient; 0 = no limit."""


def check(options: Optim) -> None:
    for key, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
        if getattr(options, key) not in known:
            raise UserError(f"optim.{key} is {getattr(options, key)!r}; known: {', '.join(known)}")
    for key in ("lr", "weight_decay", "clip_norm", "momentum", "final_lr", "factor"):
        if not 0 <= getattr(options, key) < math.inf:
            raise UserError(f"optim.{key} is {getattr(options, key)}; it is at least 0")
    if options.momentum >= 1:
        raise UserError(f"optim.momentum is {options.momentum}; it is below 1")
    if options.final_lr and options.schedule != "cosine":
        raise UserError(f"optim.final_lr is where a cosine ends; schedule={options.schedule} has none: set it to 0")
    if bool(options.milestones) != (options.schedule == "step"):
        raise UserError("optim.milestones and optim.schedule=step go together: say when the rate falls")


def make_optimizer(
    module: nn.Module, options: Optim, factor: Callable[[nn.Parameter], float] = lambda parameter: 1.0
) -> torch.optim.Optimizer:
    """`factor` says by how much a parameter's rate differs from the others'."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if parameter.requires_grad:
            decays = options.decay_norms or parameter.dim() > 1
            groups.setdefault((factor(parameter), decays), []).append(parameter)
    given = [
        {"params": groups[key], "weight_decay": options.weight_decay if key[1] else 0.0, "factor": key[0]}
        for key in sorted(groups, reverse=True)
    ]
    if not given:
        raise UserError("nothing is left to train; see schedule")
    if options.name == "sgd":
        return torch.optim.SGD(given, lr=options.lr, momentum=options.momentum)
    if options.name == "adam":
        return torch.optim.Adam(given, lr=options.lr)
    return torch.optim.AdamW(given, lr=options.lr)


class Rate:
    """The learning rate over time."""

    def __init__(self, options: Optim, steps: int, epoch_steps: int) -> None:
        self.options, self.steps = options, steps
        self.warmup = steps_of(options.warmup_steps, epoch_steps, "optim.warmup_steps")
        self.milestones = [steps_of(given, epoch_steps, "optim.milestones") for given in options.milestones]

    def at(self, step: int) -> float:
        options = self.options
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup > 0 else 1.0
        if options.schedule == "constant":
            return options.lr * warm
        if options.schedule == "step":
            return options.lr * warm * options.factor ** sum(step >= milestone for milestone in self.milestones)
        rest = max(0, step - self.warmup) / max(1, self.steps - self.warmup)
        falling = (options.lr - options.final_lr) * warm * 0.5 * (1 + math.cos(math.pi * min(1.0, rest)))
        return options.final_lr * warm + falling
