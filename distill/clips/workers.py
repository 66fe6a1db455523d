"""Work spread over processes, in order, that cannot hang in silence.

A decoder may spin for ever inside a library, where no Python timeout reaches it. So every worker writes down which
clip it is at before it starts, and when nothing has come for too long the workers are killed and the clip is named.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from distill.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
Key = TypeVar("Key")
Value = TypeVar("Value")


class StuckError(UserError):
    """A worker that did not come back (it hung), or died. `clip` is the number it had noted, -1 for none."""

    def __init__(self, clip: int, what: str, hung: bool) -> None:
        super().__init__(what)
        self.clip, self.hung = clip, hung


class _Notes:
    """What each worker is at: [workers, 3] of the clip's number, since when, and the worker's process."""

    own: Tensor | None = None  # in a worker: its row


def note(clip: int) -> None:
    """Write down that this process starts on a clip."""
    if _Notes.own is not None:
        _Notes.own[1] = time.monotonic()
        _Notes.own[0] = clip


@functools.cache
def _keep_memory() -> None:
    """Let glibc keep what is freed: touching fresh memory for every clip costs more than cutting a view out of it."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 256 << 20)


class _Work(Dataset[Any]):
    def __init__(self, work: Callable[[Any], Any], notes: Tensor) -> None:
        self.work, self.notes = work, notes

    def __getitem__(self, key: Any) -> Any:
        _keep_memory()
        worker = get_worker_info()
        _Notes.own = self.notes[worker.id] if worker else None
        if _Notes.own is not None:
            _Notes.own[2] = os.getpid()
        done = self.work(key)
        note(-1)
        return done


def spread(
    work: Callable[[Key], Value],
    keys: Iterable[Key],
    workers: int,
    seconds: float,
    name: Callable[[int], str],
    pin: bool = False,
) -> Iterator[Value]:
    """work(key) for every key, in order, by `workers` processes (0: by this one, which then cannot be rescued).

    After `seconds` without a result it raises StuckError, with what `name` says of the clip that was noted last.
    """
    notes = torch.full((max(1, workers), 3), -1.0, dtype=torch.float64)
    notes.share_memory_()  # type: ignore[no-untyped-call]
    loader: DataLoader[Any] = DataLoader(
        _Work(work, notes),
        batch_size=None,
        sampler=keys,
        num_workers=workers,
        timeout=seconds if workers else 0,
        pin_memory=pin,
    )
    try:
        yield from loader
        return
    except RuntimeError as error:
        stuck = _explain(str(error), notes, seconds, name)
        if stuck is None:
            raise
    for pid in notes[:, 2].int().tolist():  # a worker that hangs in the kernel hears nothing milder
        with suppress(ProcessLookupError):
            if pid > 0 and workers:
                os.kill(pid, signal.SIGKILL)
    # Raised out here, where nothing refers to the loader any more: that is what ends its workers.
    raise stuck


def _explain(error: str, notes: Tensor, seconds: float, name: Callable[[int], str]) -> StuckError | None:
    """What the loader's complaint means, if it is about a worker that hangs or died."""
    timed_out = "timed out" in error
    if not (timed_out or "exited unexpectedly" in error):
        return None
    dead = {int(pid) for pid in re.findall(r"\d+", error.partition("pid(s)")[2].partition(")")[0])}
    clip = _oldest(notes[[int(pid) in dead for pid in notes[:, 2]]] if dead else notes)
    where = name(clip) if clip >= 0 else "no clip in particular"
    how = f"nothing came for {seconds:g} s" if timed_out else "a worker died"
    return StuckError(clip, f"{how} while reading {where}", timed_out)


def _oldest(notes: Tensor) -> int:
    """The clip that one of these workers has been at for the longest time."""
    busy = notes[notes[:, 0] >= 0]
    return int(busy[busy[:, 1].argmin(), 0]) if len(busy) else -1
