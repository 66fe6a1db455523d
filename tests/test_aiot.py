"""The whole way, from cameras to stored predictions, while its parts are killed: nothing twice, nothing lost."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from cloud_server import DATABASES, Service, command, free_port, fresh_database, latents, post, running, shares

from distill.clips import motion
from distill.command import dispatch
from distill.live.edge.request import KEY

CAMERAS = 5


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    drawing = motion.Drawing(frames=30, speed=0.9, drift=0.15)
    for number in range(CAMERAS):
        frames = motion.draw(drawing, f"camera{number}", motion.DEFAULT_CLASSES[number], "test")
        motion.encode(frames, folder / f"camera{number}.mp4")
    return sorted(folder.iterdir())


class Box:
    """An edge in a process of its own, which can be killed and started again."""

    def __init__(self, service: Service, model: Path, videos: list[Path], folder: Path) -> None:
        self.folder, self.key, self.port = folder, service.key("box1"), free_port()
        self.command = command(
            "edge", *(f"cameras.{path.stem}={path}" for path in videos), model=model, cloud=service.url,
            out=folder / "edge", every=0.25, repeat="true", seconds=0.8, port=self.port, batch=8, timeout=3,
        )  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "edge.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env={**os.environ, KEY: self.key}, start_new_session=True
            )

    def kill(self) -> None:
        """The agent alone; its readers have to notice."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)

    def readers(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def waiting(self) -> int:
        """Clips in the spool, as the running edge tells."""
        try:
            return int(
                httpx2.get(f"http://127.0.0.1:{self.port}/status", trust_env=False).json()["edge"]["spool_clips"]
            )
        except httpx2.TransportError:
            return 0

    def left(self) -> int:
        """Clips in the spool of an edge that does not run."""
        with closing(sqlite3.connect(self.folder / "edge" / "spool.sqlite")) as connection:
            return int(connection.execute("SELECT count(*) FROM clips").fetchone()[0])


@contextmanager
def box(service: Service, model: Path, videos: list[Path], folder: Path) -> Iterator[Box]:
    made = Box(service, model, videos, folder)
    try:
        made.start()
        yield made
    finally:
        if made.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(made.process.pid, signal.SIGKILL)


def until(true: Callable[[], Any], seconds: float = 40.0) -> None:
    due = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < due
        time.sleep(0.1)


def ended(process: psutil.Process) -> bool:
    """Whether or not somebody has asked for its exit code."""
    with suppress(psutil.NoSuchProcess):
        return process.status() == psutil.STATUS_ZOMBIE
    return True


@pytest.mark.slow
@pytest.mark.parametrize("kind", DATABASES)
def test_whatever_is_killed(
    kind: str, tmp_path: Path, videos: list[Path], tiny_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The cloud twice and the edge once with -9, the network refused in between: every clip that was spooled is stored
    exactly once, each camera's in their order."""
    model, database = tiny_run("tiny"), fresh_database(kind, tmp_path)
    workers = 2 if kind == "postgresql" else 1
    with (
        running(database, tmp_path, classifier=model, workers=workers) as service,
        box(service, model, videos, tmp_path) as edge,
    ):
        until(lambda: len(service.rows()) >= 25)
        service.kill()
        until(lambda: edge.waiting() >= 20)  # refused all the while
        left = edge.readers()
        edge.kill()
        until(lambda: not any(reader.is_running() for reader in left), 20)
        waited = edge.left()
        edge.start()
        time.sleep(1.5)
        service.start()
        stored = len(service.rows())
        until(lambda: len(service.rows()) >= stored + waited)
        service.kill()
        time.sleep(1)
        service.start()
        stored = len(service.rows())
        until(lambda: len(service.rows()) >= stored + 25)
        assert edge.stop() == 0, (tmp_path / "edge.log").read_text()
        rows, left_over = service.rows(), edge.left()

    found = defaultdict[tuple[str, str], list[int]](list)
    for row in rows:
        found[row["camera"], row["boot"]].append(row["seq"])
    assert {camera for camera, _ in found} == {path.stem for path in videos}
    assert len({boot for _, boot in found}) == 2
    for seqs in found.values():
        assert seqs == list(range(len(seqs))), "a gap, a twin or a wrong order"
    for path in videos:
        boots = [row["boot"] for row in rows if row["camera"] == path.stem]
        assert len(set(boots)) == 2
        assert boots == sorted(boots, key=boots.index), "clips of before the restart come first"
    assert left_over == 0
    with capsys.disabled():
        print(f"\n{kind}: stored {len(rows)}, twice 0, missing 0, waited for the cloud at most {waited}")


def test_workers_give_what_one_gives(tmp_path: Path) -> None:
    rows = latents(60)
    with running(fresh_database("postgresql", tmp_path), tmp_path, workers=3) as service:
        messages = [post(rows[at : at + 3], f"camera {at % 5}", first=at) for at in range(0, 60, 3)]
        service.device  # noqa: B018  # its key is made before there are threads
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(service.verdicts, [*messages, *messages]))
        stored = service.rows()
        health = service.viewer.get("/v1/cameras").json()
    assert len(stored) == 60
    assert sum(verdict.known for verdicts in answers for verdict in verdicts) == 60
    expected = shares(rows).max(1)
    for row in stored:
        assert row["confidence"] == pytest.approx(expected[row["seq"]], abs=2e-6)
    assert [row["id"] for row in stored] == sorted({row["id"] for row in stored})
    assert len(health["devices"][0]["cameras"]) == 5


def test_the_demo(tmp_path: Path, tiny_run: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    port, model = free_port(), tiny_run("tiny")
    given = [f"out={tmp_path}", f"model={model}", f"port={port}", "cameras=2", "every=0.5", "most_seconds=8"]
    assert dispatch(["demo-aiot", *given]) == 0
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}/#key=dst_" in said
    with sqlite3.connect(tmp_path / "cloud" / "cloud.sqlite") as connection:
        found = connection.execute("SELECT camera, count(*) FROM predictions GROUP BY camera").fetchall()
    assert [camera for camera, _ in found] == ["camera1", "camera2"]
    assert all(count >= 2 for _, count in found)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP], ids=["Ctrl-C", "the terminal closes"])
def test_the_demo_ends(
    sent: signal.Signals, tmp_path: Path, tiny_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of it; and it had not minded a proxy, which is for the world outside."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    given = {"out": tmp_path, "model": tiny_run("tiny"), "port": free_port(), "cameras": 1}
    with subprocess.Popen(command("demo-aiot", **given), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("Ctrl-C ends it" in line for line in demo.stdout)
        left = psutil.Process(demo.pid).children(recursive=True)
        assert len(left) >= 2
        signal.signal(signal.SIGHUP, before)
        demo.send_signal(sent)
        try:
            assert demo.wait(40) == 0
        finally:
            demo.kill()
    assert not any(process.is_running() for process in left)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_demo_that_is_killed_leaves_nothing(tmp_path: Path, tiny_run: Callable[[str], Path]) -> None:
    given = {"out": tmp_path, "model": tiny_run("tiny"), "port": free_port(), "cameras": 1}
    with subprocess.Popen(command("demo-aiot", **given), stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert any("Ctrl-C ends it" in line for line in demo.stdout)
        whole = psutil.Process(demo.pid)
        until(lambda: len(whole.children(recursive=True)) >= 3)  # the camera's reader, too
        left = whole.children(recursive=True)
        demo.kill()
    until(lambda: all(ended(process) for process in left))


def test_a_port_that_is_taken_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert dispatch(["demo-aiot", f"out={tmp_path}", f"port={taken.getsockname()[1]}"]) == 2
    assert "cannot listen" in capsys.readouterr().err
