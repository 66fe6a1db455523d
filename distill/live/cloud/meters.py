"""What Prometheus is told."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # where the workers of one service put their numbers together
LIVE = "gauge_live"  # how files of numbers begin that count as long as their worker lives
FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Meters:
    """Of one worker."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        name = "distill_cloud"
        self.requests = Counter(f"{name}_requests", "Answers, by route and code", ["route", "code"], registry=own)
        self.seconds = Histogram(f"{name}_request_seconds", "Of POSTs", ["route"], buckets=FAST, registry=own)
        self.clips = Counter(f"{name}_clips", "Clips that came: stored now, or known before", ["was"], registry=own)
        self.queue = Gauge(f"{name}_queue_clips", "Clips that wait", registry=own, multiprocess_mode="livesum")
        self.batch = Histogram(f"{name}_batch_clips", "Clips stored in one go", buckets=SIZES, registry=own)
        self.classify = Histogram(f"{name}_classify_seconds", "For one batch", buckets=FAST, registry=own)
        self.database = Histogram(f"{name}_database_seconds", "For one batch", buckets=FAST, registry=own)
        self.seen = Gauge(
            f"{name}_camera_last_seen_seconds", "Since 1970: the camera's latest clip came",
            ["device", "camera"], registry=own, multiprocess_mode="max",
        )  # fmt: skip

    def text(self) -> bytes:
        if FOLDER not in os.environ:
            return generate_latest(self.registry)
        _forget_the_dead(Path(os.environ[FOLDER]))
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _forget_the_dead(folder: Path) -> None:
    """Workers that were killed have nothing waiting any more; the server that starts others does not say so."""
    for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob(f"{LIVE}*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            with suppress(FileNotFoundError):  # another worker was told to look at the same moment
                multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]
