"""The edge's own page in a real browser: what it shows, to whom, and what it must never do."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from dashboard_browser import ARGUMENTS, CHROMIUM, CONTRASTS, OVERFLOW, looking
from playwright.sync_api import Browser, expect, sync_playwright

from distill.live import wire
from distill.live.edge.camera import Camera
from distill.live.edge.health import Health, Seen, Watch
from distill.live.edge.page import served
from distill.live.edge.pipe import Order
from distill.live.edge.request import Options
from distill.live.edge.sender import Told
from distill.live.listening import taken

pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="needs Chromium")
MARKUP = "<img src=x onerror=alert(1)>&amp;"


def health(**given: Any) -> Health:
    now = time.time()
    cameras = [
        wire.CameraState("door", "running", fps=24.98, frames=123456, frames_dropped=12, clips=4321, reconnects=1),
        wire.CameraState("yard", "lost", "rtsp://***@camera-2.local does not answer in 20 s", frames=99, clips=4),
        wire.CameraState("hall 2", "starting"),
        wire.CameraState("loading ramp", "running", fps=12.5, frames=5000, clips=70, clips_dropped=3),
        wire.CameraState("a film", "ended", frames=750, clips=3),
    ]
    edge = wire.EdgeState(
        "b00t", now, "0.1.0", "e" * 64, "runs/tinyact/export/encoder-int8.tflite", 93784.0, 312, 690_120, 3125.0, 7,
        4009, 12, 11.84, cameras,
    )  # fmt: skip
    seen = {
        "door": Seen("rtsp://***@camera-1.local/stream", Told("opening a door", 0.934, now - 4)),
        "yard": Seen("rtsp://***@camera-2.local/stream", Told(MARKUP, 0.41, now - 4000)),
        "hall 2": Seen("0", None),
        "loading ramp": Seen("http://camera-4.local/" + "x" * 120, Told("walking", 1.0, now)),
        "a film": Seen("films/a.mp4", None),
    }
    trouble = "the cloud cannot be reached ([Errno 111] Connection refused); trying again, the clips are kept"
    usual = {"cloud": "https://cloud.example", "trouble": trouble, "disk": "", "dropped": {"door": 5, "yard": 2}}
    return Health(**{"edge": edge, "cameras": seen, "refused": 1, **usual, **given})


class Fake:
    """Is as well as it is told."""

    def __init__(self) -> None:
        self.now = health()
        self.rounds = SimpleNamespace(encoded=10, seconds=0.5)

    def health(self) -> Health:
        return self.now


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        opened = play.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def fake() -> Fake:
    return Fake()


@pytest.fixture
def url(fake: Fake) -> Iterator[str]:
    where = taken("127.0.0.1", 0)
    with served(fake, where):  # type: ignore[arg-type]
        yield f"http://127.0.0.1:{where.getsockname()[1]}"


def test_what_it_shows(browser: Browser, url: str, fake: Fake) -> None:
    with looking(browser, url) as page:
        cards = page.locator(".camera")
        expect(cards).to_have_count(5)
        door = cards.nth(0)
        for text in ("door", "running", "opening a door", "93 %", "4 s ago", "25", "123,456", "4,321", "***@camera-1"):
            expect(door).to_contain_text(text)
        expect(cards.nth(1)).to_contain_text("does not answer in 20 s")
        expect(cards.nth(1).locator(".label")).to_have_text(MARKUP)  # as text
        expect(cards.nth(2)).to_contain_text("webcam 0nothing from the cloud yet")
        expect(cards.nth(2).locator("meter")).to_be_hidden()
        expect(page.locator("img")).to_have_count(0)
        for text in ("312 clips", "690 kB", "52 min", "4,009 clips", "11.8 ms", "7 clips", "1 clip"):
            expect(page.locator("#sending")).to_contain_text(text)
        expect(page.get_by_role("status")).to_contain_text("the cloud cannot be reached")
        expect(page).to_have_title("(1 lost) Edge")

        fake.now = health(trouble="", disk="spool.sqlite cannot be written (database or disk is full)")
        fake.now.edge.cameras[1] = wire.CameraState("yard", "running", fps=25)
        expect(page.get_by_role("status")).to_have_text("spool.sqlite cannot be written (database or disk is full)")
        expect(cards.nth(1).locator(".state")).to_have_text("running")
        expect(cards.nth(1).locator(".why")).to_be_hidden()
        expect(page).to_have_title("Edge")


def test_an_edge_that_is_gone(browser: Browser, fake: Fake) -> None:
    """What is old is said to be old; the page comes back by itself."""
    where = taken("127.0.0.1", 0)
    port = where.getsockname()[1]
    with served(fake, where):  # type: ignore[arg-type]
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{port}/")
        expect(opened.locator(".camera")).to_have_count(5)
    expect(opened.get_by_role("status")).to_contain_text("The edge does not answer", timeout=9000)
    with served(fake, taken("127.0.0.1", port)):  # type: ignore[arg-type]
        expect(opened.get_by_role("status")).to_contain_text("the cloud cannot be reached", timeout=9000)
    opened.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_everybody_can_read_it(scheme: str, width: int, browser: Browser, url: str, tmp_path: Path) -> None:
    size = {"width": width, "height": 900}
    with looking(browser, url, viewport=size, color_scheme=scheme) as page:
        expect(page.locator(".camera")).to_have_count(5)
        assert page.evaluate(OVERFLOW) == []
        low = [(ratio, what) for ratio, what in page.evaluate(CONTRASTS) if ratio < 4.5]
        assert low == []
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Status as JSON"
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert (tmp_path / "page.png").stat().st_size > 10_000


def test_nothing_but_figures_leaves_the_box(url: str) -> None:
    """And the browser is told to run and load nothing else."""
    for path in ("/", "/page.css", "/page.js", "/status", "/metrics"):
        with urllib.request.urlopen(url + path) as answer:
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
    for path in ("/docs", "/openapi.json", "/../running.py", "/page.py", "/%2e%2e/running.py"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(url + path)


def test_a_watch_tells_no_secrets() -> None:
    """From the parts themselves."""
    order = Order("rtsp://u:geheim@cam/1", [], 8, 32, 2.0, 1.0, "oldest", False, 9.0)
    camera = Camera("door", order, threading.Condition(), str)
    depth = SimpleNamespace(clips=1, bytes=2, seconds=3.0, dropped=Counter({"door": 4}))
    spool = SimpleNamespace(depth=lambda: depth, trouble="")
    rounds = SimpleNamespace(boot="b", encoder="e", encode_ms=1.0)
    watch = Watch(Options(model="m", status_every=60), [camera], rounds, spool, None)  # type: ignore[arg-type]
    told = json.loads(msgspec.json.encode(watch.health()))
    assert told["cameras"]["door"] == {"source": "rtsp://***@cam/1", "told": None}
    assert told["dropped"] == {"door": 4}
    assert "geheim" not in json.dumps(told)
    body = wire.dump(watch.state(), wire.MSGPACK)
    state = wire.load(body, wire.MSGPACK, wire.EdgeState)
    assert (state.spool_dropped, state.report_seconds) == (4, 60)
