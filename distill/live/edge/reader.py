"""The process that reads one camera: decodes, keeps the latest seconds as small squares, gives clips when asked.

It may hang in a driver or die there: the edge ends it, and starts another. When the edge dies, it ends itself.

Shape legend: T frames, S side of what the model sees.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections import deque
from typing import IO

from distill.errors import UserError
from distill.live.edge.pipe import Ask, Beat, Order, Over, Said, Taken, receive, send
from distill.live.feed import Feed, Frame
from distill.live.request import Options
from distill.live.sight import ClipSight, Question
from distill.live.sources import open_source

BEAT_SECONDS = 0.5  # between two signs of life, while frames come
READY = {"newest": 2, "wait": 1}  # clips that wait to be asked for; the others are cut when they are
EARLY = 0.5  # seconds before a clip's first frame from which on frames are painted, not to miss it
TICK = 1.0  # seconds that a frame is waited for before one looks whether more will come


def main() -> None:
    """What the reader's process does. Its standard input and output belong to the edge."""
    orders, news = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not talk into the pipe
    order = receive(orders, Order)
    if order is not None:
        Reader(order, news).run(orders)
    os._exit(0)  # whatever still hangs in a driver


class Reader:
    def __init__(self, order: Order, news: IO[bytes]) -> None:
        self.order, self.news = order, news
        self.sight = ClipSight(order.frames, order.size, order.seconds, order.every)
        self.ready = deque[Question]()
        self.asked: Ask | None = None
        self.asked_at = 0.0
        self.fresh = False  # there is a frame since the latest clip
        self.paints_again = -math.inf  # by time.monotonic
        self.stream = -1
        self.frames = self.unpainted = self.missed = self.clips_dropped = 0
        self.beaten = 0.0
        self.changed, self.sending = threading.Condition(), threading.Lock()

    def run(self, orders: IO[bytes]) -> None:
        options = Options(source=self.order.source, silence=self.order.silence)
        live = False
        try:
            self.source = open_source(options, self.order.classes, self._say)
            live = self.source.live
            threading.Thread(target=self._listen, args=(orders,), daemon=True, name="distill edge: asked").start()
            while self._play() and self.order.repeat:
                pass
        except UserError as error:
            self._tell(Over(str(error), again=live))
            return
        with self.changed:
            self._tell(self._beat(waits=True))
            self.changed.wait_for(lambda: not self.ready)
        self._tell(Over("", again=False))

    def _play(self) -> int:
        """Read the source from its beginning to its end. Returns how many frames there were."""
        waits = self.order.drop == "wait" and not self.source.live
        before, self.stream = self.frames, -1
        with Feed(self.source, waits, not (waits or self.source.live), math.inf, 0, self._say) as feed:
            lost = self.missed
            while not feed.over:
                frame = feed.get(TICK)
                self.missed = lost + feed.buffer.dropped
                if frame is not None:
                    self._see(frame)
            feed.get(0)  # raises what went wrong
        with self.changed:
            self._end_stream()
        return self.frames - before

    def _see(self, frame: Frame) -> None:
        with self.changed:
            if frame.stream != self.stream:
                self._end_stream()
                self.stream = frame.stream
            self.frames += 1
            if frame.picture.size:
                self._keep(frame)
            else:
                self.unpainted += 1
                self.sight.kept.clear()  # no clip may reach over what was left out
            self.source.blind = self.order.drop == "adaptive" and time.monotonic() < self.paints_again
        if time.monotonic() - self.beaten > BEAT_SECONDS:
            self._tell(self._beat())

    def _keep(self, frame: Frame) -> None:
        self.fresh = True
        for question in self.sight.see(frame, busy=self.order.drop not in READY):
            self._make_ready(question)
        self._answer()

    def _make_ready(self, question: Question) -> None:
        room = READY.get(self.order.drop, 1)
        if self.order.drop == "wait" and len(self.ready) == room:
            self._tell(self._beat(waits=True))
            self.changed.wait_for(lambda: len(self.ready) < room)
        elif len(self.ready) == room:
            self.clips_dropped += 1
            if self.order.drop == "newest":
                return
            self.ready.popleft()
        self.ready.append(question)
        self._answer()

    def _end_stream(self) -> None:
        """A stream that was too short for a clip is a clip as it is."""
        for question in self.sight.rest():
            self._make_ready(question)
        self.sight.forget()
        self.fresh = False

    def _listen(self, orders: IO[bytes]) -> None:
        while (ask := receive(orders, Ask)) is not None:
            with self.changed:
                self.asked, self.asked_at = ask, time.monotonic()
                self._answer()
        os._exit(0)  # the edge is gone

    def _answer(self) -> None:
        if self.asked is None:
            return
        if not self.ready and self.fresh and self.order.drop not in READY:
            self.ready.extend(self.sight.latest())
        if not self.ready:
            return
        question, self.fresh = self.ready.popleft(), False
        age = time.monotonic() - question.frame.captured
        self._tell(Taken(question.pixels.tobytes(), time.time() - age))
        self.paints_again = self.asked_at + self.asked.next_seconds - self.order.seconds - EARLY
        self.asked = None
        self.changed.notify_all()

    def _beat(self, waits: bool = False) -> Beat:
        self.beaten = time.monotonic()
        return Beat(self.frames, self.missed + self.unpainted, self.clips_dropped, waits)

    def _say(self, text: str) -> None:
        self._tell(Said(text))

    def _tell(self, message: Beat | Taken | Said | Over) -> None:
        with self.sending:
            try:
                send(self.news, message)
            except OSError:  # the edge is gone
                os._exit(0)
