"""A source, read in a thread of its own: frames in a buffer, and a lost camera opened again."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from distill.clips.video import BrokenFileError
from distill.errors import UserError
from distill.live.buffer import Buffer
from distill.live.sources import Shot, Source, Tell

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before a lost source is opened again
ROOM = 2  # frames that lie ready
TICK = 0.05  # seconds between two looks at whether all is well
PATIENCE = 2.0  # seconds that a thread is given to end


@dataclass(frozen=True)
class Frame:
    """One frame of a session."""

    picture: np.ndarray  # uint8 RGB [H,W,3]
    number: int  # of all that the source gave, from 0
    seconds: float  # since the session's first frame, rising
    lasts: float
    stream: int  # what is not one recording with the frame before has another number
    name: str
    captured: float  # when it was decoded, by time.monotonic


@dataclass
class _Connection:
    """A source from one opening to the end."""

    beat: float = field(default_factory=time.monotonic)  # when it last gave a sign of life
    frames: int = 0
    given_up: bool = False
    why: str = ""  # it ended before its time
    failure: Exception | None = None
    stream: int = -1


class Feed:
    """Runs while it is entered. A source that is not `live` is read as fast as it is asked, or at its own `pace`."""

    def __init__(self, source: Source, waits: bool, pace: bool, silence: float, reconnect: int, tell: Tell) -> None:
        self.source, self.pace, self.silence, self.reconnect, self.tell = source, pace, silence, reconnect, tell
        self.buffer = Buffer[Frame](ROOM, waits)
        self.reconnects = 0
        self.lost = ""  # why there is no picture now
        self._failure: Exception | None = None
        self._given, self._streams = 0, 0
        self._started = self._base = self._end = 0.0  # the first by time.monotonic, the others in the session's seconds
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._keeper = threading.Thread(target=self._keep, daemon=True, name="distill live: keeper")

    def __enter__(self) -> Self:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.buffer.close()
        self._keeper.join(2 * PATIENCE)

    def get(self, timeout: float) -> Frame | None:
        """The next frame; None if there is none yet, or (see `over`) ever."""
        frame = self.buffer.get(timeout)
        if frame is None and self.over and self._failure is not None:
            raise self._failure
        return frame

    @property
    def over(self) -> bool:
        return self.buffer.over

    def _keep(self) -> None:
        try:
            self._connect_again_and_again()
        except Exception as error:
            self._failure = error
        finally:
            self.buffer.close()

    def _connect_again_and_again(self) -> None:
        tried = 0
        while not self._stop.is_set():
            connection = _Connection()
            why = self._connected(connection)
            if not why:
                return
            if not self._given or not self.source.live:
                raise UserError(f"{self.source.name} {why}")
            tried = 1 if connection.frames else tried + 1
            if 0 <= self.reconnect < tried:
                times = f", and did not come back ({self.reconnect} tries)" if self.reconnect else ""
                raise UserError(f"{self.source.name} {why}{times}")
            wait = pause(tried)
            self.lost = why
            self.tell(f"{self.source.name} {why}; trying again in {wait:.1f} s")
            self._stop.wait(wait)

    def _connected(self, connection: _Connection) -> str:
        """Read the source until it ends, or falls silent. Says why, if that was before its time."""
        reader = threading.Thread(target=self._read, args=(connection,), daemon=True, name="distill live: reader")
        reader.start()
        while reader.is_alive():
            reader.join(TICK)
            if self._stop.is_set():
                reader.join(PATIENCE)
                return ""
            if self.source.live and time.monotonic() - connection.beat > self.silence * (1 if connection.frames else 2):
                with self._lock:
                    connection.given_up = True  # a thread that hangs in a driver cannot be ended, only left behind
                return f"gave no frame for {time.monotonic() - connection.beat:.1f} s"
        if connection.failure is not None:
            raise connection.failure
        return connection.why

    def _read(self, connection: _Connection) -> None:
        try:
            shots = self.source.shots()
            with contextlib.closing(shots):
                for shot in shots:
                    if not self._take(connection, shot):
                        return
        except BrokenFileError as error:
            connection.why = str(error)
        except OSError as error:
            connection.why = f"cannot be read ({error.strerror})"
        except Exception as error:
            connection.failure = error

    def _take(self, connection: _Connection, shot: Shot) -> bool:
        """Give the frame its place in the session, wait until it is due, and hand it on. False: stop reading."""
        with self._lock:
            if connection.given_up or self._stop.is_set():
                return False
            now = time.monotonic()
            self._place(connection, shot, now)
            connection.beat, connection.frames = now, connection.frames + 1
            number, seconds = self._given, self._base + shot.seconds
            self._given, self._end = number + 1, seconds + shot.lasts
        if self.pace or self.source.paced:
            self._stop.wait(max(0.0, self._started + seconds - time.monotonic()))
        name = shot.name or self.source.name
        frame = Frame(shot.picture, number, seconds, shot.lasts, self._streams, name, time.monotonic())
        self.buffer.put(frame)
        return True

    def _place(self, connection: _Connection, shot: Shot, now: float) -> None:
        """Find where in the session the stream of this frame begins."""
        if connection.stream == shot.stream:
            return
        connection.stream = shot.stream
        if not self._given:
            self._started = now - shot.seconds
        elif self.lost:
            self.lost, self.reconnects = "", self.reconnects + 1
            self.tell(f"{self.source.name} is back")
        self._streams += 1
        late = now - self._started - shot.seconds if self.source.live else 0.0
        self._base = max(self._end, late)


def pause(tried: int, longest: float = LONGEST_PAUSE) -> float:
    """Seconds before a lost source is opened for the `tried`-th time: doubling, and never all at the same moment."""
    return min(longest, FIRST_PAUSE * 2.0 ** min(tried - 1, 16)) * random.uniform(0.5, 1.0)
