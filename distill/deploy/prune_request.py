"""What `distill prune` is asked for: a run, how much of its student goes, and how it learns again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from distill.checkpoint import read_card
from distill.errors import UserError
from distill.hub import unfetched
from distill.keys import pair, read_group, whole_list
from distill.objective import terms
from distill.objective.schedule import Span, read_course
from distill.recipe import Recipe, read_run

METHODS, SCOPES, PACES = ("channels", "magnitude"), ("global", "layer"), ("cubic", "even")
USAGE = "say run=DIR out=DIR method=channels amount=0.5"
FIXED = ("recipe", "student", "init", "stages")  # of the recipe: a pruned student is the one of its run
ONLY = {"multiple": "channels", "scope": "magnitude"}  # keys that have a meaning with one method


@dataclass
class Options:
    run: str = ""
    """Run folder whose student is pruned; it stays as it is."""
    out: str = ""
    """Run folder of the pruned student; the rounds before the last have folders round1, round2, ... in it."""
    method: str = "channels"
    """channels: whole channels go, and the student gets smaller and faster; magnitude: the smallest weights become 0,
    and it gets smaller once it is compressed."""
    amount: float = 0.5
    """Share that is gone in the end: of every layer's channels, or of the weights."""
    rounds: int = 3
    """In how many turns; after each the student learns again."""
    steps: Span = 300
    """How long it learns after each round: optimiser steps, or a text like '5 epochs'; 0 = not at all."""
    pace: str = "cubic"
    """How the share grows over the rounds: cubic (most of it at first, after Zhu and Gupta) or even."""
    scope: str = "global"
    """For magnitude: the smallest of all weights go (global), or the same share of each layer's (layer)."""
    multiple: int = 8
    """For channels: what is left of a layer is a multiple of this, which suits processors; 1 = any number."""
    keep: list[str] = field(default_factory=list)
    """Parts of the student that are left as they are, by name; for channels, its last layer always is."""


KEYS = [item.name for item in fields(Options)]


@dataclass(frozen=True)
class Request:
    options: Options
    recipe: Recipe
    """How the student learns again in the last round."""

    @property
    def out(self) -> str:
        return self.options.out

    @property
    def rounds(self) -> list[tuple[float, Recipe]]:
        """The share that is gone after each round, and the training that follows; it begins with RUN/cut."""
        found, last = [], self.options.rounds
        for number in range(1, last + 1):
            out = self.out if number == last else f"{self.out}/round{number}"
            found.append((share(self.options, number), replace(self.recipe, out=out, init=f"{out}/cut")))
        return found


def share(options: Options, number: int) -> float:
    """What is gone after so many rounds."""
    left = 1 - number / options.rounds
    return options.amount * (1 - (left**3 if options.pace == "cubic" else left))


def read(arguments: Sequence[str]) -> Request:
    """`run=DIR out=DIR key=value ...`, with keys of Options and of the run's recipe."""
    own, changes = [], list[str]()
    for argument in arguments:
        key, _ = pair(argument, USAGE)
        if key.partition(".")[0] in FIXED:
            raise UserError(f"{key}= cannot be changed: the student that is pruned is the one of run=")
        if key == "train.steps":
            raise UserError("train.steps= is called steps= here: it is how long the student learns after each round")
        if key in KEYS:
            own.append(whole_list(argument, ("keep",)))
        else:
            changes.append(argument)
    options = read_group(Options, own)
    check(options, [argument.partition("=")[0] for argument in own])
    run = Path(options.run)
    last = [f"out={options.out}", f"train.steps={options.steps}"]
    recipe = read_run(run, ["resume=false", *changes, *last], USAGE)
    read_card(run)
    return Request(options, _settled(recipe))


def check(options: Options, given: Sequence[str]) -> None:
    for name in ("run", "out"):
        if not getattr(options, name):
            raise UserError(f"{name}= is missing; {USAGE}")
    if Path(options.run).resolve() == Path(options.out).resolve():
        raise UserError(f"out={options.out} is the run itself, which stays as it is; choose another out=")
    for name, known in (("method", METHODS), ("scope", SCOPES), ("pace", PACES)):
        if getattr(options, name) not in known:
            raise UserError(f"{name} is {getattr(options, name)!r}; known: {', '.join(known)}")
    for name, method in ONLY.items():
        if name in given and options.method != method:
            raise UserError(f"{name}= is for method={method}; leave it out with method={options.method}")
    if not 0 < options.amount < 1:
        raise UserError(f"amount is {options.amount}; it is a share above 0 and below 1")
    for name in ("rounds", "multiple"):
        if getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}; it is at least 1")


def _settled(recipe: Recipe) -> Recipe:
    """The run's recipe as it is at the end of its training: what moved has arrived. Nothing is fetched."""
    objective = {name: _arrived(name, term) for name, term in recipe.objective.items()}
    return replace(recipe, student=unfetched(recipe.student), objective=objective)


def _arrived(name: str, term: Any) -> Any:
    ends: dict[str, float] = {}
    for option in ("weight", *terms.moving(name)):
        if isinstance(given := getattr(term, option), Mapping):
            course = read_course(given, f"objective.{name}.{option}")
            ends[option] = course.to if course.until == math.inf else 0.0
    return replace(term, **ends)
