"""The jobs cloud, cloud devices and cloud forget as they are typed; real processes; the tables' history."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
import sqlalchemy as sa
from alembic import command as alembic
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from cloud_server import (
    CLASSES,
    Service,
    classifier,
    command,
    free_port,
    fresh_database,
    inside,
    latents,
    post,
    running,
    writer,
)

from distill.command import dispatch
from distill.live.cloud import access, database, forgetting, meters, serving
from distill.live.cloud.request import Options
from distill.live.cloud.tables import DEVICE, META, cameras, devices, keys, predictions
from distill.probing.classifiers import PROBES
from distill.probing.saved import save_probe

pytest_plugins = ("cloud_fixtures",)
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def engine(fresh: str) -> Iterator[sa.Engine]:
    found = database.open_database(fresh)
    yield found
    found.dispose()


# ------------------------------------------------------------ devices


def told(capsys: Capture, *arguments: str) -> str:
    assert dispatch(["cloud", "devices", *arguments]) == 0
    return capsys.readouterr().out


def key_in(text: str) -> str:
    (key,) = re.findall(r"dst_\S+", text)
    return str(key)


def test_keys_are_made_and_told_once(fresh: str, engine: sa.Engine, capsys: Capture) -> None:
    place = f"database={fresh}"
    first, viewer = key_in(told(capsys, place, "add=box 1")), key_in(told(capsys, place, "viewer=ann"))
    second = key_in(told(capsys, place, "rotate=box 1", "grace_hours=1"))
    door = access.Doorman(engine)
    assert [found and found.role for found in map(door.look_up, (first, second, viewer))] == [DEVICE, DEVICE, "viewer"]
    assert access.holders(engine) == [("box 1", DEVICE, 2), ("ann", "viewer", 1)]
    assert key_in(told(capsys, place, "rotate=box 1", "grace_hours=0")) not in (first, second)
    assert door.look_up(first) is None
    listed = told(capsys, place)
    assert "dst_" not in listed
    assert "box 1" in listed
    assert "ann" in listed
    assert "dst_" not in told(capsys, place, "revoke=ann")
    assert door.look_up(viewer) is None
    assert len({first, second, viewer}) == 3
    assert min(len(key) for key in (first, second, viewer)) > 40


def test_a_short_grace_is_not_made_longer(engine: sa.Engine) -> None:
    first = access.add(engine, "box1", DEVICE)
    access.rotate(engine, "box1", -1)
    access.rotate(engine, "box1", 3600)
    assert access.Doorman(engine).look_up(first) is None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add=a", "revoke=a"], "add and revoke at once"),
        (["add=a", "viewer=b", "rotate=c"], "add and viewer and rotate at once"),
        (["add=a/b"], "is no name"),
        (["add=" + "x" * 65], "is no name"),
        (["viewer=-x"], "is no name"),
        (["revoke=nobody"], "no device or viewer 'nobody'; known: box1"),
        (["rotate=nobody"], "known: box1"),
        (["add=box1"], "rotate=box1 gives it a new key"),
        (["viewer=box1"], "there is a device or viewer 'box1' already"),
        (["rotate=box1", "grace_hours=-1"], "grace_hours is -1"),
        (["rotate=box1", "grace_hours=nan"], "grace_hours is nan"),
        (["grace_hour=1"], "grace_hours"),
        (["add"], "not key=value"),
    ],
)
def test_wrong_words_about_devices(arguments: list[str], said: str, tmp_path: Path, capsys: Capture) -> None:
    place = f"database={fresh_database('sqlite', tmp_path)}"
    told(capsys, place, "add=box1")
    assert said in wrong(capsys, ["cloud", "devices", place, *arguments])


def wrong(capsys: Capture, arguments: list[str]) -> str:
    """One line, and exit code 2."""
    assert dispatch(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "dst_" not in out
    return err


# ------------------------------------------------------------ wrong options


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["classifier=nowhere.safetensors"], "no such file"),
        (["classifier=README.md"], "README.md"),
        (["clips_per_message=300", "queue=299"], "queue is 299, less than one message's clips (300)"),
        (["clips_per_message=1025"], "it is 1024 at most"),
        (["clips_per_message=0"], "clips_per_message is 0"),
        (["workers=0"], "workers is 0"),
        (["batch=0"], "batch is 0"),
        (["top=0"], "top is 0"),
        (["rate=-1"], "rate is -1"),
        (["rate=nan"], "rate is nan"),
        (["keep_days=inf"], "keep_days is inf"),
        (["body_mb=0"], "body_mb is 0"),
        (["port=65536"], "port is 65536"),
        (["port=http"], "port"),
        (["readers=all"], "known: key, anyone"),
        (["worker=3"], "workers"),
        (["recipe=clod"], "cloud"),
        (["host=300.1.1.1"], "cannot listen at host=300.1.1.1"),
        (["database=mysql://a@b/c"], "is no sqlite:///FILE"),
        (["database=nonsense"], "is no sqlite:///FILE"),
        (["database=postgresql://me:secret@h:port/x"], "is no sqlite:///FILE"),
        (["database=sqlite://"], "is no sqlite:///FILE"),
        (["database='sqlite:///:memory:'"], "is no sqlite:///FILE"),
        (["database=sqlite:////tmp"], "cannot be used: unable to open"),
        (["database=sqlite:////tmp/x.sqlite?timeout=abc"], "is no sqlite:///FILE"),
        (["host=a..b"], "cannot listen at host=a..b, port="),
        (["wait_ms=1e9"], "wait_ms is 1000000000.0; it is 10000 at most"),
        (["database=postgresql://me:secret@127.0.0.1:1/x"], "cannot be used"),
        (
            ["database=postgresql://me@127.0.0.1:1/x?password=secret"],
            "database=postgresql://me@127.0.0.1:1/x cannot be",
        ),
        (["database=sqlite:///README.md"], "not a database"),
        (["database=sqlite:////dev/null/x"], "/dev/null"),
    ],
)
def test_wrong_options(
    arguments: list[str], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "serve", lambda *_: pytest.fail("it served"))
    given = [f"classifier={classifier()}", f"out={tmp_path}", f"port={free_port()}"]
    found = wrong(capsys, ["cloud", *given, *arguments])
    assert said in found
    assert "secret" not in found


def test_a_probe_that_does_not_say_whose_latents_it_knows(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = PROBES["ridge"].make(0)
    probe.fit(latents(50), np.arange(50) % len(CLASSES))
    save_probe(probe, CLASSES, tmp_path / "probe.safetensors", {})
    given = ["cloud", f"classifier={tmp_path / 'probe.safetensors'}", f"out={tmp_path}", f"port={free_port()}"]
    monkeypatch.setattr(serving, "serve", lambda *_: pytest.fail("it served"))
    assert "say encoder=ID" in wrong(capsys, given)
    served: list[Options] = []
    monkeypatch.setattr(serving, "serve", lambda options, _: served.append(options))
    assert dispatch([*given, "encoder=enc7"]) == 0
    assert served[0].encoder == "enc7"


def test_a_port_that_is_taken(tmp_path: Path, capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        given = [f"classifier={classifier()}", f"out={tmp_path}", f"port={other.getsockname()[1]}"]
        assert "Address already in use; say host= or port=" in wrong(capsys, ["cloud", *given])
    with database.open_database(f"sqlite:///{tmp_path / 'cloud.sqlite'}").connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(keys)) == 0  # no key was made and lost


@pytest.mark.parametrize("job", [["cloud"], ["cloud", "devices"], ["cloud", "forget"]])
def test_a_database_of_a_newer_version(fresh: str, engine: sa.Engine, job: list[str], capsys: Capture) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    given = [f"database={fresh}", f"classifier={classifier()}", f"port={free_port()}"]
    assert "another version of distill" in wrong(capsys, [*job, *given])


def test_the_first_viewers_key_is_told_once(fresh: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "serve", lambda *_: None)
    given = ["cloud", f"database={fresh}", f"classifier={classifier()}", f"port={free_port()}"]
    assert dispatch(given) == 0
    key = key_in(capsys.readouterr().out)
    found = database.open_database(fresh)
    holder = access.Doorman(found).look_up(key)
    assert holder is not None
    assert holder.role == "viewer"
    found.dispose()
    assert dispatch(given) == 0
    assert "dst_" not in capsys.readouterr().out


def test_a_device_may_be_called_viewer(engine: sa.Engine) -> None:
    access.add(engine, "viewer", DEVICE)
    holder = access.Doorman(engine).look_up(access.first_viewer(engine))
    assert holder is not None
    assert (holder.name, holder.role) == ("viewer 2", "viewer")
    assert access.first_viewer(engine) == ""


@pytest.mark.parametrize("job", [["cloud"], ["cloud", "devices", "add=box1"], ["cloud", "forget"]], ids="-".join)
def test_a_database_in_which_somebody_else_writes_on_and_on(
    job: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened in time, and not written to in time."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.2)
    place = fresh_database("sqlite", tmp_path)
    database.open_database(place).dispose()
    monkeypatch.setattr(database, "_migrate", lambda _: None)
    with writer(place):
        said = wrong(capsys, [*job, f"database={place}", f"classifier={classifier()}", f"port={free_port()}"])
    assert f"database={place} cannot be used: database is locked" in said


def test_services_that_start_at_once_make_one_first_viewer(fresh: str) -> None:
    engines = [database.open_database(fresh) for _ in range(4)]
    ready = threading.Barrier(len(engines))

    def start(own: sa.Engine) -> str:
        ready.wait(10)
        return access.first_viewer(own)

    with ThreadPoolExecutor(len(engines)) as pool:
        made = [key for key in pool.map(start, engines) if key]
    assert len(made) == 1
    assert access.holders(engines[0]) == [("viewer", "viewer", 1)]
    for own in engines:
        own.dispose()


def test_anyone_may_read_where_that_is_said(fresh: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "serve", lambda *_: None)
    given = [f"database={fresh}", f"classifier={classifier()}", f"port={free_port()}", "readers=anyone"]
    assert dispatch(["cloud", *given]) == 0
    assert "key" not in capsys.readouterr().out
    with inside(fresh, readers="anyone") as own:
        nobody = own.client()
        assert nobody.get("/v1/predictions").json() == {"predictions": [], "next": None}
        assert nobody.get("/metrics").status_code == 200
        assert own.send(post(latents(1)), client=nobody).status_code == 401


# ------------------------------------------------------------ what is old


def old_rows(engine: sa.Engine, days: list[float]) -> None:
    """A prediction with its latent for each age; when it was captured says nothing."""
    access.add(engine, "box1", DEVICE)
    same = {
        "device_id": 1, "camera": "door", "boot": "b1", "captured": 0.0, "label": "wave", "confidence": 0.5,
        "top": "[]", "encode_ms": 0.0, "edge_ms": 0.0, "cloud_ms": 0.0, "latent": b"1234",
    }  # fmt: skip
    with engine.begin() as connection:
        rows = [same | {"seq": seq, "received": time.time() - 86400 * age} for seq, age in enumerate(days)]
        connection.execute(sa.insert(predictions), rows)


def left(engine: sa.Engine) -> list[tuple[int, bool]]:
    """Number, and whether its latent is there."""
    with engine.connect() as connection:
        found = connection.execute(sa.select(predictions.c.seq, predictions.c.latent).order_by(predictions.c.id))
        return [(seq, latent is not None) for seq, latent in found]


@pytest.mark.parametrize(
    ("keep", "latent", "wanted"),
    [
        (30.0, 7.0, [(0, True), (1, True), (2, False), (3, False)]),
        (0.0, 7.0, [(0, True), (1, True), (2, False), (3, False), (4, False)]),
        (30.0, 0.0, [(0, True), (1, True), (2, True), (3, True)]),
        (2.0, 7.0, [(0, True)]),
        (0.0, 0.0, [(0, True), (1, True), (2, True), (3, True), (4, True)]),
        (1e300, 1e300, [(0, True), (1, True), (2, True), (3, True), (4, True)]),
    ],
)
def test_what_is_old_is_forgotten(
    engine: sa.Engine, keep: float, latent: float, wanted: list[tuple[int, bool]]
) -> None:
    old_rows(engine, [0, 6.9, 7.1, 29.9, 30.1])
    options = Options(keep_days=keep, latent_days=latent)
    found = forgetting.forget_old(engine, options)
    assert left(engine) == wanted
    assert found["predictions"] == 5 - len(wanted)
    assert forgetting.forget_old(engine, options) == {"predictions": 0, "latents": 0}


def test_what_cameras_saw_last_is_forgotten_too(engine: sa.Engine) -> None:
    now, day = time.time(), 86400.0
    with database.writing(engine) as connection:
        connection.execute(sa.insert(devices).values(id=1, name="box1", role=DEVICE, created=now))
        usual = {"device_id": 1, "label": "wave", "confidence": 0.5}
        rows = [("new", 1.0, None), ("old", 31.0, None), ("old, and there", 31.0, "{}")]
        made = [
            {**usual, "name": name, "seen": now - age * day, "captured": now - age * day, "status": status}
            for name, age, status in rows
        ]
        connection.execute(sa.insert(cameras), made)
    forgetting.forget_old(engine, Options(keep_days=30))
    with engine.connect() as connection:
        found = connection.execute(sa.select(cameras.c.name, cameras.c.label, cameras.c.seen).order_by("name")).all()
    assert [tuple(row) for row in found] == [("new", "wave", now - day), ("old, and there", None, None)]


def test_much_is_forgotten_a_little_at_a_time(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forgetting, "CHUNK", 3)
    old_rows(engine, [40.0] * 10 + [8.0] * 7 + [0.0])
    sizes: list[int] = []
    whole = forgetting._chunk
    monkeypatch.setattr(forgetting, "_chunk", lambda *given: sizes.append(whole(*given)) or sizes[-1])  # type: ignore[func-returns-value]
    assert forgetting.forget_old(engine, Options()) == {"predictions": 10, "latents": 7}
    assert sizes == [3, 3, 3, 1, 0, 3, 3, 1, 0]
    assert left(engine) == [(seq, seq == 17) for seq in range(10, 18)]


def test_the_job_forgets(fresh: str, engine: sa.Engine, capsys: Capture) -> None:
    old_rows(engine, [0, 5, 50])
    assert dispatch(["cloud", "forget", f"database={fresh}", "keep_days=3"]) == 0
    assert re.search(r"forgotten\.predictions\D+2\b", capsys.readouterr().out)
    assert [seq for seq, _ in left(engine)] == [0]


def test_a_number_that_was_forgotten_is_not_given_again(fresh: str, engine: sa.Engine) -> None:
    """Who reads on from the last id that it saw would miss a clip."""
    with inside(fresh) as own:
        own.verdicts(post(latents(3)))
        last = own.rows()[-1]["id"]
        with database.writing(engine) as connection:
            connection.execute(sa.delete(predictions))
        own.verdicts(post(latents(1), first=3))
        assert [row["id"] > last for row in own.rows()] == [True]


def test_the_service_forgets_by_itself(fresh: str, engine: sa.Engine) -> None:
    old_rows(engine, [0, 50])
    with inside(fresh) as own:
        due = time.monotonic() + 15
        while len(own.rows()) > 1:
            assert time.monotonic() < due
            time.sleep(0.05)


# ------------------------------------------------------------ tables


def history(engine: sa.Engine, act: Callable[[Config], None]) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        act(config)


def test_the_migrations_make_the_tables_that_the_code_knows(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, META) == []


def test_the_tables_of_the_code_are_those_of_the_migrations(tmp_path: Path) -> None:
    """As SQLite writes them down, which knows of AUTOINCREMENT, too."""
    made = database.open_database(fresh_database("sqlite", tmp_path))
    plain = sa.create_engine(f"sqlite:///{tmp_path / 'plain.sqlite'}")
    META.create_all(plain)
    found = []
    for each in (made, plain):
        with each.connect() as connection:
            rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
        parts = {
            name: sorted(part.strip(" ,").replace('"', "") for part in sql.splitlines())
            for name, sql in rows
            if name != "alembic_version"
        }
        found.append(parts)
        each.dispose()
    assert found[0] == found[1]
    assert "AUTOINCREMENT" in "".join(found[0]["predictions"])


def test_the_way_back_and_forth(engine: sa.Engine) -> None:
    history(engine, lambda config: alembic.downgrade(config, "base"))
    assert set(sa.inspect(engine).get_table_names()) <= {"alembic_version", "sqlite_sequence"}
    history(engine, lambda config: alembic.upgrade(config, "head"))
    assert set(META.tables) <= set(sa.inspect(engine).get_table_names())


def test_many_may_open_an_empty_database_at_once(fresh: str) -> None:
    errors: list[Exception] = []

    def open_it() -> None:
        try:
            database.open_database(fresh).dispose()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_rows_name_devices_that_there_are(engine: sa.Engine) -> None:
    row = {"device_id": 99, "name": "door"}
    with pytest.raises(sa.exc.IntegrityError), engine.begin() as connection:
        connection.execute(sa.insert(META.tables["cameras"]), [row])


# ------------------------------------------------------------ processes


class Sender(threading.Thread):
    """Sends clip after clip, until nobody answers."""

    def __init__(self, service: Service) -> None:
        super().__init__(daemon=True)
        self.service, self.answered, self.codes = service, list[int](), set[int]()
        self.ready = (service.device, service.viewer)

    def run(self) -> None:
        with suppress(httpx2.TransportError):
            for first in range(0, 100_000, 5):
                answer = self.service.send(post(latents(5), first=first))
                self.codes.add(answer.status_code)
                if answer.status_code == 200:
                    self.answered += range(first, first + 5)

    def until(self, count: int) -> None:
        while len(self.answered) < count:
            assert self.is_alive()
            time.sleep(0.01)


def test_killed_workers_leave_what_they_answered(tmp_path: Path) -> None:
    """Two of them; clips come all the time; every clip that was answered is there, once."""
    database_url = fresh_database("sqlite", tmp_path)
    with running(database_url, tmp_path, workers=2) as own:
        sender = Sender(own)
        for first in range(1_000_000, 1_000_020, 2):
            with own.client(own.key("box1")) as client:  # a new connection, of whichever worker
                assert own.send(post(latents(2), first=first), client=client).status_code == 200
        text = own.viewer.get("/metrics").text
        (clips,) = re.findall(r'^distill_cloud_clips_total\{was="stored"\} (\S+)', text, re.M)
        assert float(clips) == 20
        sender.start()
        sender.until(50)
        own.kill()
        sender.join()
        assert sender.codes == {200}
        said = own.log.read_text()
    with inside(database_url) as again:
        stored = [row["seq"] for row in again.rows(limit=1000)][20:]
        assert stored == list(range(len(stored)))
        assert set(sender.answered) <= set(stored)
        message = post(latents(10), first=sender.answered[-1] - 4)
        assert [each.known for each in again.verdicts(message)][:5] == [True] * 5
    assert "Traceback" not in said
    assert len(re.findall(r"dst_\S+", said)) == 1  # the first viewer's, told once though there are two workers


def test_a_service_that_is_told_to_stop_stores_first(tmp_path: Path) -> None:
    """Though clips come all the time, and a page listens."""
    database_url = fresh_database("postgresql", tmp_path)
    with running(database_url, tmp_path) as own:
        sender = Sender(own)
        sender.start()
        with own.viewer.stream("GET", "/v1/stream") as answer:
            sender.until(50)
            began = time.monotonic()
            assert own.stop() == 0
            assert time.monotonic() - began < serving.FAREWELL_SECONDS + 10
            assert "event: predictions" in "".join(answer.iter_text())
        sender.join()
        assert sender.codes <= {200, 503}
        assert "Traceback" not in own.log.read_text()
    engine = database.open_database(database_url)
    stored = [seq for seq, _ in left(engine)]
    engine.dispose()
    assert set(sender.answered) <= set(stored)
    assert stored == list(range(len(stored)))


def test_what_waits_for_the_database_is_stored_though_the_service_has_to_stop(tmp_path: Path) -> None:
    """Who sent it is told to come again, since nobody can say yet whether it will be stored."""
    url, codes = fresh_database("sqlite", tmp_path), list[int]()
    with running(url, tmp_path, batch=1, wait_ms=0) as own:
        own.verdicts(post(latents(1)))
        clients = [own.client(own.key("box1")) for _ in range(4)]
        engine = database.open_database(url)
        with database.writing(engine), ThreadPoolExecutor(4) as pool:
            for place, client in enumerate(clients):
                message = post(latents(1), f"camera {place}")
                pool.submit(own.send, message, client=client).add_done_callback(
                    lambda done: codes.append(done.result().status_code)
                )
            time.sleep(1)
            assert own.process is not None
            own.process.send_signal(signal.SIGINT)
            time.sleep(serving.FAREWELL_SECONDS + 0.6)
        assert own.process.wait(20) == 0
        assert "Traceback" not in own.log.read_text()
    assert codes == [503] * 4
    assert len(left(engine)) == 5
    engine.dispose()


def test_numbers_of_workers_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(meters.FOLDER, str(tmp_path))
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    for pid in (gone.pid, os.getpid()):
        for kind in ("gauge_livesum", "counter"):
            (tmp_path / f"{kind}_{pid}.db").touch()
    meters._forget_the_dead(tmp_path)
    kept = {f"gauge_livesum_{os.getpid()}.db", f"counter_{os.getpid()}.db", f"counter_{gone.pid}.db"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    found = subprocess.run(
        command("cloud devices", database=fresh_database("sqlite", tmp_path), add="box1"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert key_in(found.stdout)
    assert found.stderr == ""


def test_without_a_classifier(tmp_path: Path, capsys: Capture) -> None:
    assert "classifier= is missing" in wrong(capsys, ["cloud", f"out={tmp_path}"])
