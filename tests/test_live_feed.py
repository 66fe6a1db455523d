"""Sources of `distill live` and the thread that reads them: what dies comes back, what hangs is left behind."""

from __future__ import annotations

import contextlib
import functools
import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from videos import pictures, write

from distill.clips.video import BrokenFileError
from distill.errors import UserError
from distill.live import feed as feeding
from distill.live.demo import Demo
from distill.live.feed import Feed, Frame
from distill.live.links import Link, safe
from distill.live.request import Options
from distill.live.sources import Shot, Shots, open_source

BLANK = np.zeros((4, 4, 3), np.uint8)
PATIENCE = 60.0  # seconds after which a test of threads has failed


class Scripted:
    """A source whose connections are functions."""

    name, paced = "the camera", False

    def __init__(self, *connections: Callable[[], Shots], live: bool = True) -> None:
        self.connections, self.live = list(connections), live

    def shots(self) -> Shots:
        if not self.connections:
            raise BrokenFileError("cannot be opened")
        return self.connections.pop(0)()


def gives(count: int, then: str = "", stream: int = 0) -> Callable[[], Shots]:
    def shots() -> Shots:
        for number in range(count):
            yield Shot(BLANK, number * 0.1, 0.1, stream)
        if then:
            raise BrokenFileError(then)

    return shots


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "FIRST_PAUSE", 0.01)


def drained(feed: Feed) -> list[Frame]:
    """All that a feed gives."""
    found, until = [], time.monotonic() + PATIENCE
    while not feed.over or not feed.buffer.over:
        assert time.monotonic() < until, "the feed hangs"
        if (frame := feed.get(0.05)) is not None:
            found.append(frame)
    feed.get(0)  # raises what went wrong
    return found


def opened(source: Any, said: list[str], waits: bool = True, pace: bool = False, **given: Any) -> Feed:
    return Feed(source, waits, pace, **{"silence": 30.0, "reconnect": -1, "tell": said.append, **given})


def test_a_camera_that_dies_comes_back() -> None:
    said: list[str] = []
    camera = Scripted(gives(3, "broke off"), gives(0, "cannot be opened"), gives(2, "broke off"), gives(4))
    with opened(camera, said) as feed:
        found = drained(feed)
    assert [frame.number for frame in found] == list(range(9))
    assert [frame.stream for frame in found] == [1, 1, 1, 2, 2, 3, 3, 3, 3]
    times = [frame.seconds for frame in found]
    assert times == sorted(set(times))
    assert feed.reconnects == 2
    assert [text.split(";")[0] for text in said] == [
        "the camera broke off", "the camera cannot be opened", "the camera is back",
        "the camera broke off", "the camera is back",
    ]  # fmt: skip
    assert not threads()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("distill live")]


@pytest.mark.parametrize(("tries", "ending"), [(0, "broke off$"), (2, r"cannot be opened, and did not .*\(2 tries\)")])
def test_a_camera_is_given_up(tries: int, ending: str) -> None:
    said: list[str] = []
    feed = opened(Scripted(gives(3, "broke off")), said, reconnect=tries)
    with feed, pytest.raises(UserError, match=f"the camera {ending}"):
        drained(feed)
    assert len(said) == tries


def test_a_source_that_was_never_there_is_not_waited_for() -> None:
    with opened(Scripted(), []) as feed, pytest.raises(UserError, match="the camera cannot be opened"):
        drained(feed)


def test_a_file_that_breaks_off_is_not_read_again() -> None:
    feed = opened(Scripted(gives(3, "broke off"), gives(3), live=False), [])
    with feed, pytest.raises(UserError, match="the camera broke off"):
        drained(feed)


def test_a_camera_that_hangs_is_left_behind() -> None:
    """Its thread may wake up later; what it has to say by then is not heard."""
    wake, said = threading.Event(), list[str]()

    def hangs() -> Shots:
        yield from gives(2)()
        wake.wait()
        yield Shot(BLANK, 99.0, 0.1)

    def again() -> Shots:
        yield from gives(2)()
        wake.set()
        while "distill live: reader" in threads()[:-1]:
            time.sleep(0.01)
        yield Shot(BLANK, 0.2, 0.1)

    with opened(Scripted(hangs, again), said, silence=0.3) as feed:
        found = drained(feed)
    assert [frame.stream for frame in found] == [1, 1, 2, 2, 2]
    assert max(frame.seconds for frame in found) < 90
    assert said[0].startswith("the camera gave no frame for 0.3 s; trying again in 0.0 s")
    assert feed.reconnects == 1


def test_a_mistake_in_a_thread_is_no_silence() -> None:
    def wrong() -> Shots:
        yield Shot(BLANK, 0.0, 0.1)
        raise ZeroDivisionError

    with opened(Scripted(wrong), []) as feed, pytest.raises(ZeroDivisionError):
        drained(feed)


def test_the_latest_frames_win_and_the_others_are_counted() -> None:
    with opened(Scripted(gives(500)), [], waits=False) as feed:
        while not feed.buffer._closed:
            time.sleep(0.01)
        found = drained(feed)
    assert [frame.number for frame in found] == [498, 499]
    assert feed.buffer.dropped == 498


def test_recordings_follow_each_other_in_time_and_keep_the_pace_if_asked() -> None:
    def two() -> Shots:
        yield from gives(3, stream=0)()
        yield from gives(3, stream=1)()

    with opened(Scripted(two, live=False), [], pace=True) as feed:
        found = drained(feed)
    assert [frame.seconds for frame in found] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert [frame.stream for frame in found] == [1, 1, 1, 2, 2, 2]
    for frame in found:
        assert frame.captured - found[0].captured > frame.seconds - 0.05  # none comes early


# ---------------------------------------------------------------- the network


def transport_stream(path: Path, count: int) -> bytes:
    with av.open(str(path), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "5", "tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for picture in pictures(count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


@contextlib.contextmanager
def server(*connections: tuple[bytes, bool]) -> Iterator[str]:
    """Over TCP: what each connection gets, and whether it then hangs without a word. Afterwards nobody answers."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            open_ones = []
            for data, hangs in connections:
                connection, _ = listening.accept()
                with contextlib.suppress(OSError):
                    connection.sendall(data)
                if hangs:
                    open_ones.append(connection)
                else:
                    connection.close()
            done.wait()
            for connection in open_ones:
                connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"tcp://127.0.0.1:{listening.getsockname()[1]}"
        done.set()
        thread.join()


def test_a_stream_on_the_network_dies_and_comes_back(tmp_path: Path) -> None:
    """In the middle of a packet, the second time without a word."""
    data, said = transport_stream(tmp_path / "a.ts", 150), list[str]()
    connections = ((data[: len(data) * 2 // 3], False), (data, True), (data, False))
    with server(*connections) as url, opened(Link(url, 2.0), said, silence=2.0) as feed:
        found = []
        while feed.reconnects < 2 or not feed.lost:
            if (frame := feed.get(0.05)) is not None:
                found.append(frame)
    assert {frame.stream for frame in found} == {1, 2, 3}
    assert [frame.number for frame in found] == list(range(len(found)))
    times = [frame.seconds for frame in found]
    assert times == sorted(set(times))
    assert all(frame.picture.shape == (48, 64, 3) for frame in found)
    assert sum("broke off; trying again" in text or "gave no frame" in text for text in said) >= 3


def test_a_recording_on_the_network_ends(tmp_path: Path) -> None:
    """All of its frames, at their own pace, and no second time."""
    write(tmp_path / "a.mp4", pictures(20))

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path))) as web:
        threading.Thread(target=web.serve_forever).start()
        with opened(Link(f"http://127.0.0.1:{web.server_port}/a.mp4", 10.0), []) as feed:
            found = drained(feed)
        feed = opened(Link(f"http://127.0.0.1:{web.server_port}/b.mp4", 10.0), [])
        with feed, pytest.raises(UserError, match=r"b\.mp4 cannot be opened \(.*404"):
            drained(feed)
        web.shutdown()
    assert [frame.seconds for frame in found] == pytest.approx([number / 25 for number in range(20)])
    assert found[-1].captured - found[0].captured > 0.7


def test_nobody_learns_a_camera_s_password() -> None:
    assert safe("rtsp://me:p:w@cam:554/a@b") == "rtsp://***@cam:554/a@b"
    assert safe("rtsp://me:p@w@cam:554/1") == "rtsp://***@cam:554/1"
    assert safe("rtsp://me:p/w@cam:554/1") == "rtsp://***@cam:554/1"
    for plain in ("http://cam/a@b", "http://cam:80/a@b"):
        assert safe(plain) == plain
    assert Link("rtsp://me:secret@cam/1", 1.0).name == "rtsp://***@cam/1"
    with pytest.raises(UserError, match=r"source=gopher://\*\*\*@x: there is no way to open gopher://; known: rtsp,"):
        Link("gopher://me:secret@x", 1.0)


# ---------------------------------------------------------------- files


def of(source: Path | str, said: list[str] | None = None) -> list[Shot]:
    return list(open_source(Options(source=str(source), fps=5.0), [], ([] if said is None else said).append).shots())


def test_a_folder_of_videos_leaves_out_what_is_broken(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "2.mp4", pictures(4))
    write(tmp_path / "1.avi", pictures(3), codec="mpeg4")
    (tmp_path / "0.mp4").write_bytes(b"no video")
    (tmp_path / "notes.txt").write_text("no video either")
    said: list[str] = []
    found = of(tmp_path, said)
    assert [(shot.stream, shot.name) for shot in found] == [(1, "1.avi")] * 3 + [(2, "b/2.mp4")] * 4
    assert [shot.seconds for shot in found[3:]] == pytest.approx([0.0, 0.04, 0.08, 0.12])
    assert all(shot.lasts == pytest.approx(0.04) for shot in found)
    assert said == [f"{tmp_path / '0.mp4'} is not a video that can be opened "
                    "(Invalid data found when processing input); it is left out"]  # fmt: skip


def test_a_folder_of_pictures_is_one_recording(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    found = of(tmp_path)
    assert [int(shot.picture[0, 0, 0]) for shot in found] == [1, 2, 10]
    assert [shot.seconds for shot in found] == [0.0, 0.2, 0.4]


def test_times_that_step_back_do_not(tmp_path: Path) -> None:
    """Frames are shown in the order of their times; a file without any has its rate."""
    write(tmp_path / "a.mkv", pictures(5), times=[0, 1, 2, 10, 11])
    assert [shot.seconds for shot in of(tmp_path / "a.mkv")] == pytest.approx([0.0, 0.04, 0.08, 0.4, 0.44], abs=1e-3)
    write(tmp_path / "a.h264", pictures(5))
    times = [shot.seconds for shot in of(tmp_path / "a.h264")]
    assert np.allclose(np.diff(times), 0.04)


def test_the_demo_draws_what_the_model_knows_and_never_ends() -> None:
    shots = Demo(["jumping", "up", "left"]).shots()
    found = [next(shots) for _ in range(150)]
    assert [found[at].name for at in (0, 59, 60, 119, 120)] == ["up", "up", "left", "left", "up"]
    assert [shot.seconds for shot in found[:3]] == [0.0, 0.1, 0.2]
    assert not (found[0].picture == found[120].picture).all()  # another digit
    assert len(Demo(["jumping"]).motions) == 12
