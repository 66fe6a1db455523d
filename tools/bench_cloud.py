"""What the cloud service costs: processor time of the server for a clip, latency with many cameras, memory.

    python -m tools.bench_cloud                     everything, about 5 minutes; loopback only
    python -m tools.bench_cloud speed               clips per second of one core, by how they are sent
    python -m tools.bench_cloud latency             1, 5, 20 and 100 cameras, a clip a second each
    python -m tools.bench_cloud memory              resident memory while clips keep coming

Server time is that of the server's process alone (user and system, psutil); who sends is another process. The way of
sending takes turns, in rounds, so that a noisy machine is noisy for all.
"""

from __future__ import annotations

import http.client
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from distill.live import wire
from distill.live.cloud import access
from distill.live.cloud.database import using
from distill.live.cloud.tables import DEVICE
from distill.probing.classifiers import PROBES
from distill.probing.saved import save_probe
from distill.run_log import Talk

WIDTH, CLASSES, ENCODER = 1024, 400, "bench"
ROUNDS, SENDERS, TURN_SECONDS = 7, 8, 2.5
WAYS = (  # format, encoding, clips of a message
    (wire.JSON, "list", 1),
    (wire.JSON, "float16", 1),
    (wire.MSGPACK, "float16", 1),
    (wire.MSGPACK, "int8", 1),
    (wire.MSGPACK, "int8", 16),
    (wire.MSGPACK, "float16", 32),
    (wire.MSGPACK, "int8", 64),
)
CAMERAS = (1, 5, 20, 100)
PORT = 8765


@dataclass(frozen=True)
class Server:
    process: psutil.Process
    key: str

    def cpu(self) -> float:
        return float(sum(self.process.cpu_times()[:2]))


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    probe, rng = PROBES["ridge"].make(0), np.random.default_rng(0)
    labels = np.arange(2 * CLASSES) % CLASSES
    probe.fit(rng.normal(size=(len(labels), WIDTH)).astype(np.float32), labels)
    file = folder / "probe.safetensors"
    save_probe(probe, [f"class {label}" for label in range(CLASSES)], file, {"table": {"student": ENCODER}})
    with using(f"sqlite:///{folder / 'cloud.sqlite'}") as engine:
        key = access.add(engine, "box", DEVICE)
    command = [sys.executable, "-m", "distill.cli", "cloud", f"classifier={file}", f"out={folder}", f"port={PORT}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            _wait_until_ready()
            yield Server(psutil.Process(process.pid), key)
        finally:
            process.terminate()


def _wait_until_ready() -> None:
    for _ in range(200):
        try:
            line = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
            line.request("GET", "/health/ready")
            if line.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not start")


class Sender:
    """One connection that sends messages of its own cameras, one after the other."""

    def __init__(self, server: Server, name: str, media: str, encoding: str, clips: int) -> None:
        self.line = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
        self.headers = {"Authorization": f"Bearer {server.key}", "Content-Type": media}
        self.name, self.media, self.clips, self.seq = name, media, clips, 0
        rng = np.random.default_rng(abs(hash(name)) % 1000)
        self.latents = [wire.pack(rng.normal(size=WIDTH).astype(np.float32), encoding) for _ in range(clips)]
        self.boot = f"b{time.time_ns()}"

    def send(self) -> float:
        """Seconds until it was stored."""
        now = time.time()
        clips = [
            wire.Clip(f"{self.name} {place % 16}", self.boot, self.seq + place, now, latent)
            for place, latent in enumerate(self.latents)
        ]
        self.seq += self.clips
        body = wire.dump(wire.Post(ENCODER, now, clips), self.media)
        started = time.perf_counter()
        self.line.request("POST", "/v1/latents", body, self.headers)
        answer = self.line.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"{answer.status} {text[:200]!r}")
        return time.perf_counter() - started


def speed(server: Server, talk: Talk) -> None:
    found: dict[tuple[str, str, int], list[float]] = {way: [] for way in WAYS}
    for round_ in range(ROUNDS + 1):
        for way in WAYS:
            seconds = _turn(server, way)
            if round_:  # the first warms up
                found[way].append(seconds)
    rows = []
    for (media, encoding, clips), costs in found.items():
        low, middle, high = statistics.quantiles(costs, n=4)
        name = f"{media.partition('/')[2]} {encoding}, {clips} a message"
        rows.append((name, f"{1e6 * middle:.0f}", f"{1e6 * low:.0f} to {1e6 * high:.0f}", f"{1 / middle:,.0f}"))
    talk.table("server's processor time", ("", "us a clip", "quartiles", "clips/s of one core"), rows)


def _turn(server: Server, way: tuple[str, str, int]) -> float:
    """Processor seconds of a clip, with several senders at once."""
    senders = [Sender(server, f"camera {number}", *way) for number in range(SENDERS)]
    until, before = time.monotonic() + TURN_SECONDS, server.cpu()

    def work(sender: Sender) -> int:
        while time.monotonic() < until:
            sender.send()
        return sender.seq

    with ThreadPoolExecutor(SENDERS) as pool:
        clips = sum(pool.map(work, senders))
    return (server.cpu() - before) / clips


def latency(server: Server, talk: Talk) -> None:
    rows = []
    for cameras in CAMERAS:
        senders = [Sender(server, f"camera {number}", wire.MSGPACK, "float16", 1) for number in range(cameras)]
        before, started = server.cpu(), time.monotonic()
        with ThreadPoolExecutor(cameras) as pool:
            taken = [each for one in pool.map(_once_a_second, senders, range(cameras)) for each in one]
        busy = (server.cpu() - before) / (time.monotonic() - started)
        p50, p90, p99 = np.percentile(taken, [50, 90, 99]) * 1e3
        rows.append((str(cameras), f"{len(taken)}", f"{p50:.1f}", f"{p90:.1f}", f"{p99:.1f}", f"{100 * busy:.1f} %"))
    talk.table(
        "a clip a second of each camera, ms until stored", ("cameras", "clips", "p50", "p90", "p99", "server"), rows
    )


def _once_a_second(sender: Sender, place: int, seconds: int = 20) -> list[float]:
    start, found = time.monotonic() + (place * 0.618) % 1, []
    for tick in range(seconds):
        time.sleep(max(0.0, start + tick - time.monotonic()))
        found.append(sender.send())
    return found


def memory(server: Server, talk: Talk, clips: int = 300_000) -> None:
    rows, sent = [], 0
    senders = [Sender(server, f"camera {number}", wire.MSGPACK, "int8", 64) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        while sent < clips:
            for _ in range(40):
                list(pool.map(Sender.send, senders))
                sent += 4 * 64
            if sent // 10_240 in (1, 2, 5, 10, 15, 20, 25, 29):
                rows.append((f"{sent:,}", f"{server.process.memory_info().rss / 1e6:.1f}"))
    talk.table("resident memory of the service", ("clips stored", "MB"), rows)


PARTS = {"speed": speed, "latency": latency, "memory": memory}


def main(arguments: list[str]) -> None:
    talk = Talk()
    for name in arguments or list(PARTS):
        if not re.fullmatch("|".join(PARTS), name):
            raise SystemExit(f"there is no part {name!r}; known: {', '.join(PARTS)}")
        with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server:
            PARTS[name](server, talk)


if __name__ == "__main__":
    main(sys.argv[1:])
