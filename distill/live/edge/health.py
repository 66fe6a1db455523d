"""How the edge is: for the cloud, for its own page, and for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from distill.live import wire
from distill.live.edge.camera import Camera
from distill.live.edge.request import Options
from distill.live.edge.rounds import Rounds
from distill.live.edge.sender import Sender, Told
from distill.live.edge.spool import Spool
from distill.live.links import safe

OF_CAMERAS = {  # counter -> what it counts
    "frames": "Frames read",
    "frames_dropped": "Frames that were not kept for a clip",
    "clips": "Clips encoded",
    "clips_dropped": "Clips that the model came too late for",
    "reconnects": "Times that a lost camera came back",
}


class Seen(msgspec.Struct):
    """What a camera looks at, and what the cloud saw in its latest clip."""

    source: str
    told: Told | None


class Health(msgspec.Struct):
    edge: wire.EdgeState
    cameras: dict[str, Seen]
    cloud: str
    """Where clips go; empty: nowhere."""
    trouble: str
    """Why they do not arrive, if they do not."""
    disk: str
    """Why they are not on the disk, if they are not."""
    dropped: dict[str, int]
    """Clips of each camera that were given up, in the life of the spool."""
    refused: int
    """Of these, those that the cloud will never take, since the edge started."""


class Watch:
    """Asks everybody how it goes."""

    def __init__(
        self, options: Options, cameras: Sequence[Camera], rounds: Rounds, spool: Spool, sender: Sender | None
    ) -> None:
        self.options, self.cameras, self.rounds, self.spool, self.sender = options, cameras, rounds, spool, sender
        self.started, self.version = time.monotonic(), version("distill")

    def state(self) -> wire.EdgeState:
        depth = self.spool.depth()
        return wire.EdgeState(
            boot=self.rounds.boot,
            sent=time.time(),
            version=self.version,
            encoder=self.rounds.encoder,
            model=self.options.model[-wire.LONGEST_TEXT :],
            uptime_seconds=time.monotonic() - self.started,
            spool_clips=depth.clips,
            spool_bytes=depth.bytes,
            spool_seconds=depth.seconds,
            spool_dropped=depth.dropped.total(),
            sent_clips=self.sender.sent if self.sender else 0,
            send_errors=self.sender.errors if self.sender else 0,
            encode_ms=self.rounds.encode_ms,
            cameras=[camera.report() for camera in self.cameras],
            report_seconds=self.options.status_every,
        )

    def health(self) -> Health:
        told = self.sender.told if self.sender else {}
        return Health(
            edge=self.state(),
            cameras={camera.name: Seen(safe(camera.order.source), told.get(camera.name)) for camera in self.cameras},
            cloud=self.options.cloud,
            trouble=self.sender.trouble if self.sender else "",
            disk=self.spool.trouble,
            dropped=dict(self.spool.depth().dropped),
            refused=self.sender.refused if self.sender else 0,
        )


class Exporter(Collector):
    """The same as Prometheus reads it."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def collect(self) -> Iterable[Metric]:
        health = self.watch.health()
        edge = health.edge
        for name, about in OF_CAMERAS.items():
            counted = CounterMetricFamily(f"distill_edge_{name}", about, labels=["camera"])
            for camera in edge.cameras:
                counted.add_metric([camera.name], getattr(camera, name))
            yield counted
        running = GaugeMetricFamily("distill_edge_camera_running", "Whether frames come", labels=["camera"])
        dropped = CounterMetricFamily("distill_edge_spool_dropped", "Clips given up unsent", labels=["camera"])
        for camera in edge.cameras:
            running.add_metric([camera.name], float(camera.state == "running"))
            dropped.add_metric([camera.name], health.dropped.get(camera.name, 0))
        yield from (running, dropped)
        rounds = self.watch.rounds
        yield SummaryMetricFamily(
            "distill_edge_encode_seconds", "Of encoding, by clip", count_value=rounds.encoded, sum_value=rounds.seconds
        )
        yield GaugeMetricFamily("distill_edge_spool_clips", "Clips that wait to be sent", edge.spool_clips)
        yield GaugeMetricFamily("distill_edge_spool_bytes", "Bytes of clips that wait", edge.spool_bytes)
        yield GaugeMetricFamily("distill_edge_spool_age_seconds", "Age of the oldest that waits", edge.spool_seconds)
        yield CounterMetricFamily("distill_edge_sent", "Clips that the cloud has", edge.sent_clips)
        yield CounterMetricFamily("distill_edge_send_errors", "Messages that failed", edge.send_errors)
