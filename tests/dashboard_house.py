"""A cloud service that a test starts, stops and feeds, as edges would; all through the contract."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

import numpy as np
import uvicorn
from dashboard_standin import Memory, app

from distill.live import wire

EVIL = "<img src=x onerror=\"document.title='owned'\">"
CLASSES = ("wave", "clap", "walk", "sit down", EVIL)
ENCODER = "sha256:6f2c19ab"


def latent(label: str, confidence: float, classes: tuple[str, ...] = CLASSES) -> list[float]:
    """One whose softmax is that sure of this class."""
    numbers = np.zeros(len(classes), np.float32)
    numbers[classes.index(label)] = np.log(confidence * (len(classes) - 1) / (1 - confidence))
    return [float(number) for number in numbers]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class House:
    viewer = "viewer-key-1"

    def __init__(
        self, classes: tuple[str, ...] = CLASSES, devices: dict[str, str] | None = None, port: int = 0
    ) -> None:
        self.classes, self.port, self.seq = classes, port or free_port(), itertools.count()
        self.devices = devices or {"box1": "device-key-1", "box2": "device-key-2"}
        self.memory = Memory(classes, self.devices, [self.viewer])
        self.server: uvicorn.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> House:
        config = uvicorn.Config(
            app(self.memory), "127.0.0.1", self.port, log_level="critical", timeout_graceful_shutdown=0, lifespan="off"
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def stop(self) -> None:
        if self.server:
            self.server.should_exit = True
            self.thread.join(10)
            self.server = None

    def revoke(self) -> None:
        """The viewer's key is void from now on."""
        self.memory.viewers.clear()

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
        with urllib.request.urlopen(urllib.request.Request(self.url + path, body, headers), timeout=10) as answer:
            found: bytes = answer.read()
        return found
