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
from distill.freezing import Schedule
from distill.keeping import Keeper
from distill.keeping import check as check_keeping
from distill.mixing import Mixer
from distill.objective.objective import Objective
from distill.objective.schedule import Span, steps_of
from distill.optim import Rate
from distill.outputs import Clips, Student, TeacherOutput
from distill.quantising import KINDS
from distill.randomness import generator, number
from distill.run_log import RunLog, Talk
from distill.teaching.teacher import Teacher

PRECISIONS = ("no", "fp16", "bf16")


@dataclass
class TrainOptions:
    steps: Span = 1000
    """How long to train: optimiser steps, or a text like '100 epochs'; 0 leaves the student untrained."""
    batch: int = 32
    """Clips per step, over all processes, so that more processes leave the curve as it is. What is drawn or compared
    within a process's part differs: dropout, mixup's partners, losses on relations, crd's negatives."""
    accumulate: int = 1
    """Parts that a process cuts its share of a batch into, to save memory."""
    precision: str = "no"
    """Mixed precision: no, fp16 or bf16."""
    quantise: str = ""
    """Train and judge as the student will run once exported so: int8. Its weights stay float. Empty: as it is."""
    log_every: Span = 20
    """Time between two lines of losses: steps, or '1 epoch'."""
    evaluate_every: Span = 200
    """Time between two looks at the validation split; 0 = only at the end."""
    checkpoint_every: Span = 200
    """Time between two checkpoints; there is always one at the end."""
    mixup: float = 0.0
    """Mixup with shares from Beta(mixup, mixup), e.g. 0.2; the teacher has to be live. 0 = none."""
    cutmix: float = 0.0
    """CutMix with shares from Beta(cutmix, cutmix), e.g. 1; with mixup too, each has half of the batches."""
    ema: float = 0.0
    """Decay of a moving average of the student, e.g. 0.999, which is evaluated and kept in its place. 0 = none."""
    best: str = ""
    """Keep the student that validation liked best, by top1, top5 or reconstruction. Empty: the last one."""
    patience: int = 0
    """Stop early when so many looks in a row were not the best; needs train.best. 0 = never."""


@dataclass(frozen=True)
class Timetable:
    """The times of training, in steps."""

    epoch: int
    steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int

    @classmethod
    def of(cls, options: TrainOptions, epoch: int) -> Timetable:
        least = {"steps": 0, "log_every": 1, "evaluate_every": 0, "checkpoint_every": 0}
        spans = {n: steps_of(getattr(options, n), epoch, f"train.{n}", bound) for n, bound in least.items()}
        return cls(epoch, **spans)


def check(options: TrainOptions) -> None:
    """What can be said before it is known how long an epoch is."""
    if options.precision not in PRECISIONS:
        raise UserError(f"train.precision is {options.precision!r}; known: {', '.join(PRECISIONS)}")
    if options.quantise not in KINDS:
        raise UserError(f"train.quantise is {options.quantise!r}; known: {', '.join(filter(None, KINDS))}")
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("train.precision=fp16 needs a GPU; a CPU knows bf16")
    for name in ("batch", "accumulate"):
        if getattr(options, name) < 1:
            raise UserError(f"train.{name} is {getattr(options, name)}; it is at least 1")
    Timetable.of(options, 1)
    Mixer(options.mixup, options.cutmix)
    check_keeping(options.ema, options.best, options.patience)
    if options.patience and not options.evaluate_every:
        raise UserError("train.patience counts looks at the validation split; set train.evaluate_every above 0")


class Learner(nn.Module):
    """The one trainable module; what a loss learns joins the student here."""

    def __init__(self, student: Student, objective: Objective) -> None:
        super().__init__()
        self.student, self.objective = student, objective

    def forward(self, clips: Clips, answer: TeacherOutput | None, step: int) -> dict[str, Tensor]:
        """Every term of the objective that acts at this step, raw."""
        said = self.student(self.student.spec.fit(clips.frames), want=self.objective.want(step))
        terms: dict[str, Tensor] = self.objective(said, answer, clips, step)
        return terms


@dataclass
class Loop:
    """Everything that the loop needs, built and ready."""

    learner: nn.Module  # a Learner, perhaps wrapped for several processes
    objective: Objective
    teacher: Teacher | None
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    options: TrainOptions
    mixer: Mixer
    times: Timetable
    rate: Rate
    clip_norm: float
    schedule: Schedule
    keeper: Keeper
    seed: int
    run: Path
    log: RunLog
    talk: Talk
    validate: Callable[[Student], dict[str, float]]
    done: int = 0  # steps
    # [2, terms]: sums of the raw terms since the last line of losses, and over how many steps each acted
    window: Tensor | None = None

    def fit(self, batches: Iterator[Clips]) -> None:
        """Train from step `done` to the end; `batches` yields this process's parts of those steps, on its device."""
        parts = self.options.accumulate
        with self.talk.track("train", self.times.steps, self.done) as track:
            for step in range(self.done, self.times.steps):
                if self.keeper.tired:
                    break
                weights = self.objective.weights(step)
                self.schedule.apply(step)
                for part in range(parts):
                    self._accumulate(next(batches), weights, step, part)
                self._update(step)
                self.done = step + 1
                if self._is_due(self.times.evaluate_every):
                    self._look()
                news = self._report(weights, step) if self._is_due(self.times.log_every) else ""
                if self._is_due(self.times.checkpoint_every):
                    self.save()
                track.advance(1, news)
        if self.keeper.tired:
            self.talk.say(f"stopped at step {self.done}: the best {self.keeper.best} was at step {self.keeper.at}")

    def _is_due(self, every: int) -> bool:
        last = self.done == self.times.steps or self.keeper.tired
        return last or (every > 0 and self.done % every == 0)

    def _look(self) -> None:
        """At the validation split."""
        figures = self.validate(self.keeper.student)
        self.log.log(self.done, {f"val.{name}": value for name, value in figures.items()})
        self.keeper.judge(figures, self.done)
        self.learner.train()

    def _accumulate(self, clips: Clips, weights: dict[str, float], step: int, part: int) -> None:
        """Add the gradient of one part of the step's batch."""
        parts, world = self.options.accumulate, self.accelerator.num_processes
        number_of_part = part * world + self.accelerator.process_index
        # Dropout and the like draw from a number that belongs to this part of this step, so a resumed run draws alike.
        torch.manual_seed(number(self.seed, "step", step, number_of_part))
        last = part == parts - 1
        with nullcontext() if last else self.accelerator.no_sync(self.learner):
            if self.mixer:
                clips = self.mixer(clips, generator(self.seed, "mix", step, number_of_part))
            answer = self.teacher(clips) if self.teacher else None
            raw = self.learner(clips, answer, step)
            total = torch.stack([weights[name] * value for name, value in raw.items()]).sum()
            self.accelerator.backward(total / parts)
        off = total.new_zeros(())
        seen = torch.stack([raw[name].detach() if name in raw else off for name in self.objective.terms])
        acted = total.new_tensor([float(name in raw) for name in self.objective.terms])
        seen = torch.stack([seen, acted]) / parts
        self.window = seen if self.window is None else self.window + seen

    def _update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate.at(step) * group["factor"]
        if self.clip_norm > 0:
            self.accelerator.clip_grad_norm_(self.learner.parameters(), self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.keeper.follow()

    def _report(self, weights: dict[str, float], step: int) -> str:
        """Log the mean of every term since the last time, raw and weighted, over all processes."""
        assert self.window is not None
        sums, acted = self.accelerator.reduce(self.window, reduction="mean").tolist()
        self.window = None
        found = zip(self.objective.terms, sums, acted, strict=True)
        raw = {name: value / count for name, value, count in found if count}
        weighted = {name: weight * raw[name] for name, weight in weights.items()}
        loss = sum(weighted.values())
        if not math.isfinite(loss + sum(raw.values())):
            raise UserError(f"the loss is {loss} at step {step + 1}; try a lower optim.lr, or train.precision=no")
        values = {"loss": loss, "lr": self.rate.at(step)}
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
            self.keeper.sweep()
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, Any]:
        scaler = self.accelerator.scaler
        return {
            "step": self.done,
            "learner": self.accelerator.unwrap_model(self.learner).state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "window": self.window,
            "keeper": self.keeper.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.done = state["step"]
        self.accelerator.unwrap_model(self.learner).load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.keeper.restore(state["keeper"])
        window = state["window"]
        self.window = None if window is None else window.to(self.accelerator.device)
