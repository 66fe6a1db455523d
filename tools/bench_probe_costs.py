"""What probes cost beside what was said before, on made-up latents: `python -m tools.bench_probe_costs`.

Each runs in a process of its own, on one thread: how long more of them wait for one another is no law, and on a machine
that others use too it is most of the time. The constants of the laws are from here.
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from distill.probing.classifiers import PROBES
from distill.probing.costs import Cost, Planned, Speed, expected
from distill.probing.judging import Judgement
from distill.probing.table import LatentTable, Split
from distill.probing.work import Size
from distill.run_log import Talk
from tools.bench_probe import latents

SIZES = ("700x128x6", "2000x256x20", "5700x1024x100")


def measured(name: str, size: Size) -> Cost:
    """In a process of its own: its peak is this classifier's."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measured, name, size).result()


def _measured(name: str, size: Size) -> Cost:
    table, planned = _table(size), Planned(name, size.folds, Cost(0.0, 0.0))
    with TemporaryDirectory() as folder, Talk(False).track(name, 1) as track:
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        found, _ = Judgement(table, planned, 0, Path(folder), track)()
        return Cost(found["cost"]["seconds"], _status("VmHWM") - before)


def _table(size: Size) -> LatentTable:
    rows, label = latents(size.rows + size.test, size.classes)
    rows = rows[:, : size.width].copy()
    splits = {
        "train": Split(rows[: size.rows], label[: size.rows]),
        "test": Split(rows[size.rows :], label[size.rows :]),
    }
    return LatentTable([str(place) for place in range(size.classes)], splits)


def _status(key: str) -> int:
    """Bytes of this process's memory."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", default=list(PROBES), choices=list(PROBES))
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="rows x features x classes")
    parser.add_argument("--folds", type=int, default=5, help="1: a tenth is held out")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    talk, lines = Talk(), []
    for text in given.sizes:
        rows, width, classes = map(int, text.split("x"))
        size = Size(rows, rows if given.folds > 1 else rows // 10, rows // 3, width, classes, given.folds)
        for name in given.only:
            said, found = expected(name, PROBES[name].grid(rows), size, Speed.measured()), measured(name, size)
            ratio = f"{said.seconds / found.seconds:.2f}"
            memory = f"{said.bytes / 1e6:.0f}", f"{found.bytes / 1e6:.0f}"
            lines.append((name, text, f"{said.seconds:.2f}", f"{found.seconds:.2f}", ratio, *memory))
            talk.say("  ".join(lines[-1]))
    head = ("", "rows x features x classes", "expected, s", "measured, s", "ratio", "expected, MB", "measured, MB")
    talk.table(f"{given.folds} folds", head, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
