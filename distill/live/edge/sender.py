"""The way to the cloud: the oldest clips first, again and again until the cloud has them."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx2
import msgspec

from distill.live import wire
from distill.live.edge.request import Options
from distill.live.edge.spool import Spool, Spooled
from distill.live.feed import pause

LONGEST_PAUSE = 60.0  # seconds before a cloud that does not answer is asked again
LONGEST_OBEYED = 600.0  # seconds that the cloud may ask us to wait
REFUSED_SECONDS = 60.0  # between two tries where a person has to do something
IDLE_SECONDS = 1.0  # between two looks at an empty spool, should nobody say that there is something
SHORT = 200  # characters of what the cloud says
UNREACHED = (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OverflowError, RuntimeError)  # also odd names of hosts
OK, TOO_LARGE, INVALID, OTHER_ENCODER, SLOWER = 200, 413, 422, 409, 429
HELP = {
    401: "is DISTILL_KEY the key of this device? `distill cloud devices` makes keys",
    403: "is DISTILL_KEY a device's key, not a viewer's?",
    404: "is cloud= the address of a cloud service?",
    OTHER_ENCODER: "start the cloud with a classifier of this model, or the edge with the model of that classifier",
}
ELSEWHERE = "give the address that it names as cloud="


class Told(msgspec.Struct):
    """What the cloud made of a camera's latest clip."""

    label: str
    confidence: float
    captured: float


class Sender:
    """Works in a thread of its own from `start` on; `leave` lets it go when there is nothing left, or time is up."""

    def __init__(self, options: Options, spool: Spool, tell: Callable[[str], object]) -> None:
        self.options, self.spool, self.tell = options, spool, tell
        self.media = wire.JSON if options.media == "json" else wire.MSGPACK
        self.client = open_client(options, self.media)
        self.sent = self.errors = self.refused = 0
        self.network_ms: float | None = None
        self.told = dict[str, Told]()
        self.trouble = ""
        self.room, self.suspects = options.batch, 0  # clips of a message; clips of which the cloud takes not all
        self.tried = 0
        self.blocked = dict[str, float]()  # encoder whose clips the cloud does not take -> until when, time.monotonic
        self.moved = time.monotonic()  # when something last arrived
        self.woken, self.leaving = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name="distill edge: sender")

    def start(self) -> None:
        self.thread.start()

    def wake(self) -> None:
        """There is something to send."""
        self.woken.set()

    def leave(self, cut: Callable[[], bool]) -> None:
        """Send what is there, until `cut` says that it has taken long enough."""
        self.moved, self.tried = time.monotonic(), 0
        self.leaving.set()
        self.woken.set()
        while self.thread.is_alive() and not cut():
            self.thread.join(0.05)
        if not self.thread.is_alive():
            self.client.close()

    def _work(self) -> None:
        while True:
            self.woken.clear()
            wait = self.send()
            if wait is None:
                if self.leaving.is_set():
                    return
                self.woken.wait(IDLE_SECONDS)
            elif self.leaving.is_set():
                time.sleep(wait)  # `leave` does not wait for us longer than it wants to
            else:
                self.leaving.wait(wait)

    def send(self) -> float | None:
        """One message. Returns after how many seconds the next may follow; None: there is nothing to send."""
        now = time.monotonic()
        self.blocked = {encoder: until for encoder, until in self.blocked.items() if until > now}
        count = max(1, self.suspects // 2) if self.suspects else self.room
        items = self.spool.oldest(count, tuple(self.blocked))
        if not items:
            return None
        post = wire.Post(items[0].encoder, time.time(), [item.clip for item in items], self.network_ms)
        started = time.perf_counter()
        try:
            response = self._post("/v1/latents", post)
        except UNREACHED as error:
            self.suspects = 0  # another cloud may come back
            return self._later(f"the cloud cannot be reached ({_plain(str(error)) or type(error).__name__})")
        took_ms = (time.perf_counter() - started) * 1000
        if response.status_code == OK:
            return self._arrived(items, response, took_ms)
        if response.status_code in (TOO_LARGE, INVALID) or (response.status_code == OTHER_ENCODER and self.suspects):
            return self._smaller(items, response)  # of a message of which the cloud took some, so the encoder is right
        text = f"the cloud says {response.status_code}: {_detail(response)}"
        if response.status_code >= 500:
            self.suspects = 0  # as above, behind a proxy
        if response.status_code == SLOWER or response.status_code >= 500:
            return self._later(text, retry_after(response.headers.get("retry-after", ""), time.time()))
        self.errors += 1
        asked = ELSEWHERE if response.is_redirect else HELP.get(response.status_code, "")
        self._complain(f"{text}; {asked}; the clips are kept" if asked else f"{text}; the clips are kept")
        if response.status_code == OTHER_ENCODER:
            self.blocked[items[0].encoder] = time.monotonic() + REFUSED_SECONDS
            return 0.0
        return REFUSED_SECONDS

    def report(self, state: wire.EdgeState) -> None:
        """How the edge is. A report that is lost is followed by the next."""
        with contextlib.suppress(*UNREACHED):
            self._post("/v1/status", state)

    def _post(self, path: str, message: wire.Post | wire.EdgeState) -> httpx2.Response:
        return self.client.post(path, content=wire.dump(message, self.media))

    def _arrived(self, items: Sequence[Spooled], response: httpx2.Response, took_ms: float) -> float:
        try:
            answer = wire.load(response.content, self.media, wire.Answer)
        except wire.WireError as error:
            return self._later(f"the cloud's answer is not one: {_plain(str(error))}")
        sent = {item.key: item.clip for item in items}
        named = {(told.camera, told.boot, told.seq): told for told in answer.results}
        known = [key for key in sent if key in named]
        if not known:
            return self._later("the cloud's answer is about other clips")
        self.spool.remove(known)
        for key in known:
            self.told[key[0]] = Told(named[key].label, named[key].confidence, sent[key].captured)
        self.network_ms = min(wire.LONGEST, max(0.0, took_ms - answer.took_ms))
        self.sent, self.suspects = self.sent + len(known), max(0, self.suspects - len(known))
        self.tried, self.moved = 0, time.monotonic()
        if self.trouble and not self.blocked:
            self.trouble = ""
            self.tell("the cloud takes clips again")
        return 0.0

    def _smaller(self, items: Sequence[Spooled], response: httpx2.Response) -> float:
        """The message is too large, or something in it is wrong: of half of it, that is true of one half or none."""
        self.errors += 1
        if len(items) == 1:
            self.suspects, self.refused = 0, self.refused + 1
            self.spool.give_up(items[0])
            camera, boot, seq = items[0].key
            why = f"{response.status_code}: {_detail(response)}"
            self.tell(f"clip {seq} of camera {camera} (boot {boot}) is given up, since the cloud says {why}")
        elif response.status_code == TOO_LARGE:
            self.room = len(items) // 2
        else:
            self.suspects = len(items)
        return 0.0

    def _later(self, why: str, obeyed: float = 0.0) -> float:
        self.errors += 1
        self.tried += 1
        self._complain(f"{why}; trying again, the clips are kept")
        return max(pause(self.tried, LONGEST_PAUSE), obeyed * random.uniform(1.0, 1.1))

    def _complain(self, text: str) -> None:
        if text != self.trouble:
            self.trouble = text
            self.tell(text)


class Reporter:
    """Sends how the edge is every so often, whatever becomes of the clips."""

    def __init__(self, sender: Sender, every: float, state: Callable[[], wire.EdgeState]) -> None:
        self.sender, self.every, self.state = sender, every, state
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._work, daemon=True, name="distill edge: reporter")

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.stopped.set()

    def _work(self) -> None:
        while not self.stopped.is_set():
            self.sender.report(self.state())
            self.stopped.wait(self.every)


def open_client(options: Options, media: str) -> httpx2.Client:
    headers = {"authorization": f"Bearer {options.secret}", "content-type": media, "accept": media}
    return httpx2.Client(base_url=options.cloud.rstrip("/"), headers=headers, timeout=options.timeout)


def retry_after(text: str, now: float) -> float:
    """Seconds that are asked for, as a number or as a date, within reason; 0 if none are."""
    seconds = 0.0
    with contextlib.suppress(ValueError, OverflowError):
        seconds = float(text) if text.strip().isdecimal() else _moment(text) - now
    return min(LONGEST_OBEYED, max(0.0, seconds))


def _moment(text: str) -> float:
    date: datetime = parsedate_to_datetime(text)
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()


def _detail(response: httpx2.Response) -> str:
    """What the cloud, or whatever stands before it, has to say."""
    with contextlib.suppress(msgspec.MsgspecError, UnicodeError):
        found = msgspec.json.decode(response.content, type=dict[str, object]).get("detail")
        if isinstance(found, str):
            return _plain(found)
    return _plain(response.reason_phrase) or "no more than that"


def _plain(text: str) -> str:
    """One short line that does nothing to a terminal."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:SHORT]
