"""Cameras in processes of their own: what they show, what gives way, and how they die and come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from edge_cloud import until
from videos import pictures, write

from distill.clips import motion
from distill.errors import UserError
from distill.live import feed
from distill.live.edge import camera as cameras
from distill.live.edge.camera import Camera, View
from distill.live.edge.pipe import Order
from distill.live.edge.request import Options
from distill.live.edge.rounds import Rounds
from distill.live.edge.running import check_source, reading
from distill.live.edge.spool import Spooled
from distill.live.feed import Feed
from distill.live.request import Options as LiveOptions
from distill.live.sight import ClipSight
from distill.live.sources import open_source

FRAMES, SIZE, SECONDS, EVERY = 4, 24, 0.8, 0.4


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "FIRST_PAUSE", 0.05)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 3 seconds, 10 frames a second."""
    path = tmp_path_factory.mktemp("drawn") / "drawn.mp4"
    motion.encode(motion.draw(motion.Drawing(frames=30, speed=0.9, drift=0.15), "drawn", "left", "test"), path)
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 10 seconds, 25 frames a second."""
    return write(tmp_path_factory.mktemp("long") / "long.mp4", pictures(250))


def asked(film: Path, every: float) -> list[np.ndarray]:
    """The clips that `distill live` cuts from a film."""
    sight, clips = ClipSight(FRAMES, SIZE, SECONDS, every), list[np.ndarray]()
    source = open_source(LiveOptions(source=str(film)), (), str)
    with Feed(source, waits=True, pace=False, silence=9, reconnect=0, tell=str) as frames:
        while not frames.over:
            if (frame := frames.get(1)) is not None:
                clips += [question.pixels for question in sight.see(frame, busy=False)]
    return clips


@pytest.fixture(scope="module")
def shown(drawn: Path) -> dict[float, list[np.ndarray]]:
    """What `distill live` asks about the drawn video, at every frame and every 0.4 s."""
    found = {every: asked(drawn, every) for every in (0.0, EVERY)}
    assert [len(clips) for clips in found.values()] == [23, 6]
    return found


class Watched:
    """Cameras that run, and what they said."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack, self.said, self.changed = stack, list[str](), threading.Condition()

    def start(self, *sources: object, **given: Any) -> list[Camera]:
        usual = {"every": EVERY, "drop": "oldest", "repeat": False, "silence": 9.0}
        made = [
            Camera(
                f"camera{place}",
                Order(str(source), ["left"], FRAMES, SIZE, SECONDS, **{**usual, **given}),
                self.changed,
                self.said.append,
            )
            for place, source in enumerate(sources)
        ]
        self.stack.enter_context(reading(made))
        return made

    def clip(self, camera: Camera, next_seconds: float = 0.0, seconds: float = 30.0) -> View:
        until(lambda: camera.may_be_asked, seconds)
        camera.ask(next_seconds)
        return self.given(camera, seconds)

    def given(self, camera: Camera, seconds: float = 30.0) -> View:
        until(lambda: camera.view is not None, seconds)
        view = camera.take()
        assert view is not None
        return view


@pytest.fixture
def watched() -> Iterator[Watched]:
    before = {child.pid for child in psutil.Process().children()}
    with ExitStack() as stack:
        yield Watched(stack)
    assert {child.pid for child in psutil.Process().children()} <= before  # nobody is left behind


def place_of(view: View, clips: list[np.ndarray]) -> int:
    """Which of these it is, to the bit."""
    (found,) = [place for place, clip in enumerate(clips) if (clip == view.pixels).all()]
    return found


def test_waiting_loses_nothing(watched: Watched, drawn: Path, shown: dict[float, list[np.ndarray]]) -> None:
    """The clips of `distill live`, however long one takes over them; who waits is not silent."""
    (camera,) = watched.start(drawn, drop="wait", silence=0.6)
    first = watched.clip(camera)
    time.sleep(1.5)
    found = [first] + [watched.clip(camera) for _ in range(5)]
    assert [place_of(view, shown[EVERY]) for view in found] == list(range(6))
    until(lambda: camera.state == "ended")
    report = camera.report()
    assert (report.frames, report.frames_dropped, report.clips_dropped, report.reconnects) == (30, 0, 0, 0)
    assert watched.said == ["camera camera0: has come to its end"]


def test_the_oldest_gives_way(watched: Watched, drawn: Path, shown: dict[float, list[np.ndarray]]) -> None:
    """Whenever one asks, the freshest clip comes, as files are filmed; it is asked about once."""
    (camera,) = watched.start(drawn, drop="oldest")
    places, ages = [], []
    for _ in range(3):
        view = watched.clip(camera)
        ages.append(time.time() - view.captured)
        places.append(place_of(view, shown[0.0]))
        time.sleep(0.45)
    assert max(ages) < 0.3
    assert all(3 <= step <= 7 for step in np.diff(places)), places
    first = watched.clip(camera)
    again = watched.clip(camera)
    assert place_of(again, shown[0.0]) > place_of(first, shown[0.0])


def test_the_newest_gives_way(watched: Watched, drawn: Path, shown: dict[float, list[np.ndarray]]) -> None:
    """What waits comes first, and what finds no room is counted."""
    (camera,) = watched.start(drawn, drop="newest")
    until(lambda: camera.report().clips_dropped >= 2)
    found = [place_of(watched.clip(camera), shown[EVERY]) for _ in range(2)]
    assert found == [0, 1]
    until(lambda: camera.state == "ended" or camera.report().frames == 30)
    report = camera.report()
    assert 2 <= report.clips_dropped <= 4


def test_frames_that_no_clip_will_hold_are_not_painted(watched: Watched, long: Path) -> None:
    """Adaptive: asked every 3 seconds for one of 0.8, most frames are decoded alone; the clip is whole all the same."""
    clips = asked(long, 0.0)
    adaptive, oldest = watched.start(long, drop="adaptive")[0], watched.start(long, drop="oldest")[0]
    places = {camera.order.drop: [place_of(watched.clip(camera, 3.0), clips)] for camera in (adaptive, oldest)}
    time.sleep(3.0)
    for camera in (adaptive, oldest):
        places[camera.order.drop].append(place_of(watched.clip(camera, 3.0), clips))
    assert all(65 < second - first < 95 for first, second in places.values()), places
    until(lambda: adaptive.report().frames > 150)
    report = adaptive.report()
    assert report.frames_dropped > 0.4 * report.frames
    assert oldest.report().frames_dropped < 0.05 * report.frames
    assert report.clips_dropped == 0


def test_a_film_that_is_too_short_is_a_clip(watched: Watched, tmp_path: Path) -> None:
    """At its end, and again each time that it begins again."""
    film = write(tmp_path / "short.mp4", pictures(10))
    once, always = watched.start(film)[0], watched.start(film, repeat=True)[0]
    view = watched.clip(once)
    until(lambda: once.state == "ended")
    assert once.report().frames == 10
    assert (watched.clip(always).pixels == view.pixels).all()
    assert (watched.clip(always).pixels == view.pixels).all()
    until(lambda: always.report().frames >= 20)
    assert always.state == "running"


def test_kill_9_of_a_reader(watched: Watched, drawn: Path) -> None:
    (camera,) = watched.start(drawn, repeat=True)
    watched.clip(camera)
    before = camera.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    until(lambda: camera.state == "lost")
    watched.clip(camera)
    assert camera.pid != before
    assert camera.report().reconnects == 1
    lost, back = watched.said
    assert lost.startswith("camera camera0: its reader died; trying again in 0.0")
    assert back == "camera camera0: is back"


def test_a_reader_that_cannot_be_started_is_tried_again(
    watched: Watched, drawn: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, errors = cameras._spawn, [OSError(24, "Too many open files")] * 2

    def spawn() -> Any:
        if errors:
            raise errors.pop()
        return whole()

    monkeypatch.setattr(cameras, "_spawn", spawn)
    (camera,) = watched.start(drawn)
    watched.clip(camera)
    assert watched.said[0].startswith(
        "camera camera0: its reader cannot be started (Too many open files); trying again in"
    )


def test_a_reader_that_hangs_is_killed(watched: Watched, drawn: Path) -> None:
    """A process that does not even get to run, as in a driver that does not return."""
    (camera,) = watched.start(drawn, repeat=True, silence=0.8)
    watched.clip(camera)
    before = camera.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    camera.ask(0.0)
    until(lambda: camera.state == "lost")
    assert not psutil.pid_exists(before)
    watched.clip(camera)
    assert camera.report().reconnects == 1
    assert watched.said[0].startswith("camera camera0: gave no frame for 1 s; trying again in")


def test_a_reader_that_never_begins_is_killed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "START_SECONDS", 0.5)
    monkeypatch.setattr(cameras, "READ", "import time; time.sleep(99)")
    (camera,) = watched.start("demo", silence=0.5)
    until(lambda: len(watched.said) > 1)
    assert camera.state == "lost"
    assert watched.said[0].startswith("camera camera0: gave no frame for 1 s")
    assert camera.report().reconnects == 0


def stream(film: Path, connections: list[Callable[[socket.socket, bytes], None]]) -> tuple[str, socket.socket]:
    """A camera in the network that treats each connection in its own way."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for treat in connections:
            taken, _ = server.accept()
            with taken:
                treat(taken, film.read_bytes())

    threading.Thread(target=serve, daemon=True).start()
    return f"tcp://user:geheim@127.0.0.1:{server.getsockname()[1]}", server


def test_a_camera_in_the_network(watched: Watched, tmp_path: Path) -> None:
    """It breaks off, then it hangs, then it runs. Nobody is told its password, not even by the list of processes."""
    film, over = write(tmp_path / "a.ts", pictures(100), codec="mpeg2video"), threading.Event()

    def sends(connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)

    def hangs(connection: socket.socket, data: bytes) -> None:
        connection.sendall(data[: len(data) // 2])
        until(lambda: camera.state == "lost")

    def goes_on(connection: socket.socket, data: bytes) -> None:
        connection.sendall(data)
        over.wait(60)

    url, server = stream(film, [sends, hangs, goes_on])
    with server:
        (camera,) = watched.start(url, silence=1.2)
        until(lambda: camera.pid)
        assert "geheim" not in " ".join(psutil.Process(camera.pid).cmdline())
        until(lambda: camera.report().reconnects == 2)
        over.set()
    assert "broke off" in watched.said[0]
    assert not [text for text in watched.said if "geheim" in text]


def test_a_camera_that_is_not_there(watched: Watched) -> None:
    """It is lost, tried again at growing intervals, and says why."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    (camera,) = watched.start(f"tcp://u:geheim@127.0.0.1:{port}")
    until(lambda: len(watched.said) >= 2)
    until(lambda: camera.state == "lost")
    assert "cannot be opened (Connection refused)" in camera.why
    assert "geheim" not in camera.why
    assert camera.report().state == "lost"


def test_a_file_that_is_no_video_ends(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (camera,) = watched.start(tmp_path / "a.mp4")
    until(lambda: camera.state == "ended")
    assert "a.mp4 is not a video that can be opened" in camera.report().why


def test_one_that_hangs_holds_up_no_other(watched: Watched, long: Path) -> None:
    """Two run, one is stopped in the middle: the other two give their clips as if nothing were."""
    made = watched.start(long, long, long, silence=60)
    stop, kept = threading.Event(), list[tuple[float, list[str]]]()

    def encode(clips: np.ndarray) -> tuple[np.ndarray, float]:
        assert clips.shape[1:] == (FRAMES, SIZE, SIZE, 3)
        return np.zeros((len(clips), 4), np.float32), 1.0

    def keep(clips: Any) -> None:
        kept.append((time.monotonic(), [item.clip.camera for item in clips]))

    rounds = Rounds(Options(every=0.4), made, watched.changed, encode, keep, "e", "b")
    thread = threading.Thread(target=rounds.run, args=(stop,))
    thread.start()
    until(lambda: sum(len(names) == 3 for _, names in kept) >= 3)  # all in one call
    victim = made[1].pid
    assert victim is not None
    os.kill(victim, signal.SIGSTOP)
    begin = time.monotonic()
    until(lambda: time.monotonic() > begin + 3)
    stop.set()
    thread.join()
    after = [(moment, names) for moment, names in kept if moment > begin + 0.5]
    assert {tuple(names) for _, names in after} == {("camera0", "camera2")}
    assert 3 <= len(after) <= 7
    assert max(np.diff([moment for moment, _ in after])) < 1.5
    assert [camera.clips for camera in made] == [sum(name in names for _, names in kept) for name in
                                                 ("camera0", "camera1", "camera2")]  # fmt: skip


def test_clips_that_a_slow_model_misses_are_counted(watched: Watched, long: Path) -> None:
    (camera,) = watched.start(long)
    stop, seqs = threading.Event(), list[int]()

    def encode(clips: np.ndarray) -> tuple[np.ndarray, float]:
        time.sleep(0.9)
        return np.zeros((len(clips), 4), np.float32), 900.0

    def keep(items: list[Spooled]) -> None:
        seqs.extend(item.clip.seq for item in items)
        if len(seqs) == 4:
            stop.set()

    Rounds(Options(every=0.2), [camera], watched.changed, encode, keep, "e", "b").run(stop)
    assert seqs == [0, 1, 2, 3]
    assert 8 <= camera.report().clips_dropped <= 20  # three times what fits into 0.9 s, less the one that is taken


def test_what_is_not_finite_is_left_out(watched: Watched, long: Path) -> None:
    (camera,) = watched.start(long)
    stop, latents = threading.Event(), [np.nan, 1.0, np.inf, 2.0]
    kept = list[Spooled]()

    def encode(clips: np.ndarray) -> tuple[np.ndarray, float]:
        return np.full((len(clips), 4), latents.pop(0), np.float32), 1.0

    def keep(items: list[Spooled]) -> None:
        kept.extend(items)
        if not latents:
            stop.set()

    Rounds(Options(every=0.2), [camera], watched.changed, encode, keep, "e", "b").run(stop)
    assert [item.clip.seq for item in kept] == [0, 1]
    assert sum("is not finite" in text for text in watched.said) == 2
    assert camera.report().clips_dropped >= 2


PARENT = """
import sys, threading, time
from distill.live.edge.camera import Camera
from distill.live.edge.pipe import Order
if __name__ == "__main__":
    order = Order(sys.argv[1], ["left"], 4, 24, 0.8, 0.4, sys.argv[2], True, 9.0)
    camera = Camera("a", order, threading.Condition(), str)
    camera.start()
    while not camera.may_be_asked:
        time.sleep(0.01)
    print(camera.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("drop", ["oldest", "wait"])
def test_readers_end_with_their_edge(drop: str, drawn: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(drawn), drop], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        reader = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
        reader.wait(5)


@pytest.mark.parametrize(
    ("source", "drop", "text"),
    [
        ("/no/such/film", "oldest", "cameras.door: source=/no/such/film: there is no such file or folder"),
        ("gopher://u:geheim@host/", "oldest", r"cameras.door: source=gopher://\*\*\*@host/: there is no way to open"),
        ("rtsp://u:geheim@host/", "wait", r"cameras.door=rtsp://\*\*\*@host/: drop=wait is for files and demo"),
        ("0", "wait", "cameras.door=0: drop=wait is for files"),
    ],
)
def test_what_a_person_can_put_right(source: str, drop: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        check_source("cameras.door", source, drop)


def test_webcams_need_opencv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"cameras.door=0: webcams need OpenCV, which is not installed: pip install"):
        check_source("cameras.door", "0", "oldest")


def test_a_reader_is_light() -> None:
    """No torch, no runtimes: each camera has one."""
    code = "import sys, distill.live.edge.reader; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"torch", "sklearn", "scipy", "cv2", "httpx2", "uvicorn", "starlette", "sqlite3", "prometheus_client"}
    assert not heavy & set(found)
