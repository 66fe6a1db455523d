"""What a probe will cost, said before it runs: processor time and memory, from the machine's measured speed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import psutil
from sklearn.model_selection import ParameterGrid
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

from distill.errors import UserError
from distill.probing.classifiers import Grid
from distill.probing.laws import LAWS, tree
from distill.probing.work import Size, Work

REPEATS = 5  # of a measurement; the fastest counts, as others disturbed it least
TRIAL_ROWS, TRIAL_WIDTH, TRIAL_CLASSES = 500, 32, 8  # of the tree whose time is measured
SECONDS = {"h": 3600.0, "min": 60.0, "s": 1.0, "plain": 1.0}
NUMBER = r"\d+(?:\.\d+)?"
PARTS = "".join(rf"(?:(?P<{unit}>{NUMBER}){unit})?" for unit in ("h", "min", "s"))
BUDGET = re.compile(rf"{PARTS}|(?P<plain>{NUMBER})")
GROUP_FILES = {  # of a control group, version 2 and 1: limit, use, and what of it are files
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class Speed:
    """Of one thread, in a second."""

    products: float  # operations of float32 products
    passes: float  # exponentials of an array
    splits: float  # of what a law calls nanoseconds of growing trees

    @staticmethod
    def measured() -> Speed:
        draw = np.random.default_rng(0)
        square = draw.standard_normal((1024, 1024), np.float32)
        rows = draw.standard_normal((TRIAL_ROWS, TRIAL_WIDTH), np.float32)
        label = draw.integers(0, TRIAL_CLASSES, TRIAL_ROWS)
        plain = DecisionTreeClassifier(random_state=0)
        with threadpool_limits(1):
            return Speed(
                2 * len(square) ** 3 / _seconds(lambda: square @ square),
                square.size / _seconds(lambda: np.exp(square)),
                tree(TRIAL_ROWS, TRIAL_WIDTH, TRIAL_CLASSES, 1) / _seconds(lambda: plain.fit(rows, label)),
            )

    def seconds(self, work: Work) -> float:
        return work.products / self.products + work.passes / self.passes + work.splits / self.splits


def _seconds(task: Callable[[], object]) -> float:
    return min(_timed(task) for _ in range(REPEATS))


def _timed(task: Callable[[], object]) -> float:
    started = time.thread_time()
    task()
    return time.thread_time() - started


@dataclass(frozen=True)
class Cost:
    seconds: float  # of processor time, all threads together, without a GPU
    bytes: float  # at the peak, beyond the latents themselves
    mostly: str = ""  # what takes most of the bytes


def expected(name: str, grid: Grid, size: Size, speed: Speed) -> Cost:
    """Of the search over folds and grid, the fit on all rows, three fits for the learning curve, and the answers."""
    law = LAWS[name](name, list(ParameterGrid(grid)), size)
    memory = law.bytes()
    return Cost(speed.seconds(law.total()), sum(memory.values()), max(memory, key=lambda what: memory[what]))


# ------------------------------------------------------------ what will be done


@dataclass(frozen=True)
class Planned:
    name: str
    folds: int  # 1: a hold-out
    cost: Cost


def plan(
    names: Sequence[str],
    grids: Mapping[str, Grid],
    size_for: Callable[[int], Size],
    folds: int,
    speed: Speed,
    *,
    budget: float | None,
    cores: int,
    memory: int,
) -> tuple[list[Planned], list[str]]:
    """What will be done, in the order it was asked for, and what a person should know of it.

    `budget` is in seconds of wall time, reckoned as if all cores were kept busy. Within it the cheapest come first,
    each with its folds, or else with a hold-out, or else not at all. `memory` is what is free, in bytes.
    """

    def offer(name: str, count: int) -> Planned:
        return Planned(name, count, expected(name, grids[name], size_for(count), speed))

    asked = [offer(name, folds) for name in names]
    if budget is None:
        _require_memory(asked, memory)
        return asked, []
    taken, remarks, left = dict[str, Planned](), list[str](), budget * cores
    for whole in sorted(asked, key=lambda one: one.cost.seconds):
        offers = [whole] if folds == 1 else [whole, offer(whole.name, 1)]
        found = next((one for one in offers if one.cost.seconds <= left and one.cost.bytes <= memory), None)
        if found is not whole:
            remarks.append(_remark(offers, found, left / cores, cores, memory))
        if found:
            taken[whole.name], left = found, left - found.cost.seconds
    if not taken:
        raise UserError(f"budget={time_text(budget)} is too little: {remarks[0]}")
    return [taken[name] for name in names if name in taken], remarks


def _remark(offers: Sequence[Planned], found: Planned | None, left: float, cores: int, memory: int) -> str:
    """Why it is not done as it was asked for."""
    whole, least = offers[0], offers[-1]
    if found is None and least.cost.bytes > memory:
        return f"{least.name} is left out: it needs {_needs(least.cost)}, and {size_text(memory)} are free"
    least_time, whole_time = (time_text(one.cost.seconds / cores) for one in (least, whole))
    if found is None:
        how = "with a hold-out " * (least.folds == 1)
        return (
            f"{least.name} is left out: {how}it takes about {least_time}, and {time_text(left)} of the budget are left"
        )
    return f"{found.name}: a hold-out ({least_time}) instead of {whole.folds} folds ({whole_time})"


def _require_memory(asked: Sequence[Planned], memory: int) -> None:
    large = [one for one in asked if one.cost.bytes > memory]
    if not large:
        return
    worst, rest = max(large, key=lambda one: one.cost.bytes), [one.name for one in asked if one not in large]
    cheaper = f"take probe.probes=[{','.join(rest)}], or" if rest else "take another classifier, or"
    raise UserError(
        f"{worst.name} needs {_needs(worst.cost)}, and {size_text(memory)} are free; {cheaper} a smaller probe.labelled"
    )


def _needs(cost: Cost) -> str:
    return f"{size_text(cost.bytes)} of memory ({cost.mostly})"


# ------------------------------------------------------------ what a person says and reads


def read_budget(text: str) -> float:
    """Seconds of 10min, 90s, 1h30min, or of a plain number."""
    found = BUDGET.fullmatch(text)
    seconds = sum(SECONDS[unit] * float(value) for unit, value in found.groupdict("0").items()) if found else 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"budget={text!r} is no time; say 10min, 90s, 2h, 1h30min, or a number of seconds")
    return seconds


def time_text(seconds: float) -> str:
    if seconds < 1:
        return "under 1 s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def size_text(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else "under 0.1 GB"


def table_rows(planned: Sequence[Planned], grids: Mapping[str, Grid]) -> Iterator[tuple[str, str, str, str]]:
    """Name, search, processor time and memory, to be read."""
    for one in planned:
        settings = prod(len(values) for values in grids[one.name].values())
        folds = f"{one.folds} folds" if one.folds > 1 else "hold-out"
        yield one.name, f"{folds} x {settings} settings", time_text(one.cost.seconds), size_text(one.cost.bytes)


# ------------------------------------------------------------ what there is


def free_memory(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that the machine can give, and the control group that this process is in."""
    return min([int(psutil.virtual_memory().available), *_group_memory(groups, own)])


def _group_memory(groups: Path, own: Path) -> Iterator[int]:
    """What is left of each limit on the way up; files that the kernel may drop from memory do not count as used."""
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else []:
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        root = groups / kinds
        limit, used, dropped = GROUP_FILES[kinds]
        inside = root / path.strip("/")
        for folder in (inside, *inside.parents):
            if not folder.is_relative_to(root):
                break
            if (folder / limit).exists() and (most := (folder / limit).read_text().strip()) != "max":
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield int(most) - int((folder / used).read_text()) + int(stat.get(dropped, 0))
