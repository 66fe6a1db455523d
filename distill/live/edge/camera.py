"""A camera as the edge has it: a process that reads it, watched, and started anew when it falls silent or dies."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

import distill
from distill.live import wire
from distill.live.edge.pipe import Ask, Beat, News, Order, Over, Said, Taken, receive, send
from distill.live.edge.request import KEY
from distill.live.feed import pause

READ = "from distill.live.edge.reader import main; main()"
START_SECONDS = 30.0  # that a process is given to come to its first frame, besides its silence
LONGEST_PAUSE = 60.0  # before a lost camera is read again
PATIENCE = 2.0  # seconds that what was killed is given to be gone
FPS_SECONDS = 5.0  # over which frames are counted


@dataclass(frozen=True)
class View:
    """One clip that a camera gave."""

    camera: str
    pixels: np.ndarray  # uint8 [T,S,S,3]
    captured: float  # its last frame, in seconds since 1970


class Camera:
    """Runs in a thread of its own from `start` to `stop`; `changed` is notified of clips, and of every other state."""

    def __init__(self, name: str, order: Order, changed: threading.Condition, tell: Callable[[str], object]) -> None:
        self.name, self.order, self.changed, self.tell = name, order, changed, tell
        self.state: Literal["starting", "running", "lost", "ended"] = "starting"
        self.why = ""
        self.view: View | None = None
        self.asked_at = math.inf  # by time.monotonic; inf: nothing is asked for
        self.running_since = math.inf
        self.clips = self.clips_missed = self.reconnects = 0
        self._before = self._now = Beat(0, 0, 0)  # of the processes before this one, and of this one
        self._beats = deque[tuple[float, int]](maxlen=64)
        self._heard, self._killed_for = 0.0, ""
        self._process: subprocess.Popen[bytes] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name=f"distill edge: {name}")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._kill()

    def join(self) -> None:
        self._thread.join(PATIENCE)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def may_be_asked(self) -> bool:
        return self.state == "running" and self.asked_at == math.inf and self.view is None

    def ask(self, next_seconds: float) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self.asked_at = self._heard = time.monotonic()
        with contextlib.suppress(OSError):  # it has died, as its thread will hear
            send(self._process.stdin, Ask(next_seconds))

    def take(self) -> View | None:
        view, self.view = self.view, None
        return view

    def watch(self) -> None:
        """End the process if it has been silent for too long. One that waits until it is asked is not silent."""
        started = self._now.frames > 0
        silent = time.monotonic() - self._heard
        waits = self._now.waits and self.asked_at == math.inf
        if self._process and not waits and silent > self.order.silence + (0 if started else START_SECONDS):
            self._killed_for = f"gave no frame for {silent:.0f} s"
            self._kill()

    def report(self) -> wire.CameraState:
        with self.changed:
            return wire.CameraState(
                name=self.name,
                state=self.state,
                why=self.why[: wire.LONGEST_TEXT] if self.state in ("lost", "ended") else "",
                fps=self._fps(),
                frames=self._before.frames + self._now.frames,
                frames_dropped=self._before.frames_dropped + self._now.frames_dropped,
                clips=self.clips,
                clips_dropped=self.clips_missed + self._before.clips_dropped + self._now.clips_dropped,
                reconnects=self.reconnects,
            )

    def _keep(self) -> None:
        tried = 0
        while not self._stop.is_set():
            over = self._read()
            with self.changed:
                tried = 1 if self._now.frames else tried + 1
                self._lose(over)
            if self.state == "ended" or self._stop.is_set():
                return
            wait = pause(tried, LONGEST_PAUSE)
            self.tell(f"camera {self.name}: {self.why}; trying again in {wait:.1f} s")
            self._stop.wait(wait)

    def _lose(self, over: Over | None) -> None:
        """The process has ended."""
        if self._process and self._process.stdin:
            with contextlib.suppress(OSError):  # what it was last asked is still on its way
                self._process.stdin.close()
        self._process = None
        self._before, self._now = _sum(self._before, self._now), Beat(0, 0, 0)
        self._beats.clear()
        self.asked_at = self.running_since = math.inf
        self.why = over.why if over else self._killed_for or "its reader died"
        self._killed_for = ""
        self.state = "lost" if over is None or over.again else "ended"
        if self.state == "ended":
            self.tell(f"camera {self.name}: {self.why or 'has come to its end'}")
        self.changed.notify_all()

    def _read(self) -> Over | None:
        """Start a process and listen to it until it ends; what it said last, if it ended by itself."""
        try:
            process = _spawn()
        except OSError as error:  # no more processes or files; which may pass
            return Over(f"its reader cannot be started ({error.strerror})", again=True)
        with self.changed:
            self._heard, self._process = time.monotonic(), process
        if self._stop.is_set():
            self._kill()
        assert process.stdin is not None
        assert process.stdout is not None
        over: Over | None = None
        try:
            send(process.stdin, self.order)
            while over is None and (news := receive(process.stdout, News)) is not None:
                over = self._hear(news)
        except OSError:  # it died before it heard what to do
            pass
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        return over

    def _hear(self, news: News) -> Over | None:
        with self.changed:
            if isinstance(news, Over):
                return news
            if isinstance(news, Said):
                self.tell(f"camera {self.name}: {news.text}")
            elif isinstance(news, Taken):
                shape = (self.order.frames, self.order.size, self.order.size, 3)
                self.view = View(self.name, np.frombuffer(news.pixels, np.uint8).reshape(shape), news.captured)
                self.asked_at = math.inf
            else:
                self._beat(news)
            self.changed.notify_all()
        return None

    def _beat(self, beat: Beat) -> None:
        self._heard, self._now = time.monotonic(), beat
        self._beats.append((self._heard, beat.frames))
        if self.state == "running" or not beat.frames:
            return
        if self.state == "lost":
            self.reconnects += 1
            self.tell(f"camera {self.name}: is back")
        self.state, self.why, self.running_since = "running", "", self._heard

    def _fps(self) -> float:
        recent = [beat for beat in self._beats if beat[0] > time.monotonic() - FPS_SECONDS]
        if len(recent) < 2:
            return 0.0
        (start, first), (end, last) = recent[0], recent[-1]
        return (last - first) / (end - start)

    def _kill(self) -> None:
        process = self._process
        if process is not None:
            process.kill()  # its pipe closes, which its thread hears


def _sum(one: Beat, other: Beat) -> Beat:
    return Beat(
        one.frames + other.frames,
        one.frames_dropped + other.frames_dropped,
        one.clips_dropped + other.clips_dropped,
    )


def _spawn() -> subprocess.Popen[bytes]:
    """A process that knows neither the key nor the terminal, and leaves most of the processor to the model."""
    root = str(Path(distill.__file__).parents[1])
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH", ""))))
    one = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    given = {name: value for name, value in os.environ.items() if name != KEY}
    return subprocess.Popen(
        [sys.executable, "-c", READ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**given, **one, "PYTHONPATH": paths},
        start_new_session=True,
    )
