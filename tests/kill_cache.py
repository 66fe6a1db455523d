"""Kills a caching job over and over at random instants: python kill_cache.py REFERENCE WORK KILLS recipe arguments...

Everything is imported once and forked, so that a job starts in no time. Whenever a cache gets finished it is compared
with the reference, byte by byte, and the next one begins. Prints how many kills, caches and differences there were.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import distill.probing.probe
import distill.teaching.caching  # noqa: F401
from distill import command


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def job(arguments: list[str]) -> int:
    child = os.fork()
    if child == 0:
        os.setsid()
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os._exit(command.run("cache", arguments))
    return child


def main() -> None:
    reference, work, goal, *arguments = sys.argv[1:]
    expected, dice = tree(Path(reference)), random.Random(0)
    kills = caches = differences = 0
    usual = 0.0  # seconds that a job takes, as far as one has finished of late; the first is left alone
    while kills < int(goal) or Path(work).exists():
        started = time.monotonic()
        several = [job([*arguments, f"cache.folder={work}"]) for _ in range(1 + (kills % 4 == 3))]
        if kills < int(goal) and usual:
            time.sleep(dice.uniform(0, 1.2 * usual))
            usual *= 1.05  # a machine that gets busy still finishes some
            for child in several:
                kills += os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
                os.kill(child, signal.SIGKILL)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in several]
        assert set(codes) <= {0, -signal.SIGKILL}, codes
        if 0 in codes:
            took = time.monotonic() - started
            usual = min(usual, took) if usual else took
            if any(codes):  # whoever was killed beside the one that got through left something for the next job
                assert os.waitpid(job([*arguments, f"cache.folder={work}"]), 0)[1] == 0
            found = tree(Path(work))
            caches, differences = caches + 1, differences + (found != expected)
            if found != expected:
                odd = [name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)]
                print("differ:", odd[:5], file=sys.stderr)
            shutil.rmtree(work)
    print(kills, caches, differences)


if __name__ == "__main__":
    main()
