"""What is to be measured: the students of some runs with all that was exported of them, and files besides."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from distill.errors import UserError
from distill.keys import pair, read_group, whole_list

USAGE = "say run=DIR (or run=A,B), or files=A,B out=DIR"
LISTS = ("run", "files", "threads")


@dataclass
class Options:
    run: list[str] = field(default_factory=list)
    """Folders of runs, A,B: the student of each in torch, and every exported file in its folder export/."""
    files: list[str] = field(default_factory=list)
    """Exported files besides, A,B; each with its card, FILE.json."""
    threads: list[int] = field(default_factory=lambda: [1, 2])
    """Numbers of threads, 1,2 unless said otherwise; each is measured with all of them."""
    rounds: int = 20
    """How often each has a turn. All have one in a round, in an order that is drawn for it."""
    seconds: float = 0.3
    """Of calls in a turn, at least three."""
    compile: bool = False
    """Also measure torch.compile on the processor, which takes minutes to begin; on a GPU it always is."""
    patience: float = 600.0
    """Seconds after which what does not answer is given up."""
    seed: int = 0
    """Of the order."""
    out: str = ""
    """Folder for measure.json and measure.html; empty: the run's, or of several runs the one they are in."""


@dataclass(frozen=True)
class Request:
    out: str
    options: Options
    runs: tuple[Path, ...]
    files: tuple[Path, ...]


def read(arguments: Sequence[str]) -> Request:
    """`run=DIR key=value ...` or `files=FILE out=DIR key=value ...`."""
    for argument in arguments:
        pair(argument, USAGE)
    options = read_group(Options, [whole_list(argument, LISTS) for argument in arguments])
    _check(options)
    runs, files = (tuple(dict.fromkeys(map(Path, names))) for names in (options.run, options.files))
    for run in runs:
        _check_run(run)
    for file in files:
        if not file.is_file():
            raise UserError(f"files={file} is not there; {USAGE}")
    return Request(options.out or _home(runs), options, runs, files)


def _check(options: Options) -> None:
    if not options.run and not options.files:
        raise UserError(f"what is to be measured? {USAGE}")
    if not options.run and not options.out:
        raise UserError("out= is missing; files alone have no run folder for their figures")
    if not options.threads or min(options.threads) < 1:
        raise UserError(f"threads={options.threads} are no numbers of threads; say threads=1,2")
    if options.rounds < 1:
        raise UserError(f"rounds is {options.rounds}; it is 1 or more")
    for key in ("seconds", "patience"):
        if not 0 < getattr(options, key) < float("inf"):
            raise UserError(f"{key} is {getattr(options, key)}; it is a number of seconds above 0")


def _check_run(run: Path) -> None:
    from distill.checkpoint import student_folder  # torch, which exported files do without

    if not run.is_dir():
        raise UserError(f"run={run} is not there; {USAGE}")
    student_folder(run)


def _home(runs: Sequence[Path]) -> str:
    return str(runs[0]) if len(runs) == 1 else os.path.commonpath([run.absolute() for run in runs])
