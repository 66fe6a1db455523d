"""The job `edge`: cameras, the encoder, the spool and the sender, put together."""

from __future__ import annotations

import importlib.util
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx2

from distill.errors import UserError
from distill.live import request as viewing
from distill.live.edge.camera import Camera
from distill.live.edge.encoder import Encoder
from distill.live.edge.health import Watch
from distill.live.edge.page import served
from distill.live.edge.pipe import Order
from distill.live.edge.request import Options, spool_path
from distill.live.edge.rounds import Rounds
from distill.live.edge.sender import Reporter, Sender
from distill.live.edge.spool import Spool, Spooled
from distill.live.links import safe
from distill.live.listening import address, is_here, taken
from distill.live.showing import stopping
from distill.live.sources import DEMO, open_source
from distill.run_log import Talk

WATCH_SECONDS = 0.25  # between two looks at whether cameras are silent
LEAVING_SECONDS = 3.0  # that sending may take once a person wants the edge to stop
LAST_SECONDS = 30.0  # without anything arriving, after which the edge ends with clips in its spool


def edge(options: Options) -> dict[str, Any]:
    """Watch cameras on a small box, and send what they see to the cloud as latents, never as pictures.

    Each camera is read by a process of its own, which is killed and started anew when it falls silent. Every so often
    the fresh clips of all cameras are encoded in one call, and kept on the disk until the cloud has said that it has
    them: a cloud that is away for hours costs nothing. A page on this box shows how it goes; /status says the same as
    JSON, /metrics to Prometheus. Ctrl-C ends it; so does the end of all videos.

    DISTILL_KEY=... distill edge recipe=edge model=runs/tinyact/export/encoder-int8.tflite
    distill edge model=runs/quickstart/distilled cameras.hall=demo every=2
    """
    talk = Talk()
    for name, source in options.cameras.items():
        check_source(f"cameras.{name}", source, options.drop)
    encoder = Encoder(Path(options.model), options.threads)
    with ExitStack() as closing:
        socket = closing.enter_context(taken(options.host, options.port)) if options.port else None
        spool = Spool(spool_path(options), options.spool_mb * 1e6, options.spool_hours * 3600, talk.warn)
        closing.callback(spool.close)
        sender = Sender(options, spool, talk.warn) if options.cloud else None
        stop = closing.enter_context(stopping())
        changed = threading.Condition()
        cameras = [Camera(name, _order(options, encoder, name), changed, talk.warn) for name in options.cameras]
        boot = secrets.token_hex(8)
        rounds = Rounds(options, cameras, changed, encoder, _keep(spool, sender), encoder.id, boot)
        watch = Watch(options, cameras, rounds, spool, sender)
        if socket:
            closing.enter_context(served(watch, socket))
            talk.say(f"page: {address(options.host, options.port)}")
        talk.say(_about(options, encoder))
        if options.cloud.startswith("http://") and not is_here(httpx2.URL(options.cloud).host):
            talk.warn(f"{options.cloud} is not encrypted: whoever is on the way can read the key; use https://")
        if sender:
            sender.start()
            reporter = Reporter(sender, options.status_every, watch.state)
            closing.callback(reporter.stop)
            reporter.start()
        with reading(cameras):
            rounds.run(stop)
        if sender:
            sender.leave(_cut(stop, sender))
        return _figures(watch, talk)


def check_source(key: str, source: str, drop: str) -> None:
    """What a person can put right before anything is started; whether a camera answers shows later."""
    if source.isdecimal() and not importlib.util.find_spec("cv2"):
        raise UserError(f"{key}={source}: webcams need OpenCV, which is not installed: pip install 'distill[live]'")
    live = source.isdecimal() or bool(re.match(r"\w[\w+.-]*://", source))
    if live and drop == "wait":
        raise UserError(f"{key}={safe(source)}: drop=wait is for files and demo; a camera waits for nobody")
    if source.isdecimal() or source == DEMO:
        return
    try:
        open_source(viewing.Options(source=source), (), str)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error


@contextmanager
def reading(cameras: Sequence[Camera]) -> Iterator[None]:
    """Cameras, started and looked after."""
    stopped = threading.Event()

    def look_after() -> None:
        while not stopped.wait(WATCH_SECONDS):
            for camera in cameras:
                camera.watch()

    for camera in cameras:
        camera.start()
    threading.Thread(target=look_after, daemon=True, name="distill edge: watch").start()
    try:
        yield
    finally:
        stopped.set()
        for camera in cameras:
            camera.stop()
        for camera in cameras:
            camera.join()


def _order(options: Options, encoder: Encoder, name: str) -> Order:
    card = encoder.card
    return Order(
        source=options.cameras[name],
        classes=card.classes,
        frames=card.frames,
        size=card.size,
        seconds=options.seconds or card.seconds,
        every=options.every,
        drop=options.drop,
        repeat=options.repeat,
        silence=options.silence,
    )


def _keep(spool: Spool, sender: Sender | None) -> Callable[[Sequence[Spooled]], None]:
    def keep(clips: Sequence[Spooled]) -> None:
        spool.add(clips)
        if sender:
            sender.wake()

    return keep


def _about(options: Options, encoder: Encoder) -> str:
    card, cameras = encoder.card, ", ".join(f"{name} ({safe(source)})" for name, source in options.cameras.items())
    seconds = options.seconds or card.seconds
    about = f"{card.student}, {card.format} {card.precision}, {card.frames} frames of {seconds:g} s"
    where = f"latents go to {options.cloud}" if options.cloud else f"latents stay in {spool_path(options)}"
    return f"{options.model} ({about}) looks at {cameras}; {where}"


def _cut(stop: threading.Event, sender: Sender) -> Callable[[], bool]:
    """Whether what is left has to wait for another day."""
    asked = time.monotonic() if stop.is_set() else 0.0

    def cut() -> bool:
        nonlocal asked
        asked = asked or (time.monotonic() if stop.is_set() else 0.0)
        now = time.monotonic()
        return now > asked + LEAVING_SECONDS if asked else now > sender.moved + LAST_SECONDS

    return cut


def _figures(watch: Watch, talk: Talk) -> dict[str, Any]:
    health = watch.health()
    edge, cameras = health.edge, health.edge.cameras
    if not any(camera.clips for camera in cameras):
        broken = [
            f"cameras.{camera.name}: {camera.why}" for camera in cameras if camera.state == "ended" and camera.why
        ]
        if len(broken) == len(cameras):
            raise UserError(broken[0])
    if edge.spool_clips and health.cloud:
        talk.warn(f"{edge.spool_clips} clips wait in {watch.spool.path}; the next start sends them")
    return {
        "cameras": len(cameras),
        "clips": sum(camera.clips for camera in cameras),
        "clips_dropped": sum(camera.clips_dropped for camera in cameras),
        "encode_ms": edge.encode_ms,
        "sent": edge.sent_clips,
        "send_errors": edge.send_errors,
        "refused": health.refused,
        "waiting": edge.spool_clips,
        "given_up": edge.spool_dropped,
        "reconnects": sum(camera.reconnects for camera in cameras),
    }
