"""What a probe is asked to judge: the students of some runs, or latents from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from distill.errors import UserError
from distill.keys import pair, read_group, whole_list
from distill.probing.classifiers import PROBES
from distill.probing.costs import read_budget
from distill.probing.options import ProbeOptions
from distill.recipe import Recipe, read_run

GROUP = "probe."
OPTIONS = [item.name for item in fields(ProbeOptions)]
USAGE = "say run=DIR (or run=A,B,C), or latents=FILE out=DIR"
NEEDED = ("latents", "out")  # of latents from elsewhere


@dataclass(frozen=True)
class Request:
    out: str
    """Folder of the answer."""
    options: ProbeOptions
    seed: int
    recipes: Sequence[Recipe] = ()
    """Of the runs whose students are judged."""
    latents: str = ""
    """Or a table from elsewhere."""

    def __post_init__(self) -> None:
        check(self.options)


@dataclass
class _Elsewhere(ProbeOptions):
    seed: int = 0


def read(arguments: Sequence[str]) -> Request:
    """`run=DIR key=value ...` or `latents=FILE out=DIR key=value ...`."""
    given = [whole_list(argument.removeprefix(GROUP), ("probes",)) for argument in arguments]
    values: dict[str, str] = {}
    for argument in given:
        key, value = pair(argument, USAGE)
        if key in values:
            raise UserError(f"{key}= is given twice")
        values[key] = value
    if ("run" in values) == ("latents" in values):
        raise UserError(f"what is to be judged? {USAGE}")
    return _of_runs(values["run"], given) if "run" in values else _of_latents(values)


def _of_latents(values: Mapping[str, str]) -> Request:
    for key in NEEDED:
        if not values.get(key):
            raise UserError(f"{key}= is missing; {USAGE}")
    if "teacher" in values:
        raise UserError("teacher= is about runs; latents from elsewhere have no teacher")
    out = values["out"]
    if Path(out, "recipe.yaml").exists():
        raise UserError(f"{out} is the folder of a run, which has a report of its own; choose another out=")
    found = read_group(_Elsewhere, [f"{key}={value}" for key, value in values.items() if key not in NEEDED])
    options = ProbeOptions(**{name: getattr(found, name) for name in OPTIONS})
    return Request(out, options, found.seed, latents=values["latents"])


def _of_runs(names: str, given: Sequence[str]) -> Request:
    runs = list(dict.fromkeys(name.rstrip("/") for name in names.split(",") if name))
    if not runs:
        raise UserError(f"run= names no folder; {USAGE}")
    out, changes = "", []
    for argument in given:
        key, _, value = argument.partition("=")
        if key == "out":
            out = value
        elif key != "run":
            changes.append(GROUP * (key in OPTIONS) + argument)
    recipes = [read_run(run, [f"out={run}", *changes], USAGE) for run in runs]
    return Request(out or _home(runs), recipes[0].probe, recipes[0].seed, recipes)


def _home(runs: Sequence[str]) -> str:
    """One run's own folder; of several, the one they are in."""
    return runs[0] if len(runs) == 1 else os.path.commonpath(runs) or "."


def check(options: ProbeOptions) -> None:
    for name in options.probes:
        if name not in PROBES and name != "all":
            raise UserError(f"there is no probe named {name!r}; known: {', '.join(PROBES)}, all")
    if not options.probes:
        raise UserError(f"no probe is named; known: {', '.join(PROBES)}, all")
    if options.folds < 0 or options.folds == 1:
        raise UserError(f"probe.folds is {options.folds}; it is 2 or more, or 0 for a hold-out")
    if not 0 < options.labelled <= 1:
        raise UserError(f"probe.labelled is {options.labelled}; it is a share above 0 and up to 1")
    if options.budget:
        read_budget(options.budget)


def named(options: ProbeOptions) -> list[str]:
    """The classifiers that are asked for, each once."""
    return list(PROBES) if "all" in options.probes else list(dict.fromkeys(options.probes))
