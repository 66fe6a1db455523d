"""`distill edge` from cameras to a cloud: what arrives, what a kill leaves behind, and what a person is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import edge_cloud
import numpy as np
import psutil
import pytest
from edge_cloud import says, until
from prometheus_client.parser import text_string_to_metric_families
from videos import pictures, write

from distill import command
from distill.checkpoint import fingerprint_student
from distill.deploy.card import SUFFIXES
from distill.deploy.recogniser import open_any
from distill.errors import UserError
from distill.live import listening, wire
from distill.live.edge import encoder as encoding
from distill.live.edge import running, spool
from distill.live.edge.request import Options, read
from distill.live.edge.running import edge
from distill.live.feed import Feed
from distill.live.request import Options as LiveOptions
from distill.live.sight import ClipSight
from distill.live.sources import open_source

JOB = """
import json, sys
from distill.command import guarded
from distill.live.edge.request import read
from distill.live.edge.running import edge
raise SystemExit(guarded(lambda: print(json.dumps(edge(read(sys.argv[1:]))))))
"""


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [write(folder / f"{name}.mp4", pictures(75, seed=name)) for name in (1, 2)]


def clips_of(film: Path, model: Path, every: float) -> np.ndarray:
    """Latents of the clips that `distill live` would show."""
    recogniser = open_any(model, "encoder")
    card, clips = recogniser.card, list[np.ndarray]()
    sight, source = (
        ClipSight(card.frames, card.size, card.seconds, every),
        open_source(LiveOptions(source=str(film)), (), str),
    )
    with Feed(source, waits=True, pace=False, silence=9, reconnect=0, tell=str) as frames:
        while not frames.over:
            if (frame := frames.get(1)) is not None:
                clips += [question.pixels for question in sight.see(frame, busy=False)]
    return recogniser.clips(np.stack(clips))


def options(model: Path, out: Path, **given: Any) -> Options:
    return Options(**{"model": str(model), "out": str(out), "port": 0, "key": edge_cloud.KEY, "timeout": 5.0, **given})


def exported(run: Path, out: Path, runtime: str, batch: int) -> Path:
    """The encoder of a run as a file for a box without torch."""
    few = ("form=encoder", "precision=fp32", "clips=4", "agreement=0", "cosine=0")
    assert command.run("export", [f"run={run}", f"out={out}", f"to={runtime}", f"batch={batch}", *few]) == 0
    (file,) = (path for path in out.iterdir() if path.suffix == SUFFIXES[runtime])
    return file


@pytest.mark.parametrize(
    ("encoding_name", "runtime", "batch"), [("float32", "", 1), ("int8", "", 1), ("float32", "onnx", 2)]
)
def test_films_to_the_cloud(
    encoding_name: str, runtime: str, batch: int, tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path]
) -> None:
    """Every clip of two films arrives once, in order, as the latent that the student gives for it; and whoever made
    the latents, a run or its exported file, is called the same."""
    run = tiny_run("tiny")
    model = exported(run, tmp_path / "export", runtime, batch) if runtime else run
    cameras = {"door": str(films[0]), "the yard": str(films[1])}
    with edge_cloud.running() as cloud:
        cloud.script = [says(503, retry_after="0"), says(429)]
        given = options(
            model, tmp_path, cameras=cameras, drop="wait", every=0.4, cloud=cloud.url, encoding=encoding_name
        )
        figures = edge(given)
    assert {post.encoder for post in cloud.posts} == {fingerprint_student(run)}
    for name, film in zip(cameras, films, strict=True):
        expected = clips_of(film, run, 0.4)
        keys = [key for key in cloud.order if key[0] == name]
        assert [seq for _, _, seq in keys] == list(range(len(expected)))
        found = wire.unpack([cloud.stored[key].latent for key in keys], expected.shape[1])
        tolerance = float(np.abs(expected).max()) * {"float32": 5e-5, "int8": 1 / 200}[encoding_name]
        assert found == pytest.approx(expected, abs=tolerance)
    assert len({boot for _, boot, _ in cloud.order}) == 1
    assert figures["sent"] == figures["clips"] == len(cloud.order) > 6
    assert (figures["waiting"], figures["given_up"], figures["send_errors"]) == (0, 0, 2)
    assert cloud.states
    assert {camera.name for camera in cloud.states[0].cameras} == set(cameras)


def test_without_a_cloud_clips_are_kept(tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path]) -> None:
    """And sent by a later start that has one."""
    model = tiny_run("tiny")
    first = edge(options(model, tmp_path, cameras={"a": str(films[0])}, drop="wait", every=0.4, most_clips=2))
    assert (first["clips"], first["waiting"], first["sent"]) == (2, 2, 0)
    with edge_cloud.running() as cloud:
        given = options(
            model, tmp_path, cameras={"a": str(films[0])}, drop="wait", every=0.4, most_clips=1, cloud=cloud.url
        )
        second = edge(given)
    assert (second["clips"], second["sent"], second["waiting"]) == (1, 3, 0)
    assert [seq for _, _, seq in cloud.order] == [0, 1, 0]
    assert cloud.order[0][1] == cloud.order[1][1] != cloud.order[2][1]


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "DISTILL_KEY": edge_cloud.KEY}
    with subprocess.Popen(
        [sys.executable, "-c", JOB, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def status(port: int) -> Any:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return json.load(answer)
    except OSError:
        return None


def test_kill_9_and_the_next_start(tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path]) -> None:
    """The cloud is away, then the edge is killed; nothing that was spooled is lost or comes twice. The page tells how
    it goes, SIGTERM ends it in peace, and the key is nowhere to be seen."""
    model, port, cloud_port = tiny_run("tiny"), edge_cloud.free_port(), edge_cloud.free_port()
    arguments = [f"model={model}", f"cameras.a={films[0]}", f"cameras.b={films[1]}", "repeat=true", "every=0.3"]
    arguments += [f"out={tmp_path / 'out'}", f"port={port}", f"cloud=http://127.0.0.1:{cloud_port}", "status_every=1"]
    with started(*arguments) as process:
        until(lambda: (found := status(port)) and found["edge"]["spool_clips"] >= 6, 60)
        told = status(port)
        readers = psutil.Process(process.pid).children()
        assert len(readers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        gone, alive = psutil.wait_procs(readers, 5)
        assert (len(gone), alive) == (2, [])
    assert told["edge"]["send_errors"] >= 1
    assert "the cloud cannot be reached" in told["trouble"]
    assert {camera["state"] for camera in told["edge"]["cameras"]} == {"running"}
    with edge_cloud.running(cloud_port) as cloud, started(*arguments) as process:
        until(lambda: cloud.order and len({boot for _, boot, _ in cloud.order}) == 2, 60)
        until(lambda: status(port)["cameras"]["a"]["told"])
        families = {family.name: family for family in metrics(port)}
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=20)
        assert process.returncode == 0, errors
    boots = list(dict.fromkeys(boot for _, boot, _ in cloud.order))
    for camera in "ab":
        for boot in boots:
            seqs = [seq for name, its, seq in cloud.order if (name, its) == (camera, boot)]
            assert seqs == list(range(len(seqs)))
    first = sum(boot == boots[0] for _, boot, _ in cloud.order)
    assert first >= told["edge"]["spool_clips"]
    assert cloud.twice == 0
    figures = json.loads(output.splitlines()[-1])
    assert figures["waiting"] == 0
    assert figures["sent"] == len(cloud.order)
    assert {sample.labels["camera"] for sample in families["distill_edge_frames"].samples} == {"a", "b"}
    assert families["distill_edge_encode_seconds"].samples[0].value > 0
    assert families["distill_edge_sent"].samples[0].value > 0
    assert edge_cloud.KEY not in output + errors + json.dumps(told)
    assert not psutil.pid_exists(readers[0].pid)


def metrics(port: int) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        return list(text_string_to_metric_families(answer.read().decode()))


def test_ctrl_c_while_the_cloud_hangs(tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path]) -> None:
    """It ends within seconds, in peace, and says what waits for the next start."""
    with edge_cloud.running() as cloud:
        cloud.always = edge_cloud.hangs(20)
        arguments = [f"model={tiny_run('tiny')}", f"cameras.a={films[0]}", "repeat=true", "every=0.3", "port=0"]
        with started(*arguments, f"out={tmp_path}", f"cloud={cloud.url}", "timeout=30") as process:
            until(lambda: cloud.posts, 60)
            asked = time.monotonic()
            process.send_signal(signal.SIGINT)
            output, errors = process.communicate(timeout=20)
            assert time.monotonic() - asked < 15  # the cloud hangs for 20
            assert process.returncode == 0, errors
    assert json.loads(output.splitlines()[-1])["waiting"] > 0
    assert f"clips wait in {tmp_path / 'spool.sqlite'}; the next start sends them" in errors
    assert "Traceback" not in errors


def test_users_errors(
    tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = options(tiny_run("tiny"), tmp_path / "out", cameras={"a": str(films[0])}, drop="wait", most_clips=1)
    with pytest.raises(UserError, match=r"model=/no/run: there is no such file or folder"):
        edge(replace(given, model="/no/run"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port={port}: Address already in use; say host= or port="):
            edge(replace(given, port=port))
    with pytest.raises(UserError, match=r"cannot listen at host=no\.such\.host\.example, port=8123: "):
        edge(replace(given, host="no.such.host.example", port=8123))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another out="):
        edge(replace(given, out=str(tmp_path / "file")))
    monkeypatch.setattr(spool, "BUSY_MS", 50)
    other = spool.Spool(tmp_path / "out" / "spool.sqlite", 1e9, 1e9, str)
    with pytest.raises(UserError, match="is used by another edge"):
        edge(given)
    other.close()
    (tmp_path / "broken.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"cameras.a: .*broken.mp4 is not a video that can be opened"):
        edge(replace(given, cameras={"a": str(tmp_path / "broken.mp4")}))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["cameras.a.b=demo"], "cameras.a.b: a camera's name has no dots on the command line"),
        (["cloud=http://a..b:9"], "cloud=http://a..b:9 is no address"),
        (
            ["cloud=http://127.0.0.1:8000/#key=dst_secret"],
            r"cloud=http://127.0.0.1:8000/\.\.\. is the address of a page",
        ),
        (["timeout=1e12"], "timeout is 1000000000000.0; it is 86400 at most"),
    ],
)
def test_what_is_asked_for_is_read_first(arguments: list[str], text: str) -> None:
    with pytest.raises(UserError, match=text) as told:
        read(["model=x", "cameras.door=demo", "key=k", *arguments])
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    ("host", "here", "shown"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:80"),
        ("127.9.9.9", True, "http://127.9.9.9:80"),
        ("localhost", True, "http://localhost:80"),
        ("::1", True, "http://[::1]:80"),
        ("0.0.0.0", False, "http://127.0.0.1:80"),
        ("::", False, "http://[::1]:80"),
        ("localhost.evil.example", False, "http://localhost.evil.example:80"),
        ("127.evil.example", False, "http://127.evil.example:80"),
        ("192.168.0.1", False, "http://192.168.0.1:80"),
    ],
)
def test_hosts(host: str, here: bool, shown: str) -> None:
    assert listening.is_here(host) == here
    assert listening.address(host, 80) == shown


def test_models_that_are_no_encoders(
    tmp_path: Path, tiny_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_any(tiny_run("tiny"), "encoder")
    (tmp_path / "student.onnx").write_text("")
    for card, text in (
        (replace(opened.card, form="whole"), "gives classes, no latents; export the student with form=encoder"),
        (replace(opened.card, origin={"run": "x"}), r"does not say which student was exported .*; export it again"),
    ):
        monkeypatch.setattr(encoding, "open_any", lambda *_, card=card: replace(opened, card=card))
        with pytest.raises(UserError, match=text):
            edge(options(tmp_path / "student.onnx", tmp_path, cameras={"a": "demo"}))
    card = replace(opened.card, origin={"student": "abc"})
    monkeypatch.setattr(encoding, "open_any", lambda *_: replace(opened, card=card))
    assert encoding.Encoder(tmp_path / "student.onnx", 1).id == "abc"


def test_a_film_ends_though_the_cloud_is_away(
    tmp_path: Path, films: list[Path], tiny_run: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "LAST_SECONDS", 1.0)
    nobody = f"http://127.0.0.1:{edge_cloud.free_port()}"
    figures = edge(options(tiny_run("tiny"), tmp_path, cameras={"a": str(films[0])}, drop="wait", cloud=nobody))
    assert figures["waiting"] == figures["clips"] == 1
