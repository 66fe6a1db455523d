"""Everything that is measured lives in a process of its own, and all take turns, so that noise hits all alike."""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from distill.deploy.measure_machine import Meter, Others
from distill.deploy.measure_request import Options
from distill.errors import UserError
from distill.run_log import Talk

ROOT = Path(__file__).resolve().parents[2]
SERVE = "from distill.deploy.measure_worker import serve; serve()"
REST = 0.02  # seconds between turns: threads of the one before spin for a while


@dataclass(frozen=True)
class Asked:
    """What a worker is to open."""

    path: str
    form: str
    threads: int
    how: str = ""
    """eager, compile or bf16 in torch; empty for an exported file."""
    device: str = "cpu"
    batch: int = 1
    """Clips of a call, of which torch takes any number."""


@dataclass
class Record:
    """What one worker said."""

    asked: Asked
    failed: str = ""
    """Why there are no figures, or no more."""
    start: dict[str, Any] = field(default_factory=dict)
    rounds: dict[int, dict[str, Any]] = field(default_factory=dict)


@dataclass
class Surroundings:
    """Of a race."""

    others_cores: float
    """That other programs took, on average."""
    load: list[float]
    """The machine's load average at the start of each round, the measured processes' own share included."""
    idle_watts: float | None


class LostError(UserError):
    """A worker that could not do it, or is no more."""


class Worker:
    """A process with one thing to measure."""

    def __init__(self, asked: Asked, patience: float) -> None:
        self.patience = patience
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        # What a run would have: as many threads as it is told to use, and no more for numpy.
        own = {"OMP_NUM_THREADS": str(asked.threads), "OPENBLAS_NUM_THREADS": "1"}
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, json.dumps(asdict(asked))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            env={**os.environ, **own, "PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except OSError as error:
            raise LostError(self._end()) from error
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        ready, _, _ = select.select([self.process.stdout], [], [], self.patience)
        if not ready:
            self.close()
            raise LostError(f"gave no answer in {self.patience:g} seconds")
        line = self.process.stdout.readline()  # written in one piece
        if not line.endswith(b"\n"):
            raise LostError(self._end())
        told: dict[str, Any] = json.loads(line)
        if "failed" in told:
            raise LostError(told["failed"])
        return told

    def _end(self) -> str:
        """How it ended."""
        code = self.process.wait()
        self.complaints.seek(0)
        last = self.complaints.read().decode(errors="replace").strip().rpartition("\n")[2]
        if code >= 0:
            return f"its process ended with code {code}: {last or 'it said nothing'}"
        memory = "; if memory ran out, measure fewer at once" if -code == signal.SIGKILL else ""
        return f"its process was killed ({signal.Signals(-code).name}){memory}"

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin
        assert self.process.stdout
        with suppress(OSError):  # it may have ended before it read all
            self.process.stdin.close()
        self.process.stdout.close()
        self.complaints.close()


def orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """For every round, in which order so many have their turns."""
    draw = random.Random(seed)
    return [draw.sample(range(count), count) for _ in range(rounds)]


def race(asked: Sequence[Asked], options: Options, talk: Talk) -> tuple[list[Record], Surroundings]:
    """Start all, one after the other; then let all have their turns."""
    records = [Record(one) for one in asked]
    with ExitStack() as alive:
        running: list[tuple[Record, Worker]] = []
        with talk.track("open", len(records)) as track:
            for record in records:
                worker = _start(record, options)
                alive.callback(worker.close)
                if not record.failed:
                    running.append((record, worker))
                track.advance(news=Path(record.asked.path).name)
        return records, _rounds(running, options, talk)


def _start(record: Record, options: Options) -> Worker:
    started = time.perf_counter()
    worker = Worker(record.asked, options.patience)
    try:
        record.start = worker.answer()
        record.start["seconds"] = time.perf_counter() - started
    except LostError as error:
        record.failed = str(error)
    return worker


def _rounds(running: Sequence[tuple[Record, Worker]], options: Options, talk: Talk) -> Surroundings:
    if not running:
        return Surroundings(0.0, [], None)
    meter, load, idle = Meter(), list[float](), list[float]()
    others = Others(worker.process.pid for _, worker in running)
    with talk.track("measure", options.rounds) as track:
        for number, order in enumerate(orders(len(running), options.rounds, options.seed)):
            load.append(os.getloadavg()[0])
            for place in order:
                _turn(number, *running[place], options.seconds, meter)
            idle += _idle(meter, options.seconds)
            track.advance()
    watts = sum(idle) / len(idle) if idle else None
    return Surroundings(others.cores(), load, watts)


def _turn(number: int, record: Record, worker: Worker, seconds: float, meter: Meter) -> None:
    if record.failed:
        return
    time.sleep(REST)
    started, before = time.perf_counter(), meter.read()
    try:
        told = worker.ask({"seconds": seconds})
    except LostError as error:
        record.failed = str(error)
        return
    joules = meter.joules(before)
    record.rounds[number] = {**told, "joules": joules, "turn_seconds": time.perf_counter() - started}


def _idle(meter: Meter, seconds: float) -> list[float]:
    """Watts while nothing is measured, if the machine tells."""
    before = meter.read()
    if not before:
        return []
    started = time.perf_counter()
    time.sleep(seconds)
    joules = meter.joules(before)
    return [] if joules is None else [joules / (time.perf_counter() - started)]
