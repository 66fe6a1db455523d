"""A cloud service to talk to, in this process or in one of its own, over SQLite or a PostgreSQL of this session."""

from __future__ import annotations

import atexit
import functools
import itertools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import uvicorn

from distill.live import wire
from distill.live.cloud import access
from distill.live.cloud.database import using, writing
from distill.live.cloud.request import Options
from distill.live.cloud.service import make_app
from distill.live.cloud.tables import DEVICE
from distill.probing.classifiers import PROBES
from distill.probing.saved import Saved, load_probe, save_probe

ROOT = Path(__file__).resolve().parents[1]
WIDTH, ENCODER = 16, "enc1"
CLASSES = ["wave", "clap", "=sum(A1)", "fållä 走る", 'say "so", then']  # as unlike each other as people write them
DATABASES = ("sqlite", "postgresql")
SOON = 15.0  # seconds that a thing in another thread may take on a busy machine
PATIENCE = 40.0  # seconds that a process is given to be ready


# ------------------------------------------------------------ a classifier


@functools.cache
def classifier() -> Path:
    """The file of a small probe."""
    folder = Path(tempfile.mkdtemp(prefix="distill-probe-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    probe = PROBES["logistic_regression"].make(0)
    truth = np.arange(200) % len(CLASSES)
    probe.fit(latents(200, seed=9) + np.eye(len(CLASSES), WIDTH, dtype=np.float32)[truth], truth)
    save_probe(probe, CLASSES, folder / "probe.safetensors", {"table": {"student": ENCODER}})
    return folder / "probe.safetensors"


@functools.cache
def saved() -> Saved:
    return load_probe(classifier())


def shares(rows: np.ndarray) -> np.ndarray:
    """What the classifier says itself, float64 [N,K]."""
    found: np.ndarray | None = saved().probe.shares(saved().probe.scores(rows.astype(np.float32)))
    assert found is not None
    return found


def latents(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def post(
    rows: np.ndarray | Sequence[Any],
    camera: str = "door",
    boot: str = "b1",
    first: int = 0,
    captured: float | None = None,
    encoding: str = "float32",
    **more: Any,
) -> wire.Post:
    """A message of one clip for each latent; what is packed already stays so."""
    at = time.time() if captured is None else captured
    packed = (wire.pack(row, encoding) if isinstance(row, np.ndarray) else row for row in rows)
    clips = [wire.Clip(camera, boot, first + place, at + place / 1000, row) for place, row in enumerate(packed)]
    return wire.Post(**{"encoder": ENCODER, "sent": at + 0.5, "clips": clips, **more})


# ------------------------------------------------------------ what is seen of it


@contextmanager
def writer(url: str) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    with using(url) as engine, writing(engine):
        yield


def eventually(holds: Callable[[], Any]) -> Any:
    due = time.monotonic() + SOON
    while not (found := holds()):
        assert time.monotonic() < due
        time.sleep(0.02)
    return found


def refused(answer: httpx2.Response, code: int) -> str:
    """With one sentence, and nothing of how we are built."""
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"detail"}
    said = answer.json()["detail"]
    assert isinstance(said, str)
    assert said
    assert not re.search(r"Traceback|File \"|\n|\.py|sqlalchemy|SELECT|INSERT", said)
    if code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return said


# ------------------------------------------------------------ services


@dataclass
class Service:
    """One that runs, or is about to."""

    port: int
    database: str
    changes: dict[str, Any] = field(default_factory=dict)
    process: subprocess.Popen[str] | None = None
    log: Path = Path()
    _clients: list[httpx2.Client] = field(default_factory=list)
    _keys: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def key(self, name: str, role: str = DEVICE) -> str:
        """Of a device or viewer, which is made where there is none of this name."""
        if name not in self._keys:
            with using(self.database) as engine:
                there = name in {known for known, _, _ in access.holders(engine)}
                self._keys[name] = access.rotate(engine, name, 1e6) if there else access.add(engine, name, role)
        return self._keys[name]

    def client(self, key: str = "", **more: Any) -> httpx2.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._clients.append(httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False, **more))
        return self._clients[-1]

    @functools.cached_property
    def device(self) -> httpx2.Client:
        return self.client(self.key("box1"))

    @functools.cached_property
    def viewer(self) -> httpx2.Client:
        return self.client(self.key("ann", "viewer"))

    def send(self, message: Any, media: str = wire.MSGPACK, client: httpx2.Client | None = None) -> httpx2.Response:
        path = "/v1/status" if isinstance(message, wire.EdgeState) else "/v1/latents"
        content = wire.dump(message, media)
        return (client or self.device).post(path, content=content, headers={"Content-Type": media})

    def verdicts(self, message: wire.Post, media: str = wire.MSGPACK) -> list[wire.Verdict]:
        """What is answered; it has to be."""
        answer = self.send(message, media)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == media
        return wire.load(answer.content, media, wire.Answer).results

    def rows(self, **query: Any) -> list[dict[str, Any]]:
        """All predictions, from the oldest."""
        found, after = list[dict[str, Any]](), 0
        while after is not None:
            answer = self.viewer.get("/v1/predictions", params={"order": "oldest", "after": after, **query})
            assert answer.status_code == 200, answer.text
            found += answer.json()["predictions"]
            after = answer.json()["next"]
        return found

    # -------------------------------------------------------- a process of its own

    def start(self) -> None:
        """And wait until it is ready."""
        given = {"classifier": classifier(), "database": self.database, "port": self.port, **self.changes}
        with self.log.open("a") as log:
            same: dict[str, Any] = {
                "stdout": log,
                "stderr": log,
                "cwd": ROOT,
                "env": {**os.environ, "TMPDIR": str(self.log.parent)},
            }
            self.process = subprocess.Popen(command("cloud", **given), start_new_session=True, text=True, **same)
        due = time.monotonic() + PATIENCE
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < due, self.log.read_text()
            time.sleep(0.05)

    def is_ready(self) -> bool:
        with suppress(httpx2.TransportError):
            return httpx2.get(f"{self.url}/health/ready", timeout=5, trust_env=False).status_code == 200
        return False

    def kill(self) -> None:
        """Without a word, its workers too."""
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> int:
        """As Ctrl-C does."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()


def command(job: str, *more: str, **keys: Any) -> list[str]:
    """As it is typed."""
    return [
        sys.executable,
        "-m",
        "distill.cli",
        *job.split(),
        *(f"{key}={value}" for key, value in keys.items()),
        *more,
    ]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def running(database: str, folder: Path, **changes: Any) -> Iterator[Service]:
    """A service in a process of its own; `folder` gets its log."""
    service = Service(free_port(), database, changes, log=folder / "cloud.log")
    try:
        service.start()
        yield service
    finally:
        service.close()


@contextmanager
def inside(database: str, **changes: Any) -> Iterator[Service]:
    """A service in this process, at a real port."""
    options = Options(classifier=str(classifier()), database=database, **changes)
    listening = socket.create_server(("127.0.0.1", 0))
    service = Service(int(listening.getsockname()[1]), database, changes)
    quiet: dict[str, Any] = {
        "log_config": None,  # its own closes all handlers that there are, and some close pytest's files
        "log_level": "error",
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": 3,
    }
    server = uvicorn.Server(uvicorn.Config(make_app(options), **quiet))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.005)
        yield service
    finally:
        service.close()
        server.should_exit = True
        thread.join(15)
        listening.close()
    assert not thread.is_alive()


# ------------------------------------------------------------ databases


class Postgres:
    """A server of this session, over an empty folder."""

    def __init__(self) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
        if not found:
            pytest.skip("PostgreSQL is not installed here (no /usr/lib/postgresql/*/bin/initdb)")
        self.programs = found[-1].parent
        self.folder = Path(tempfile.mkdtemp(prefix="distill-pg-"))
        self.port, self._numbers = free_port(), itertools.count()
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.remove)
        if os.geteuid() == 0:  # it refuses to be root
            shutil.chown(self.folder, "postgres", "postgres")
        made = self._run("initdb", "-D", self.data, "-A", "trust", "-U", "distill", "-E", "UTF8", "--no-sync", "-N")
        assert made.wait(60) == 0, self.log.read_text()
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def url(self, name: str) -> str:
        return f"postgresql://distill@127.0.0.1:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        """As somebody who is not root, and not for longer than we are there."""
        other = ["--reuid=postgres", "--regid=postgres", "--init-groups"] if os.geteuid() == 0 else []
        end = ["setpriv", "--pdeathsig=INT", *other] if shutil.which("setpriv") else []
        with self.log.open("ab") as log:
            return subprocess.Popen([*end, str(self.programs / program), *arguments], stdout=log, stderr=log, cwd="/")

    def start(self) -> None:
        fast = ("-c", "fsync=off", "-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200")
        self._process = self._run("postgres", "-D", self.data, "-p", str(self.port), "-k", str(self.folder), *fast)
        due = time.monotonic() + PATIENCE
        while True:
            try:
                self._ask("SELECT 1")
            except Exception:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < due, self.log.read_text()
                time.sleep(0.05)
            else:
                return

    def stop(self) -> None:
        """At once: whoever is connected is thrown out."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ask(self, statement: str) -> None:
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    def fresh(self) -> str:
        """The address of a new database."""
        name = f"d{next(self._numbers)}"
        self._ask(f"CREATE DATABASE {name}")
        return self.url(name)


@functools.cache
def postgres() -> Postgres:
    """One for the whole session, stopped at its end; skips where there is none."""
    return Postgres()


def fresh_database(kind: str, folder: Path) -> str:
    """The address of a new, empty database; `kind` is one of DATABASES."""
    return postgres().fresh() if kind == "postgresql" else f"sqlite:///{folder / f'{secrets.token_hex(4)}.sqlite'}"
