"""Clips reach a cloud that misbehaves: none is lost, none is stored twice, those of a camera keep their order."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import edge_cloud
import httpx2
import numpy as np
import pytest
from edge_cloud import Cloud, Talking, drops, hangs, says, stores_and_drops, until

from distill.errors import UserError
from distill.live import feed, wire
from distill.live.edge import sender as sending
from distill.live.edge.request import Options, check
from distill.live.edge.sender import Reporter, Sender, retry_after
from distill.live.edge.spool import Spool, Spooled


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(sending, "LONGEST_PAUSE", 0.1)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    with edge_cloud.running() as found:
        yield found


class Box:
    """A spool and its sender."""

    def __init__(self, folder: Path, url: str, **options: Any) -> None:
        self.said: list[str] = []
        self.spool = Spool(folder / "spool.sqlite", 1e9, 1e9, self.said.append)
        self.options = Options(cloud=url, key=edge_cloud.KEY, **{"batch": 8, "timeout": 5.0, **options})
        self.sender = Sender(self.options, self.spool, self.said.append)

    def put(self, *seqs: int, camera: str = "door", encoder: str = "e", width: int = 4) -> None:
        latents = [wire.pack(np.full(width, seq, np.float32), self.options.encoding) for seq in seqs]
        clips = [wire.Clip(camera, "b", seq, 1e9 + seq, latent, 2.5) for seq, latent in zip(seqs, latents, strict=True)]
        self.spool.add([Spooled(clip, encoder) for clip in clips])
        self.sender.wake()

    @property
    def empty(self) -> bool:
        return self.spool.depth().clips == 0


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Callable[..., Box]]:
    made: list[Box] = []

    def make(url: str, **options: Any) -> Box:
        made.append(Box(tmp_path, url, **options))
        return made[-1]

    yield make
    for each in made:
        if each.sender.thread.is_alive():
            each.sender.leave(lambda: True)
        each.spool.close()


def stored(cloud: Cloud, camera: str = "door") -> list[int]:
    return [seq for name, _, seq in cloud.order if name == camera]


TROUBLES = {
    "errors": [says(500), says(502, "the proxy is tired"), says(503, retry_after="0")],
    "too fast": [says(429, retry_after="0"), says(429)],
    "lost answers": [stores_and_drops, drops, stores_and_drops],
    "hanging": [hangs(0.6)],
    "nonsense": [lambda talking, _: talking.say(200, b"hello") or False],
    "about others": [lambda talking, _: talking.say(200, wire.dump(wire.Answer([], 1.0), wire.MSGPACK)) or False],
    "smaller": [says(413, "too much"), says(413)],
}


@pytest.mark.parametrize("name", TROUBLES)
@pytest.mark.parametrize("media", ["msgpack", "json"])
def test_whatever_happens(name: str, media: str, cloud: Cloud, box: Callable[..., Box]) -> None:
    cloud.script = list(TROUBLES[name])
    here = box(cloud.url, timeout=0.3, media=media)
    here.put(*range(10))
    here.put(*range(10), camera="yard")
    here.put(*range(10, 20))
    here.sender.start()
    until(lambda: here.empty)
    assert stored(cloud) == list(range(20))
    assert stored(cloud, "yard") == list(range(10))
    assert not cloud.script
    assert here.sender.errors == len(TROUBLES[name])
    assert here.sender.sent == 30
    assert here.spool.depth().dropped == {}
    assert here.sender.trouble == ""
    assert here.sender.told["door"].captured == 1e9 + 19
    assert cloud.twice == (16 if name == "lost answers" else 0)  # sent again, and stored once


def test_a_cloud_that_is_not_there_yet(box: Callable[..., Box]) -> None:
    """It is said once that it is away, and once that it is back."""
    port = edge_cloud.free_port()
    here = box(f"http://127.0.0.1:{port}")
    here.put(*range(20))
    here.sender.start()
    until(lambda: here.sender.errors > 3)
    with edge_cloud.running(port) as cloud:
        until(lambda: here.empty)
        assert stored(cloud) == list(range(20))
    assert [text.partition(" (")[0] for text in here.said] == [
        "the cloud cannot be reached",
        "the cloud takes clips again",
    ]
    assert "refused" in here.said[0]


def test_what_it_says(cloud: Cloud, box: Callable[..., Box]) -> None:
    """Headers, and the time on the way without what the cloud needed."""

    def slowly(talking: Talking, post: wire.Post) -> bool:
        time.sleep(0.3)
        answer = wire.Answer(talking.cloud.store(post).results, took_ms=250.0)
        talking.say(200, wire.dump(answer, wire.JSON))
        return False

    cloud.script = [slowly]
    here = box(cloud.url + "/", media="json", encoding="list", batch=2)
    here.put(0, 1, 2)
    assert here.sender.send() == 0
    assert here.sender.send() == 0
    assert here.sender.send() is None
    first, second = cloud.posts
    assert first.network_ms is None
    assert second.network_ms is not None
    assert 45 < second.network_ms < 200
    assert [clip.latent for clip in first.clips] == [[0.0] * 4, [1.0] * 4]
    assert first.clips[0].encode_ms == 2.5
    assert (first.encoder, abs(first.sent - time.time()) < 9) == ("e", True)
    assert cloud.headers[0]["authorization"] == "Bearer good-key"
    assert cloud.headers[0]["content-type"] == "application/json"


def test_connections_are_kept(cloud: Cloud, box: Callable[..., Box]) -> None:
    ports = set()

    def note(talking: Talking, _: wire.Post) -> bool:
        ports.add(talking.client_address)
        return True

    cloud.always = note
    here = box(cloud.url, batch=1)
    here.put(*range(5))
    while here.sender.send() is not None:
        pass
    assert len(cloud.posts) == 5
    assert len(ports) == 1


@pytest.mark.parametrize("bad", [{0}, {5}, {7}, {0, 1}, {3, 8, 15}, set(range(16))])
def test_refused_clips_are_found(bad: set[int], cloud: Cloud, box: Callable[..., Box]) -> None:
    """And given up, named and counted; all the others arrive, in order."""

    def picky(talking: Talking, post: wire.Post) -> bool:
        if not bad & {clip.seq for clip in post.clips}:
            return True
        talking.say(422, b'{"detail": "not\\u001b[31m finite"}')
        return False

    cloud.always = picky
    here = box(cloud.url)
    here.put(*range(16))
    here.sender.start()
    until(lambda: here.empty)
    assert stored(cloud) == [seq for seq in range(16) if seq not in bad]
    assert here.sender.refused == len(bad)
    assert here.spool.depth().dropped == {"door": len(bad)}
    why = "(boot b) is given up, since the cloud says 422: not [31m finite"
    assert here.said == [f"clip {seq} of camera door {why}" for seq in sorted(bad)]
    assert len(cloud.posts) <= 2 + 7 * max(1, len(bad))


def takes(width: int) -> Callable[[Talking, wire.Post], bool]:
    """What the cloud says of latents of other widths."""

    def judge(talking: Talking, post: wire.Post) -> bool:
        try:
            wire.unpack([clip.latent for clip in post.clips], width)
        except wire.WireError as error:
            code = 409 if isinstance(error, wire.WidthError) else 422
            talking.say(code, f'{{"detail": "{error}"}}'.encode())
            return False
        return True

    return judge


@pytest.mark.parametrize("bad", [{0}, {2}, {2, 3}, {0, 15}])
def test_a_clip_of_another_width_holds_up_no_others(bad: set[int], cloud: Cloud, box: Callable[..., Box]) -> None:
    cloud.always = takes(4)
    here = box(cloud.url)
    for seq in range(16):
        here.put(seq, width=3 if seq in bad else 4)
    while here.sender.send() is not None:
        pass
    assert stored(cloud) == [seq for seq in range(16) if seq not in bad]
    assert here.sender.refused == len(bad)


def test_clips_that_are_all_of_another_width_are_kept(
    cloud: Cloud, box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a bad one among them was being looked for when another cloud came back, with another classifier."""
    monkeypatch.setattr(sending, "REFUSED_SECONDS", 0.0)
    here = box(cloud.url)
    here.put(0, 1)
    bad = wire.pack(np.full(4, np.nan, np.float32), "float32")
    here.spool.add([Spooled(wire.Clip("door", "b", 2, 1e9 + 2, bad), "e")])
    here.put(*range(3, 16))
    cloud.always = takes(4)
    here.sender.send()
    here.sender.send()
    assert here.sender.suspects
    cloud.script, cloud.always = [says(502)], takes(5)
    for _ in range(5):
        here.sender.send()
    assert (here.sender.refused, here.spool.depth().clips) == (0, 16)
    cloud.always = takes(4)
    while here.sender.send() is not None:
        pass
    assert stored(cloud) == [seq for seq in range(16) if seq != 2]


def test_half_as_much_is_remembered(cloud: Cloud, box: Callable[..., Box]) -> None:
    def small(talking: Talking, post: wire.Post) -> bool:
        if len(post.clips) > 2:
            talking.say(413)
        return len(post.clips) <= 2

    cloud.always = small
    here = box(cloud.url)
    here.put(*range(12))
    while here.sender.send() is not None:
        pass
    assert [len(post.clips) for post in cloud.posts] == [8, 4, *[2] * 6]
    assert stored(cloud) == list(range(12))


def test_a_clip_that_is_too_large_alone(cloud: Cloud, box: Callable[..., Box]) -> None:
    cloud.script = [says(413)] * 2
    here = box(cloud.url, batch=2)
    here.put(0, 1)
    while here.sender.send() is not None:
        pass
    assert stored(cloud) == [1]
    assert here.spool.depth().dropped == {"door": 1}


REFUSALS = [
    (401, "unknown key", "is DISTILL_KEY the key of this device?"),
    (403, "a viewer's key", "is DISTILL_KEY a device's key"),
    (404, "", "is cloud= the address of a cloud service?"),
    (400, "what is this?", ""),
    (302, "", "give the address that it names as cloud="),
]


@pytest.mark.parametrize(("status", "detail", "asked"), REFUSALS)
def test_what_a_person_has_to_put_right(
    status: int, detail: str, asked: str, cloud: Cloud, box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said once, what to do; the clips are kept, and tried again later. The key follows no redirection."""
    monkeypatch.setattr(sending, "REFUSED_SECONDS", 0.15)
    with edge_cloud.running() as elsewhere:
        cloud.script = [says(status, detail, location=elsewhere.url + "/v1/latents")] * 3
        here = box(cloud.url)
        here.put(0, 1)
        here.sender.start()
        until(lambda: here.empty)
        assert not elsewhere.headers
    assert stored(cloud) == [0, 1]
    assert min(np.diff(cloud.times)) > 0.14
    refused, again = here.said
    assert f"the cloud says {status}: {detail}" in refused
    assert asked in refused
    assert "the clips are kept" in refused
    assert again == "the cloud takes clips again"
    assert edge_cloud.KEY not in refused


def test_another_encoder(cloud: Cloud, box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of an encoder that the cloud has no classifier for wait, and hold up no others."""
    monkeypatch.setattr(sending, "REFUSED_SECONDS", 0.4)
    changed = threading.Event()

    def old_is_refused(talking: Talking, post: wire.Post) -> bool:
        if post.encoder == "old" and not changed.is_set():
            talking.say(409, b'{"detail": "latents of another encoder"}')
            return False
        return True

    cloud.always = old_is_refused
    here = box(cloud.url)
    here.put(0, 1, encoder="old")
    here.put(2, 3, encoder="new")
    here.sender.start()
    until(lambda: stored(cloud) == [2, 3])
    until(lambda: here.spool.depth().clips == 2)
    assert here.said[0].startswith("the cloud says 409: latents of another encoder; start the cloud with a classifier")
    until(lambda: len(cloud.posts) == 3)  # tried again, and refused again
    changed.set()
    until(lambda: here.empty)
    assert stored(cloud) == [2, 3, 0, 1]
    assert cloud.times[2] - cloud.times[0] > 0.39
    assert len(here.said) == 2


def test_retry_after_is_honoured(cloud: Cloud, box: Callable[..., Box]) -> None:
    cloud.script = [says(503, retry_after="1")]
    here = box(cloud.url)
    here.put(0)
    here.sender.start()
    until(lambda: here.empty)
    assert cloud.times[1] - cloud.times[0] >= 1.0


def test_how_retry_after_is_read() -> None:
    now = 1_700_000_000.0
    assert retry_after("7", now) == 7
    assert retry_after(formatdate(now + 30, usegmt=True), now) == pytest.approx(30, abs=1)
    assert retry_after(formatdate(now - 30, usegmt=True), now) == 0
    assert retry_after("1000000", now) == 600
    for nonsense in ("", "soon", "-4", "1e400", "9" * 5000, "Mon, 99 Foo 2020"):
        assert retry_after(nonsense, now) in (0, 600)


def test_leaving(cloud: Cloud, box: Callable[..., Box]) -> None:
    """What can be sent is sent; a cloud that hangs holds nobody for long."""
    here = box(cloud.url)
    here.put(*range(40))
    here.sender.start()
    here.sender.leave(lambda: False)
    assert stored(cloud) == list(range(40))
    assert here.empty
    assert not here.sender.thread.is_alive()


def test_leaving_a_cloud_that_hangs(cloud: Cloud, box: Callable[..., Box]) -> None:
    cloud.always = hangs(4)
    here = box(cloud.url, timeout=9.0)
    here.put(0)
    here.sender.start()
    until(lambda: cloud.posts)
    started = time.monotonic()
    here.sender.leave(lambda: time.monotonic() > started + 0.3)
    assert time.monotonic() - started < 3  # the cloud hangs for 4
    here.spool.close()
    assert here.said == []  # what comes back too late disturbs nobody


@pytest.mark.parametrize(
    "error", [UnicodeError("idna"), OverflowError("timestamp"), RuntimeError("closed"), httpx2.InvalidURL("odd")]
)
def test_whatever_goes_wrong_on_the_way_is_tried_again(
    error: Exception, cloud: Cloud, box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, whole, errors = box(cloud.url), httpx2.Client.post, [error]

    def post(*given: Any, **more: Any) -> httpx2.Response:
        if errors:
            raise errors.pop()
        return whole(*given, **more)

    monkeypatch.setattr(httpx2.Client, "post", post)
    here.put(0)
    here.sender.start()
    until(lambda: here.empty)
    assert here.said[0].startswith("the cloud cannot be reached (")
    assert here.said[-1] == "the cloud takes clips again"


def test_reports(cloud: Cloud, box: Callable[..., Box]) -> None:
    """Health goes on being reported while clips are refused, and a report that fails does not matter."""
    cloud.always = says(500)
    here = box(cloud.url)
    here.put(0)
    here.sender.start()
    camera = wire.CameraState("door", "lost", "why")
    state = wire.EdgeState("b", 1.0, "v", "e", "m", 1.0, 1, 10, 5.0, 0, 0, 0, 1.5, [camera])
    reporter = Reporter(here.sender, 0.05, lambda: state)
    reporter.start()
    until(lambda: len(cloud.states) > 3)
    reporter.stop()
    assert cloud.states[0] == state
    here.sender.client.base_url = f"http://127.0.0.1:{edge_cloud.free_port()}"
    here.sender.report(state)


@pytest.mark.skipif(not shutil.which("openssl"), reason="makes certificates with openssl")
def test_certificates_are_checked(tmp_path: Path, box: Callable[..., Box]) -> None:
    """A cloud that cannot prove who it is gets neither key nor clips."""
    files = [str(tmp_path / name) for name in ("key.pem", "certificate.pem")]
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", files[0], "-out", files[1], *subject]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files[1], files[0])
    with edge_cloud.running(context=context) as cloud:
        here = box(cloud.url)
        here.put(0)
        assert here.sender.send() is not None
        assert "CERTIFICATE_VERIFY_FAILED" in here.said[0]
        assert not cloud.headers
        assert here.spool.depth().clips == 1


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"cloud": "cloud.example"}, "is no address"),
        ({"cloud": "https://[::1"}, "is no address"),
        ({"cloud": "https://cloud.example:99999999"}, "is no address"),
        ({"cloud": "http://u:geheim@cloud.example"}, "the key goes into DISTILL_KEY"),
        ({"cloud": "http://cloud.example", "key": ""}, "the cloud asks who sends"),
        ({"cloud": "http://cloud.example", "key": "a b"}, "is no key"),
        ({"cloud": "http://cloud.example", "key": "schlüssel"}, "is no key"),
    ],
)
def test_what_is_asked_for(given: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILL_KEY", raising=False)
    options = Options(**{"model": "m", "cameras": {"a": "demo"}, "key": "k", **given})
    with pytest.raises(UserError, match=text) as error:
        check(options)
    assert "geheim" not in str(error.value)
