"""The training loop, top to bottom."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distill.checkpoint import save_checkpoint
from distill.errors import UserError
from distill.objective.objective import Objective
from distill.optim import Optim, learning_rate
from distill.outputs import Clips, Student, TeacherOutput
from distill.randomness import number
from distill.run_log import RunLog, Talk
from distill.teaching.teacher import Teacher

PRECISIONS = ("no", "fp16", "bf16")


@dataclass
class TrainOptions:
    steps: int = 1000
    """Optimiser steps; 0 leaves the student untrained."""
    batch: int = 32
    """Clips per step, over all processes, so that more processes leave the curve as it is (dropout's draws apart)."""
    accumulate: int = 1
    """Parts that a process cuts its share of a batch into, to save memory."""
    precision: str = "no"
    """Mixed precision: no, fp16 or bf16."""
    log_every: int = 20
    """Steps between two lines of losses."""
    evaluate_every: int = 200
    """Steps between two looks at the validation split; 0 = only at the end."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; there is always one at the end."""


def check(options: TrainOptions) -> None:
    if options.precision not in PRECISIONS:
        raise UserError(f"train.precision is {options.precision!r}; known: {', '.join(PRECISIONS)}")
    least = {"steps": 0, "batch": 1, "accumulate": 1, "log_every": 1, "evaluate_every": 0, "checkpoint_every": 0}
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a GPU; a CPU knows bf16")
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise UserError(f"train.{name} is {getattr(options, name)}; it is at least {bound}")


class Learner(nn.Module):
    """The one trainable module; what a loss learns joins the student here."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student, self.objective = student, objective

    def forward(self, clips: Clips, answer: TeacherOutput | None) -> dict[str, Tensor]:
        """Every term of the objective, raw."""
        said = self.student(self.student.spec.fit(clips.frames), want=self.objective.want)
        with torch.autocast(clips.frames.device.type, enabled=False):
            return self.objective(said.float(), answer.float() if answer else None, clips)


@dataclass
class Loop:
    """Everything that the loop needs, built and ready."""

    learner: nn.Module  # a Learner, perhaps wrapped for several processes
    objective: Objective
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    options: TrainOptions
    optim: Optim
    seed: int
    run: Path
    log: RunLog
    talk: Talk
    validate: Callable[[], dict[str, float]]
    done: int = 0  # steps
    window: Tensor | None = None  # sums of the raw terms since the last line of losses, and how many steps

    def fit(self, batches: Iterator[Clips]) -> None:
        """Train from step `done` to the end; `batches` yields this process's parts of those steps, on its device."""
        parts = self.options.accumulate
        with self.talk.track("train", self.options.steps, self.done) as track:
            for step in range(self.done, self.options.steps):
                weights = self.objective.weights(step)
                for part in range(parts):
                    self._accumulate(next(batches), weights, step, part)
                self._update(step)
                self.done = step + 1
                news = self._report(weights, step) if self._is_due(self.options.log_every) else ""
                if self._is_due(self.options.evaluate_every):
                    self.log.log(self.done, {f"val.{name}": value for name, value in self.validate().items()})
                if self._is_due(self.options.checkpoint_every):
                    self.save()
                track.advance(1, news)

    def _is_due(self, every: int) -> bool:
        return self.done == self.options.steps or (every > 0 and self.done % every == 0)

    def _accumulate(self, clips: Clips, weights: dict[str, float], step: int, part: int) -> None:
        """Add the gradient of one part of the step's batch."""
        parts = self.options.accumulate
        # Dropout and the like draw from a number that belongs to this part of this step, so a resumed run draws alike.
        torch.manual_seed(number(self.seed, "step", step, self.accelerator.process_index * parts + part))
        last = part == parts - 1
        with nullcontext() if last else self.accelerator.no_sync(self.learner):
            answer = self.teacher(clips) if self.teacher else None
            raw = self.learner(clips, answer)
            total = torch.stack([weights[name] * value for name, value in raw.items()]).sum()
            self.accelerator.backward(total / parts)
        seen = torch.stack([*(value.detach() for value in raw.values()), total.new_tensor(1.0)]) / parts
        self.window = seen if self.window is None else self.window + seen

    def _update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.optim, step, self.options.steps)
        if self.optim.clip_norm > 0:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.optim.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _report(self, weights: dict[str, float], step: int) -> str:
        """Log the mean of every term since the last time, raw and weighted, over all processes."""
        assert self.window is not None
        sums = self.accelerator.reduce(self.window, reduction="mean").tolist()
        self.window = None
        raw = {name: value / sums[-1] for name, value in zip(weights, sums, strict=False)}
        weighted = {name: weights[name] * value for name, value in raw.items()}
        loss = sum(weighted.values())
        if not math.isfinite(loss):
            raise UserError(f"the loss is {loss} at step {step + 1}; try a lower optim.lr, or train.precision=no")
        values = {"loss": loss, "lr": learning_rate(self.optim, step, self.options.steps)}
        values |= {f"raw.{name}": value for name, value in raw.items()}
        values |= {f"weighted.{name}": value for name, value in weighted.items()}
        self.log.log(self.done, values)
        return f"loss {loss:.4f}  " + "  ".join(f"{name} {value:.4f}" for name, value in raw.items())

    def save(self) -> None:
        """A checkpoint from which training goes on as if it had never stopped."""
        if self.window is not None:
            self.window = self.accelerator.reduce(self.window, reduction="mean")
        if self.accelerator.is_main_process:
            save_checkpoint(self.run, self.done, self.state())
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.done,
            "learner": self.accelerator.unwrap_model(self.learner).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "window": self.window,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.done = state["step"]
        self.accelerator.unwrap_model(self.learner).load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        window = state["window"]
        self.window = None if window is None else window.to(self.accelerator.device)
