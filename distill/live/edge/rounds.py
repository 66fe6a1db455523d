"""When which camera is asked for a clip, and how all clips that are there become latents in one call.

Shape legend: K clips, T frames, S side of what the model sees, L latent width.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from distill.live import wire
from distill.live.edge.camera import Camera, View
from distill.live.edge.request import Options
from distill.live.edge.spool import Spooled

GATHER_SECONDS = 0.1  # that a camera which was just asked is waited for; one that hangs makes nobody wait again
TICK = 0.25  # seconds between two looks at whether one should stop
LATELY = 0.2  # share of the newest round in what encoding takes

Encode = Callable[[np.ndarray], tuple[np.ndarray, float]]  # uint8 [K,T,S,S,3] -> float32 [K,L], milliseconds a clip


class Rounds:
    """The main thread's work."""

    def __init__(
        self,
        options: Options,
        cameras: Sequence[Camera],
        changed: threading.Condition,
        encode: Encode,
        spool: Callable[[Sequence[Spooled]], object],
        encoder: str,
        boot: str,
    ) -> None:
        self.options, self.cameras, self.changed = options, cameras, changed
        self.encode, self.spool, self.encoder, self.boot = encode, spool, encoder, boot
        self.encode_ms, self.encoded, self.seconds = 0.0, 0, 0.0  # lately; clips so far, and the time that they took
        # The reader itself keeps the rhythm where clips wait for the model, not the model for clips.
        self.every = options.every if options.drop in ("oldest", "adaptive") else 0.0
        self.began = time.monotonic()
        self.due = dict.fromkeys((camera.name for camera in cameras), -math.inf)

    def run(self, stop: threading.Event) -> None:
        """Until it is stopped, every camera has ended, or there were clips enough."""
        while not stop.is_set():
            with self.changed:
                self._ask()
                views = self._gather()
                if not views and all(self._over(camera) for camera in self.cameras):
                    return
            if views:
                self._encode(views)

    def _ask(self) -> None:
        now = time.monotonic()
        for camera in self.cameras:
            if camera.may_be_asked and self.due[camera.name] <= now and not self._enough(camera):
                if camera.running_since <= self.due[camera.name] and self.every:
                    camera.clips_missed += int((now - self.due[camera.name]) / self.every)
                camera.ask(max(0.0, self._next(now) - now) if self.every else 0.0)

    def _gather(self) -> list[View]:
        """What is there once one clip is, and those that were asked for with it."""
        idle = [camera.name for camera in self.cameras if camera.may_be_asked and not self._enough(camera)]
        soonest = min((self.due[name] for name in idle), default=math.inf)
        self.changed.wait_for(self._some, min(TICK, max(0.0, soonest - time.monotonic())))
        if self._some():
            self.changed.wait_for(self._all, GATHER_SECONDS)
        now = time.monotonic()
        views = [view for camera in self.cameras if (view := camera.take()) is not None]
        self.due.update(dict.fromkeys((view.camera for view in views), self._next(now)))
        return views

    def _some(self) -> bool:
        return any(camera.view is not None for camera in self.cameras)

    def _all(self) -> bool:
        lately = time.monotonic() - GATHER_SECONDS
        return not any(lately < camera.asked_at < math.inf for camera in self.cameras)

    def _next(self, now: float) -> float:
        """The beat after this moment; all cameras have the same, so that their clips come together."""
        if not self.every:
            return now
        return self.began + (math.floor((now - self.began) / self.every) + 1) * self.every

    def _encode(self, views: Sequence[View]) -> None:
        latents, clip_ms = self.encode(np.stack([view.pixels for view in views]))
        self.encoded, self.seconds = self.encoded + len(views), self.seconds + clip_ms * len(views) / 1000
        self.encode_ms += (LATELY if self.encode_ms else 1.0) * (clip_ms - self.encode_ms)
        by_name = {camera.name: camera for camera in self.cameras}
        spooled = []
        for view, latent in zip(views, latents, strict=True):
            camera = by_name[view.camera]
            if not np.isfinite(latent).all():
                camera.clips_missed += 1
                camera.tell(f"camera {camera.name}: the model's latent of a clip is not finite; it is left out")
                continue
            packed = wire.pack(latent, self.options.encoding)
            clip = wire.Clip(view.camera, self.boot, camera.clips, max(0.0, view.captured), packed, clip_ms)
            spooled.append(Spooled(clip, self.encoder))
            camera.clips += 1
        if spooled:
            self.spool(spooled)

    def _enough(self, camera: Camera) -> bool:
        return 0 < self.options.most_clips <= camera.clips

    def _over(self, camera: Camera) -> bool:
        return self._enough(camera) or (camera.state == "ended" and camera.view is None)
