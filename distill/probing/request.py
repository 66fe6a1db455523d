"""What a probe is asked to judge: the students of some runs, or latents from elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from distill.errors import UserError
from distill.probing.classifiers import PROBES
from distill.probing.costs import read_budget
from distill.probing.options import ProbeOptions
from distill.recipe import Recipe, read_group, read_recipe

GROUP = "probe."
OPTIONS = [item.name for item in fields(ProbeOptions)]
USAGE = "say run=DIR (or run=A,B,C), or latents=FILE out=DIR"


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
    latents: str = ""
    out: str = ""
    seed: int = 0


def read(arguments: Sequence[str]) -> Request:
    """`run=DIR key=value ...` or `latents=FILE out=DIR key=value ...`."""
    given = [_whole_list(argument.removeprefix(GROUP)) for argument in arguments]
    values = {key: value for key, equals, value in (argument.partition("=") for argument in given) if equals}
    if len(values) < len(given) or ("run" in values) == ("latents" in values):
        odd = next((argument for argument in given if "=" not in argument), None)
        raise UserError(f"{odd!r} is not key=value; {USAGE}" if odd else f"what is to be judged? {USAGE}")
    return _of_runs(values["run"], given) if "run" in values else _of_latents(given)


def _of_latents(given: Sequence[str]) -> Request:
    found = read_group(_Elsewhere, given)
    for key in ("latents", "out"):
        if not getattr(found, key):
            raise UserError(f"{key}= is missing; {USAGE}")
    options = ProbeOptions(**{name: getattr(found, name) for name in OPTIONS})
    return Request(found.out, options, found.seed, latents=found.latents)


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
    recipes = [_recipe(run, changes) for run in runs]
    return Request(out or _home(runs), recipes[0].probe, recipes[0].seed, recipes)


def _recipe(run: str, changes: Iterable[str]) -> Recipe:
    path = Path(run, "recipe.yaml")
    if not path.is_file():
        raise UserError(f"{run} is no run folder ({path} is missing); {USAGE}")
    return read_recipe([f"recipe={path}", f"out={run}", *changes])


def _home(runs: Sequence[str]) -> str:
    """One run's own folder; of several, the one they are in."""
    return runs[0] if len(runs) == 1 else os.path.commonpath(runs) or "."


def _whole_list(argument: str) -> str:
    """probes=svm,lda stands for probes=[svm,lda]."""
    key, _, value = argument.partition("=")
    return f"{key}=[{value}]" if key == "probes" and value[:1] != "[" else argument


def check(options: ProbeOptions) -> None:
    for name in options.probes:
        if name not in PROBES and name != "all":
            raise UserError(f"there is no probe named {name!r}; known: {', '.join(PROBES)}, all")
    if not options.probes:
        raise UserError(f"no probe is named; known: {', '.join(PROBES)}, all")
    if options.folds < 0 or options.folds == 1:
        raise UserError(f"probe.folds is {options.folds}; it is 2 or more, or 0 for a hold-out")
    if options.budget:
        read_budget(options.budget)


def named(options: ProbeOptions) -> list[str]:
    """The classifiers that are asked for, each once."""
    return list(PROBES) if "all" in options.probes else list(dict.fromkeys(options.probes))
