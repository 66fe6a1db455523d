"""Which parts of a student train when. What is frozen keeps its weights, its running statistics, and its calm."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from omegaconf import MISSING
from torch import nn

from distill.errors import UserError
from distill.objective.schedule import Span, steps_of
from distill.outputs import Student

MODES = ("joint", "frozen", "progressive")
ENCODER, NEVER = "encoder", "never"


@dataclass
class Group:
    parts: list[str] = MISSING
    """Names of the student's submodules; 'encoder' stands for all that make the latent."""
    at: Span = 0
    """When they begin to train: steps, a text like '5 epochs', or never."""
    lr: float = 1.0
    """Factor of their learning rate."""


@dataclass
class Freezing:
    mode: str = "joint"
    """joint: all of the student trains from the start; frozen: the encoder never does; progressive: as groups say."""
    groups: dict[str, Group] = field(default_factory=dict)
    """For progressive: {late: {parts: [encoder], at: 5 epochs, lr: 0.1}, ...}; the longest name that fits a part
    counts, and parts that no group names train from the start."""


@dataclass(frozen=True)
class Turn:
    """When a part begins to train, and how fast."""

    at: float
    factor: float


FREE = Turn(0, 1.0)


class Schedule:
    """What trains at which step."""

    def __init__(self, student: Student, options: Freezing, epoch_steps: int) -> None:
        check(options)
        self.by_part = _by_part(student, options, epoch_steps)
        modules = dict(student.named_modules())
        for name in self.by_part:
            if name not in modules:
                known = ", ".join([ENCODER, *(name for name in modules if name.count(".") < 2 and name)])
                raise UserError(f"schedule: the student has no part {name!r}; it has {known}, and what is inside them")
        self.modules = [(module, self._turn(name)) for name, module in modules.items()]
        self.student = student.train()  # which holds fixed what it wants fixed, and that stays so
        self.parameters = [(p, self._turn(name)) for name, p in student.named_parameters() if p.requires_grad]
        for parameter, turn in self.parameters:
            parameter.requires_grad_(turn.at < math.inf)
        self.factors = {parameter: turn.factor for parameter, turn in self.parameters}

    def _turn(self, name: str) -> Turn:
        """Of the longest part that the module or parameter is in."""
        inside = [part for part in self.by_part if f"{name}.".startswith(f"{part}.")]
        return self.by_part[max(inside, key=len)] if inside else FREE

    @property
    def turns(self) -> set[int]:
        """The steps at which something begins to train."""
        return {0} | {int(turn.at) for turn in self.by_part.values() if turn.at < math.inf}

    def factor(self, parameter: nn.Parameter) -> float:
        """Of the parameter's learning rate; what losses learn has the full one."""
        return self.factors.get(parameter, 1.0)

    def apply(self, step: int) -> None:
        """Hold still what does not train at this step, and set going what does."""
        if not self.by_part:
            return
        self.student.train()
        for parameter, turn in self.parameters:
            parameter.requires_grad_(step >= turn.at)
        for module, turn in self.modules:
            if step < turn.at:
                module.training = False


def check(options: Freezing) -> None:
    """What can be said without the student."""
    if options.mode not in MODES:
        raise UserError(f"schedule.mode is {options.mode!r}; known: {', '.join(MODES)}")
    if bool(options.groups) != (options.mode == "progressive"):
        raise UserError("schedule.groups and schedule.mode=progressive go together: say which parts train when")
    taken: dict[str, str] = {}
    for key, group in options.groups.items():
        if not 0 <= group.lr < math.inf:
            raise UserError(f"schedule.groups.{key}.lr is {group.lr}; it is at least 0")
        if not group.parts or not all(group.parts):
            raise UserError(f"schedule.groups.{key}.parts is {group.parts}; it names parts of the student")
        for part in group.parts:
            if taken.setdefault(part, key) != key:
                raise UserError(f"schedule.groups: both {taken[part]} and {key} name {part}")
        _begins(key, group, 1)


def _begins(key: str, group: Group, epoch_steps: int) -> float:
    return math.inf if group.at == NEVER else steps_of(group.at, epoch_steps, f"schedule.groups.{key}.at")


def _by_part(student: Student, options: Freezing, epoch_steps: int) -> dict[str, Turn]:
    """By part; a part that a group names goes before the encoder as a whole."""
    if options.mode == "frozen":
        return dict.fromkeys(student.encoder, Turn(math.inf, 1.0))
    whole, own = dict[str, Turn](), dict[str, Turn]()
    for key, group in options.groups.items():
        turn = Turn(_begins(key, group, epoch_steps), group.lr)
        for part in group.parts:
            if part == ENCODER:
                whole |= dict.fromkeys(student.encoder, turn)
            else:
                own[part] = turn
    return whole | own
