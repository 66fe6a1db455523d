"""A cloud service that a test starts, stops and feeds as edges would, in this process and at a real port."""

from __future__ import annotations

import functools
import itertools
import json
import socket
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn

from distill.live import wire
from distill.live.cloud import access
from distill.live.cloud.database import open_database
from distill.live.cloud.request import Options
from distill.live.cloud.service import make_app
from distill.live.cloud.tables import DEVICE, VIEWER
from distill.probing.classifiers import PROBES
from distill.probing.saved import save_probe

EVIL = "<img src=x onerror=\"document.title='owned'\">"
CLASSES = ("wave", "clap", "walk", "sit down", EVIL)
ENCODER = "6f2c19ab"


def save_classifier(path: Path, classes: tuple[str, ...]) -> None:
    """A probe that takes a latent's softmax for its shares."""
    probe: Any = PROBES["logistic_regression"].make(0)
    identity = np.eye(len(classes), dtype=np.float32)
    probe.fit(identity.repeat(3, 0), np.arange(len(classes)).repeat(3))
    probe.coef_, probe.intercept_ = identity.astype(probe.coef_.dtype), np.zeros_like(probe.intercept_)
    save_probe(probe, classes, path, {"table": {"student": ENCODER}})


def latent(label: str, confidence: float, classes: tuple[str, ...]) -> list[float]:
    """One that will be taken for this, and be that sure."""
    numbers = np.zeros(len(classes), np.float32)
    numbers[classes.index(label)] = np.log(confidence * (len(classes) - 1) / (1 - confidence))
    return [float(number) for number in numbers]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


class House:
    def __init__(
        self,
        folder: Path,
        classes: tuple[str, ...] = CLASSES,
        devices: tuple[str, ...] = ("box1", "box2"),
        port: int = 0,
    ) -> None:
        self.classes, self.port, self.seq = classes, port or free_port(), itertools.count()
        self.server: uvicorn.Server | None = None
        folder.mkdir(exist_ok=True)
        save_classifier(folder / "probe.safetensors", classes)
        self.options = Options(str(folder / "probe.safetensors"), database=f"sqlite:///{folder / 'cloud.sqlite'}")
        self.devices = {name: access.add(self.engine, name, DEVICE) for name in devices}
        self.viewer = access.add(self.engine, "ann", VIEWER)

    @functools.cached_property
    def engine(self) -> Any:
        return open_database(self.options.url)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> House:
        quiet: dict[str, Any] = {"log_config": None, "log_level": "critical", "access_log": False}
        app = make_app(self.options)
        config = uvicorn.Config(app, "127.0.0.1", self.port, timeout_graceful_shutdown=0, **quiet)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive()
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        if self.server:
            self.server.should_exit = True
            self.thread.join(15)
            assert not self.thread.is_alive()
            self.server = None

    def close(self) -> None:
        self.stop()
        self.engine.dispose()

    def revoke(self) -> None:
        """The viewer's key is void within seconds."""
        access.revoke(self.engine, "ann")

    def send(self, device: str, camera: str, *said: tuple[str, float], ago: float = 0.0, **values: Any) -> None:
        """Clips that will be taken for these actions, with these confidences."""
        now = time.time()
        clips = [
            wire.Clip(camera, "ab12", next(self.seq), now - ago, latent(label, sure, self.classes), 12.0)
            for label, sure in said
        ]
        post = wire.Post(ENCODER, now, clips, **{"network_ms": 3.0, **values})
        self._call("/v1/latents", self.devices[device], wire.dump(post, wire.JSON))

    def report(self, device: str, *cameras: wire.CameraState, **values: Any) -> None:
        usual = {"uptime_seconds": 7200.0, "spool_clips": 0, "spool_bytes": 0, "spool_seconds": 0.0, "spool_dropped": 0}
        usual |= {"sent_clips": 120, "send_errors": 0, "encode_ms": 12.0, "cameras": list(cameras), "model": "tinyact"}
        usual |= {"boot": "ab12", "sent": time.time(), "version": "0.1.0", "encoder": ENCODER, **values}
        self._call("/v1/status", self.devices[device], wire.dump(wire.EdgeState(**usual), wire.JSON))

    def read(self, path: str, **values: Any) -> Any:
        return json.loads(self._call(f"/v1/{path}?{urllib.parse.urlencode(values)}", self.viewer))

    def _call(self, path: str, key: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": wire.JSON}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=20) as answer:
            found: bytes = answer.read()
        return found
