"""The job `live`: a source, a model, and what is seen of both while they run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

from distill.deploy.recogniser import Recogniser, open_any
from distill.errors import UserError
from distill.live.asking import Asker, Prediction
from distill.live.feed import Feed, Frame
from distill.live.meter import Meter
from distill.live.panel import Panel, enlarged
from distill.live.recording import Records
from distill.live.request import LINES, VIDEO, Options
from distill.live.sight import ClipSight, FrameSight
from distill.live.sources import Source, open_source
from distill.live.window import Window
from distill.run_log import PLAIN_SECONDS, Talk, percent

TICK = 0.1  # seconds that a frame is waited for before the window is looked after
NEWS_SECONDS = 0.5  # between two changes of the line of news, which nobody could read otherwise


def live(options: Options) -> dict[str, Any]:
    """Recognise actions in a running picture, as they happen.

    The model is an exported file or a run. It sees what evaluation shows it: the centre square of the picture, the
    latest seconds in evenly spread frames; or, exported as a stream, one frame after the other. Probabilities are
    smoothed over time. A window shows the picture, the likeliest classes, frames a second, the time from a frame's
    capture to the answer, and how many frames were dropped; q or Esc ends it. With out=FOLDER the same picture is
    written as live.mp4, and each prediction as a line of predictions.jsonl. A camera that is lost is opened again.

    distill live model=runs/tsn/export/stream-int8.tflite source=0
    distill live model=runs/quickstart/distilled source=videos/ headless=true out=runs/seen
    """
    talk = Talk()
    recogniser = open_model(options)
    source = open_source(options, recogniser.card.classes, talk.warn)
    waits = options.in_order and not source.live
    pace = not options.in_order and not source.live
    with (
        nullcontext() if options.headless else Window() as window,
        stopping() as stop,
        Records(options.out, recogniser.card.classes, options.top) as records,
        Asker(recogniser, options.smoothing, threaded=not waits) as asker,
        Feed(source, waits, pace, options.silence, options.reconnect, talk.warn) as feed,
    ):
        talk.say(_about(options, recogniser, source))
        session = Session(options, recogniser, feed, asker, records, window, talk)
        session.run(stop)
    if options.out and session.meter.frames:
        talk.say(f"written: {Path(options.out, VIDEO)}, {Path(options.out, LINES)}")
    return session.meter.figures(feed.reconnects)


def open_model(options: Options) -> Recogniser:
    path = Path(options.model)
    if not path.exists():
        raise UserError(f"model={path}: there is no such file or folder; distill export run=DIR makes exported files")
    recogniser = open_any(path, options.form or "whole", options.threads)
    form = recogniser.card.form
    if form == "encoder":
        raise UserError(f"{path} is an encoder, which gives latents and no classes; export the student with form=whole")
    if options.form and form != options.form:
        raise UserError(
            f"{path} was exported with form={form}; leave form= away, or export it with form={options.form}"
        )
    return recogniser


def _about(options: Options, recogniser: Recogniser, source: Source) -> str:
    card = recogniser.card
    seconds = options.seconds or card.seconds
    rate = f"{card.frames / seconds:.3g} frames a second"
    asked = rate if recogniser.streams else f"{card.frames} frames of {seconds:g} s"
    about = f"{card.student}, {card.format} {card.precision}, {len(card.classes)} classes, {asked}"
    return f"{options.model} ({about}) looks at {source.name}"


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that Ctrl-C, SIGTERM or a terminal that closes sets, so that files get finished; the second time they
    mean what they meant."""
    stop = threading.Event()
    before: dict[signal.Signals, Any] = {}

    def told(number: int, _: FrameType | None) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    here = threading.current_thread() is threading.main_thread()  # signals are for no other
    wanted = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        wanted.append(signal.SIGHUP)
    for which in wanted if here else ():
        before[which] = signal.getsignal(which) or signal.SIG_DFL
        signal.signal(which, told)
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


class Session:
    """The loop of the main thread: frames in, questions out, answers onto the picture."""

    def __init__(
        self,
        options: Options,
        recogniser: Recogniser,
        feed: Feed,
        asker: Asker,
        records: Records,
        window: Window | None,
        talk: Talk,
    ) -> None:
        self.options, self.feed, self.asker, self.records = options, feed, asker, records
        self.window, self.talk, self.classes = window, talk, recogniser.card.classes
        card, seconds = recogniser.card, options.seconds or recogniser.card.seconds
        self.sight = (
            FrameSight(card.frames, card.size, seconds)
            if recogniser.streams
            else ClipSight(card.frames, card.size, seconds, options.every)
        )
        self.meter, self.panel = Meter(), Panel()
        self.frame: Frame | None = None
        self.latest: Prediction | None = None
        self.news, self.news_at, self.told_at = "", 0.0, time.monotonic()

    def run(self, stop: threading.Event) -> None:
        try:
            while not stop.is_set():
                frame = self.feed.get(TICK)
                if frame is None and self.feed.over:
                    break
                if not (self._wait() if frame is None else self._see(frame)) or self._enough():
                    break
            self._end_stream()
            self.asker.finish()
        finally:
            self.asker.close()
            self._take_answers()

    def _see(self, frame: Frame) -> bool:
        """False once the person has had enough."""
        if self.frame is None or frame.stream != self.frame.stream:
            self._end_stream()
            self.latest = None
        self.records.begin()
        self.frame = frame
        for question in self.sight.see(frame, self.asker.busy):
            self.asker.ask(question)
        self._take_answers()
        self.meter.frame()
        shown = self.panel.on(enlarged(frame.picture), self._rows(), self._news(frame))
        self.records.picture(shown, frame.seconds)
        if self.window is None:
            self._tell(frame)
            return True
        return self.window.show(shown)

    def _wait(self) -> bool:
        """No frame came: the window has to live all the same."""
        self._take_answers()
        if self.window is None:
            return True
        if self.feed.lost and self.frame is not None:
            picture = enlarged(self.frame.picture)
            return self.window.show(self.panel.on(picture, [], f"{self.feed.source.name} {self.feed.lost}"))
        return self.window.stays()

    def _end_stream(self) -> None:
        for question in self.sight.rest():
            self.asker.ask(question)
        self._take_answers()
        self.sight.forget()

    def _take_answers(self) -> None:
        self.meter.dropped = self.feed.buffer.dropped + self.asker.inbox.dropped
        for prediction in self.asker.taken():
            self.meter.prediction(prediction)
            self.records.prediction(prediction, self.meter.dropped)
            if self.frame and prediction.stream == self.frame.stream:
                self.latest = prediction

    def _rows(self) -> list[tuple[str, float]]:
        if self.latest is None:
            return []
        return [(self.classes[place], share) for place, share in self.latest.best(self.options.top)]

    def _news(self, frame: Frame) -> str:
        now = time.monotonic()
        if now - self.news_at > NEWS_SECONDS:
            self.news_at = now
            self.news = f"{self.meter.news} · {Path(frame.name).name}"
        return self.news

    def _tell(self, frame: Frame) -> None:
        """A line now and then, where no window shows how it goes."""
        now = time.monotonic()
        if now - self.told_at < PLAIN_SECONDS:
            return
        self.told_at = now
        best = "".join(f"  {name} {percent(share)}" for name, share in self._rows()[:1])
        self.talk.say(f"{self.meter.frames} frames  {frame.seconds:.1f} s  {self.meter.news}{best}")

    def _enough(self) -> bool:
        most, seconds = self.options.most_frames, self.options.most_seconds
        if self.frame is None:
            return False
        return 0 < most <= self.meter.frames or 0 < seconds <= self.frame.seconds + self.frame.lasts
