"""What `distill measure` asks, in a fresh process of its own: one exported file, or one run's student in torch.

JSON comes in and goes out, line by line. Memory is what is measured, so an exported file meets no torch in here.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from distill.deploy.card import ExportCard, read_export
from distill.deploy.recogniser import Recogniser
from distill.deploy.sessions import NEEDED, first_line, open_session
from distill.errors import UserError

STATUS = Path("/proc/self/status")
WINDOWS = 4  # clips that differ, each one frame later than the one before
LEAST, MOST = 3, 100  # calls of a turn that are timed


def serve() -> None:
    """Say what opening the subject took, then what calls take, whenever a line asks."""
    answers = _answers()
    try:
        _serve(json.loads(sys.argv[1]), answers)
    except Exception as error:  # whatever it is, it becomes a row of the table
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        _say(answers, {"failed": kind + first_line(error)})


def _serve(asked: dict[str, Any], answers: TextIO) -> None:
    recogniser, libraries = opened(**asked)
    loaded = memory()["now"]
    call = caller(recogniser)
    call()
    card = recogniser.card
    told = {"frames": 1 if recogniser.streams else card.frames, "size": card.size}
    _say(answers, {**told, "libraries": libraries, "loaded": loaded})
    for line in sys.stdin:
        _say(answers, turn(call, card.batch, **json.loads(line)))


def opened(path: str, form: str, threads: int, how: str, device: str, batch: int) -> tuple[Recogniser, int]:
    """The subject, and what memory its libraries take without it. `how`, `device` and `batch` are about torch."""
    if how:
        from distill.deploy.measure_torch import open_torch

        libraries = memory()["now"]
        return open_torch(Path(path), form, threads, how, device, batch), libraries
    card = read_export(Path(path))
    with suppress(ImportError):  # open_session says what to do about it
        importlib.import_module(NEEDED[card.format][0])
    libraries = memory()["now"]
    return Recogniser(card, open_session(Path(path), card, threads)), libraries


def caller(recogniser: Recogniser) -> Callable[[], object]:
    """A call that sees other frames each time, of as many clips as the file takes at once."""
    card = recogniser.card
    if recogniser.streams:
        frames = cycle(video(card.frames, card.size))
        return lambda: recogniser.frame(next(frames))
    film = video(card.batch * card.frames + WINDOWS - 1, card.size)
    starts = cycle(range(WINDOWS))
    return lambda: recogniser.clips(_clips(film, next(starts), card))


def _clips(film: np.ndarray, start: int, card: ExportCard) -> np.ndarray:
    """One after the other, from this frame on."""
    return film[start : start + card.batch * card.frames].reshape(card.batch, card.frames, *film.shape[1:])


def video(frames: int, size: int) -> np.ndarray:
    """uint8 RGB [T,S,S,3]: waves of three colours that drift, with grain. Made frame by frame: memory is watched."""
    film = np.empty((frames, size, size, 3), np.uint8)
    down, across = np.ogrid[:size, :size]
    for time_, colour in np.ndindex(frames, 3):
        waves = np.sin(down / np.float32(7 + 5 * colour) + time_ / 3) * np.cos(
            across / np.float32(11 + 3 * colour) - time_ / 5
        )
        grain = (7919 * down + 10477 * across + 31 * time_) % 23 - 11
        film[time_, :, :, colour] = 127 + 100 * waves + grain
    return film


def turn(call: Callable[[], object], answers: int, seconds: float) -> dict[str, Any]:
    """Milliseconds of an answer, one of so many that each call gives, from calls that follow each other for so many
    seconds: on the clock, and of the processor (all threads). The first call brings weights back into the processor's
    caches, after others had them, and does not count."""
    call()
    calls, wall, work = 1, list[float](), list[float]()
    started = time.perf_counter()
    while len(wall) < LEAST or time.perf_counter() - started < seconds:
        before, busy = time.perf_counter(), time.process_time()
        call()
        calls += 1
        if len(wall) < MOST:
            wall.append(round(1e3 * (time.perf_counter() - before) / answers, 4))
            work.append(round(1e3 * (time.process_time() - busy) / answers, 4))
    return {"wall_ms": wall, "cpu_ms": work, "answers": answers * calls, **memory()}


def memory() -> dict[str, int]:
    """Bytes of this process that are in memory now, and that were at most."""
    if STATUS.exists():
        found = dict(_status())
        return {"now": found["VmRSS"], "peak": found["VmHWM"]}
    import resource

    import psutil

    # Not on Linux, where a process inherits this from the one that started it.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"now": psutil.Process().memory_info().rss, "peak": peak}


def _status() -> Iterator[tuple[str, int]]:
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            yield name, 1024 * int(value.split()[0])


def _answers() -> TextIO:
    """Where answers go; what libraries print goes where complaints go."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _say(answers: TextIO, told: dict[str, Any]) -> None:
    answers.write(json.dumps(told) + "\n")
    answers.flush()
