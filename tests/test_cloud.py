"""The cloud service, over both databases: what comes in is classified, stored once, and told as it is."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import sqlalchemy as sa
from cloud_server import (
    CLASSES,
    DATABASES,
    ENCODER,
    WIDTH,
    Service,
    fresh_database,
    inside,
    latents,
    post,
    postgres,
    shares,
)
from pyarrow import parquet

from distill.live import wire
from distill.live.cloud import access, database, intake, reading, streaming
from distill.live.cloud.tables import DEVICE, predictions

SOON = 15.0  # seconds that a thing in another thread may take on a busy machine


@pytest.fixture(scope="module", params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with inside(fresh_database(request.param, tmp_path_factory.mktemp("cloud"))) as found:
        yield found


@pytest.fixture(params=DATABASES)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    return fresh_database(request.param, tmp_path)


@pytest.fixture
def boot() -> str:
    """Of an edge that nobody has heard of."""
    return secrets.token_hex(6)


@contextmanager
def writer(url: str) -> Iterator[None]:
    """Somebody else writes, and does not end."""
    engine = database.open_database(url)
    with database.writing(engine):
        yield
    engine.dispose()


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


# ------------------------------------------------------------ what comes in


@pytest.mark.parametrize(("encoding", "media"), list(itertools.product(wire.ENCODINGS, wire.FORMATS)))
def test_every_encoding_stores_what_the_classifier_says(service: Service, boot: str, encoding: str, media: str) -> None:
    message = post(latents(7, seed=3), "yard 2", boot, encoding=encoding, network_ms=3.5)
    verdicts = service.verdicts(message, media)
    said = shares(wire.unpack([clip.latent for clip in message.clips], WIDTH))
    best = [CLASSES[place] for place in said.argmax(1)]
    rows = [row for row in service.rows(camera="yard 2") if row["boot"] == boot]
    for row, verdict, clip, label, share in zip(rows, verdicts, message.clips, best, said, strict=True):
        assert (verdict.camera, verdict.boot, verdict.seq, verdict.known) == ("yard 2", boot, clip.seq, False)
        assert (row["device"], row["seq"], row["captured"]) == ("box1", clip.seq, clip.captured)
        assert row["label"] == verdict.label == label
        assert row["confidence"] == verdict.confidence == pytest.approx(share.max(), abs=1e-6)
        assert dict(row["top"]) == pytest.approx(dict(zip(CLASSES, share, strict=True)), abs=1e-6)
        assert [value for _, value in row["top"]] == sorted((value for _, value in row["top"]), reverse=True)
        assert row["edge_ms"] == pytest.approx(1e3 * (message.sent - clip.captured), abs=1e-3)
        assert row["network_ms"] == 3.5
        assert 0 <= row["cloud_ms"] < 1e3 * SOON
        assert abs(row["received"] - time.time()) < SOON


@pytest.mark.parametrize("media", ["application/x-msgpack", "application/vnd.msgpack", "Application/MsgPack; q=1"])
def test_other_names_of_msgpack(service: Service, boot: str, media: str) -> None:
    body = wire.dump(post(latents(1), boot=boot), wire.MSGPACK)
    answer = service.device.post("/v1/latents", content=body, headers={"Content-Type": media})
    assert wire.load(answer.content, wire.MSGPACK, wire.Answer).results[0].boot == boot


def test_what_is_answered_has_been_stored(service: Service, boot: str) -> None:
    """As long as the database does not take it there is no answer; once there is one, others see the rows."""
    message, pool = post(latents(3), boot=boot), ThreadPoolExecutor(1)
    service.verdicts(post(latents(1), boot=f"{boot}-first"))  # keys are known by now
    engine = database.open_database(service.database)
    with writer(service.database):
        answer = pool.submit(service.verdicts, message)
        time.sleep(0.4)
        assert not answer.done()
    assert len(answer.result(SOON)) == 3
    with engine.connect() as connection:
        wanted = sa.select(sa.func.count()).where(predictions.c.boot == boot)
        assert connection.scalar(wanted) == 3
    engine.dispose()
    pool.shutdown()


def test_a_clip_is_stored_once(service: Service, boot: str) -> None:
    message = post(latents(4), boot=boot)
    assert [verdict.known for verdict in service.verdicts(message)] == [False] * 4
    again = service.verdicts(message, wire.JSON)
    assert [verdict.known for verdict in again] == [True] * 4
    more = post(latents(6), boot=boot)  # the first four are old
    assert [verdict.known for verdict in service.verdicts(more)] == [True] * 4 + [False] * 2
    assert [row["seq"] for row in service.rows() if row["boot"] == boot] == list(range(6))


def test_a_clip_twice_in_one_message(service: Service, boot: str) -> None:
    message = post(latents(3), boot=boot)
    message.clips[2].seq = 0
    assert [verdict.known for verdict in service.verdicts(message)] == [False, False, True]
    assert [row["seq"] for row in service.rows() if row["boot"] == boot] == [0, 1]


def test_a_clip_that_is_known_stays_as_it_was(service: Service, boot: str) -> None:
    """Whatever comes with its key again, alone or beside new clips; and the camera shows the newest of the new ones."""
    where, other = f"gate {boot}", -latents(4)
    first = post(latents(3), where, boot)
    was = [(verdict.label, verdict.confidence) for verdict in service.verdicts(first)]

    def last() -> dict[str, Any]:
        (box,) = (each for each in service.viewer.get("/v1/cameras").json()["devices"] if each["name"] == "box1")
        return next(camera for camera in box["cameras"] if camera["name"] == where)

    again = post(other, where, boot)
    said = service.verdicts(again)
    assert [(verdict.label, verdict.confidence) for verdict in said[:3]] == was
    assert [verdict.label for verdict in service.verdicts(post(other[:3], where, f"{boot}-2"))] != [
        label for label, _ in was
    ]  # what the other numbers would have been called
    newest = post(latents(1), where, boot, first=4)
    newest.clips += again.clips[:2]
    (fresh, *old) = service.verdicts(newest)
    assert (fresh.known, [verdict.known for verdict in old]) == (False, [True, True])
    assert (last()["label"], last()["captured"]) == (fresh.label, newest.clips[0].captured)
    twice = post(latents(1), where, boot, first=5)
    twice.clips += post(other[:1], where, boot, first=5).clips
    one, two = service.verdicts(twice)
    assert (one.label, one.confidence, two.known) == (two.label, two.confidence, True)


def test_the_same_number_of_another_camera_boot_or_device_is_another_clip(service: Service, boot: str) -> None:
    other = service.client(service.key("box2"))
    for message in (post(latents(1), boot=boot), post(latents(1), "yard", boot), post(latents(1), boot=f"{boot}-2")):
        assert not service.verdicts(message)[0].known
    answer = service.send(post(latents(1), boot=boot), client=other)
    assert not wire.load(answer.content, wire.MSGPACK, wire.Answer).results[0].known


def test_many_at_once_send_the_same(service: Service, boot: str) -> None:
    """Each clip is new to exactly one of them."""
    service.verdicts(post(latents(1), boot=f"{boot}-first"))
    messages = [post(latents(5), boot=boot, first=first) for first in (0, 2, 4, 0, 2, 4, 0, 5)]
    with ThreadPoolExecutor(8) as pool:
        verdicts = [verdict for found in pool.map(service.verdicts, messages) for verdict in found]
    assert sum(not verdict.known for verdict in verdicts) == 10
    assert sorted(row["seq"] for row in service.rows() if row["boot"] == boot) == list(range(10))


def test_after_a_restart_a_clip_is_known(fresh: str, boot: str) -> None:
    with inside(fresh) as first:
        first.verdicts(post(latents(3), boot=boot))
    with inside(fresh) as second:
        assert [found.known for found in second.verdicts(post(latents(4), boot=boot))] == [True] * 3 + [False]
        assert [row["seq"] for row in second.rows()] == [0, 1, 2, 3]


def test_latents_are_kept_where_that_is_wanted(fresh: str) -> None:
    rows = latents(3)
    with inside(fresh, latents=True, top=2) as own:
        own.verdicts(post(rows))
        assert [len(row["top"]) for row in own.rows()] == [2, 2, 2]
        assert own.viewer.get("/v1/classifier").json()["latents"] is True
    engine = database.open_database(fresh)
    with engine.connect() as connection:
        kept = connection.scalars(sa.select(predictions.c.latent).order_by(predictions.c.id)).all()
    engine.dispose()
    assert [np.frombuffer(latent, np.float16).tolist() for latent in kept] == rows.astype(np.float16).tolist()


def test_latents_that_the_classifier_makes_nothing_of(
    service: Service, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused, and no other message that came at the same time is."""
    whole = intake.Intake._classify

    def classify(self: intake.Intake, rows: np.ndarray) -> Any:
        before = self.classifier
        if (abs(rows) > 1e30).any():
            object.__setattr__(self, "classifier", type("Nothing", (), {"shares": lambda _, x: x * np.inf})())
        try:
            return whole(self, rows)
        finally:
            self.classifier = before

    monkeypatch.setattr(intake.Intake, "_classify", classify)
    service.verdicts(post(latents(1), boot=f"{boot}-first"))
    bad = post([np.full(WIDTH, 1e38, np.float32)], boot=f"{boot}-bad")
    pool = ThreadPoolExecutor(3)
    with writer(service.database):
        waiting = pool.submit(service.verdicts, post(latents(1), boot=f"{boot}-0"))
        time.sleep(0.1)
        answers = pool.submit(service.send, bad), pool.submit(service.verdicts, post(latents(1), boot=f"{boot}-1"))
        time.sleep(0.1)
    assert "too large" in refused(answers[0].result(SOON), 422)
    assert not answers[1].result(SOON)[0].known
    assert not waiting.result(SOON)[0].known
    pool.shutdown()


# ------------------------------------------------------------ refusals


def raw(service: Service, body: bytes, media: str = wire.JSON, **headers: str) -> httpx2.Response:
    return service.device.post("/v1/latents", content=body, headers={"Content-Type": media, **headers})


def test_who_has_no_good_key(service: Service) -> None:
    nobody, stranger = service.client(), service.client("dst_nonsense")
    for client, why in ((nobody, "missing"), (stranger, "not known")):
        for path in ("classifier", "predictions", "cameras", "summary", "export", "stream"):
            answer = client.get(f"/v1/{path}")
            assert why in refused(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        refused(client.get("/metrics"), 401)
        assert why in refused(service.send(post(latents(1)), client=client), 401)
        assert client.get("/health/live").json() == {"status": "ok"}
        assert client.get("/health/ready").json() == {"status": "ok"}
        assert client.get("/").status_code == 200


def test_a_key_is_good_for_one_thing(service: Service) -> None:
    assert "viewer's key" in refused(service.send(post(latents(1)), client=service.viewer), 403)
    assert "device's key" in refused(service.device.get("/v1/predictions"), 403)
    by_name = service.client()
    by_name.headers["X-API-Key"] = service.key("ann", "viewer")
    assert by_name.get("/v1/predictions").status_code == 200


def test_messages_that_are_refused(service: Service) -> None:
    good = wire.dump(post(latents(1)), wire.JSON)
    said = refused(service.send(post(latents(1), encoder="another-encoder-altogether")), 409)
    assert "another-encoder-" in said
    assert ENCODER in said
    assert "256 at most" in refused(service.send(post(latents(1).repeat(257, 0))), 413)
    assert "8 MB" in refused(raw(service, b" " * 8_000_001), 413)
    assert "text/plain" in refused(raw(service, good, "text/plain"), 415)
    assert "not ''" in refused(service.device.post("/v1/latents", content=good), 415)
    refused(raw(service, good, **{"Content-Encoding": "gzip"}), 415)
    assert "has 15 numbers" in refused(service.send(post(latents(2)[:, :15])), 422)
    assert "no Post" in refused(raw(service, good[:-3]), 422)
    assert "no Post" in refused(raw(service, b""), 422)
    assert "`$.clips`" in refused(service.send(post(np.zeros((0, WIDTH), np.float32))), 422)
    assert "`$.clips[0].camera`" in refused(service.send(post(latents(1), camera="a\nb")), 422)
    assert "unknown field" in refused(raw(service, good[:-1] + b',"more":1}'), 422)
    assert raw(service, good).status_code == 200


@pytest.mark.parametrize("encoding", ["float32", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(service: Service, encoding: Any, value: float) -> None:
    row = np.full(WIDTH, value).astype(wire.DTYPES[encoding])
    said = refused(service.send(post([latents(1)[0], wire.Packed(encoding, row.tobytes())])), 422)
    assert said.startswith("clips[1].latent")


@pytest.mark.parametrize("scale", [np.inf, np.nan, 1e300, -1.0])
def test_a_scale_that_is_none(service: Service, scale: float) -> None:
    refused(service.send(post([wire.Packed("int8", b"\x7f" * WIDTH, scale)])), 422)


def test_a_full_queue(fresh: str, boot: str) -> None:
    with inside(fresh, queue=4, clips_per_message=4, batch=4) as own:
        own.verdicts(post(latents(1), boot=f"{boot}-first"))
        own.rows()
        with ThreadPoolExecutor(1) as pool:
            with writer(fresh):
                waiting = pool.submit(own.verdicts, post(latents(3), boot=boot))
                eventually(lambda: "\ndistill_cloud_queue_clips 3.0\n" in own.viewer.get("/metrics").text)
                assert "waiting" in refused(own.send(post(latents(3), boot=f"{boot}-2")), 503)
            assert len(waiting.result(SOON)) == 3
        assert not own.verdicts(post(latents(3), boot=f"{boot}-2"))[0].known


def test_a_device_that_sends_too_fast(fresh: str) -> None:
    with inside(fresh, rate=1.0) as own:
        own.verdicts(post(latents(58)))
        answer = own.send(post(latents(20), first=58))
        assert "box1" in refused(answer, 429)
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        other = own.client(own.key("box2"))
        assert own.send(post(latents(20)), client=other).status_code == 200  # nobody pays for somebody else


def test_a_device_has_only_so_many_cameras(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_CAMERAS", 3)
    with inside(fresh) as own:
        for place in range(3):
            own.verdicts(post(latents(1), f"camera {place}"))
        assert "of 3 cameras" in refused(own.send(post(latents(1), "camera 3")), 403)
        own.verdicts(post(latents(1), "camera 2", first=1))


def test_a_message_that_breaks_off(service: Service) -> None:
    """Is no fault of ours."""
    with socket.create_connection(("127.0.0.1", service.port)) as half:
        head = f"POST /v1/latents HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {service.key('box1')}\r\n"
        half.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n{{".encode())
        time.sleep(0.2)
    counted = 'requests_total{code="400",route="/v1/latents"}'
    eventually(lambda: counted in service.viewer.get("/metrics").text)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/predictions?limit=0", 422),
        ("/v1/predictions?limit=1001", 422),
        ("/v1/predictions?order=up", 422),
        ("/v1/predictions?since=nan", 422),
        ("/v1/predictions?min_confidence=2", 422),
        ("/v1/predictions?after=-1", 422),
        ("/v1/predictions?after=9223372036854775808", 422),
        ("/v1/predictions?device=a%00b", 422),
        ("/v1/summary?since=5&until=5", 422),
        ("/v1/summary?since=0&until=2001&bucket=1", 422),
        ("/v1/summary?bucket=0", 422),
        ("/v1/summary?bucket=1e-320", 422),
        ("/v1/summary?bucket=inf", 422),
        ("/v1/export?format=xml", 422),
        ("/v1/stream?after=x", 422),
        ("/v1/nothing", 404),
        ("/v1/predictions/", 404),
        ("/docs", 404),
    ],
)
def test_questions_that_are_refused(service: Service, path: str, code: int) -> None:
    refused(service.viewer.get(path), code)


def test_other_methods_are_refused(service: Service) -> None:
    refused(service.viewer.post("/v1/predictions"), 405)
    refused(service.device.get("/v1/latents"), 405)
    refused(service.device.request("TRACE", "/"), 405)


# ------------------------------------------------------------ keys


def test_keys_change_while_the_service_runs(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert access.FRESH_SECONDS <= 10
    monkeypatch.setattr(access, "FRESH_SECONDS", 0.2)
    engine = database.open_database(fresh)
    with inside(fresh) as own:

        def code(key: str) -> int:
            return own.send(post(latents(1)), client=own.client(key)).status_code

        first = own.key("box1")
        assert code(first) == 200
        second = access.rotate(engine, "box1", 3600)
        assert (code(first), code(second)) == (200, 200)  # for a while both are good
        third = access.rotate(engine, "box1", 0.5)
        assert (code(second), code(third)) == (200, 200)
        eventually(lambda: {code(first), code(second)} == {401})
        assert code(third) == 200
        access.revoke(engine, "box1")
        eventually(lambda: code(third) == 401)
        assert ("box1", DEVICE, 0) in access.holders(engine)
        assert code(access.rotate(engine, "box1", 0)) == 200
        assert len(own.rows()) == 1  # what it sent is still there
    engine.dispose()


def test_a_new_key_is_good_where_it_was_refused_before(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """That nobody knew it is forgotten as soon."""
    monkeypatch.setattr(access, "FRESH_SECONDS", 0.2)
    key = secrets.token_urlsafe(8)
    refused(service.client(key).get("/v1/cameras"), 401)
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: key.removeprefix("dst_"))
    engine = database.open_database(service.database)
    made = access.add(engine, f"late {key[:5].replace('-', 'x')}", "viewer")
    engine.dispose()
    eventually(lambda: service.client(made).get("/v1/cameras").status_code == 200)


def test_the_database_holds_no_key(fresh: str) -> None:
    with inside(fresh) as own:
        key = own.key("box1")
        own.verdicts(post(latents(1)))
        own.rows()
        engine = database.open_database(fresh)
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            if engine.dialect.name == "postgresql":
                connection.exec_driver_sql("CHECKPOINT")
                folder = Path(postgres().data)
            else:
                folder = Path(str(engine.url.database)).parent
            hashes = connection.scalars(sa.text("SELECT hash FROM keys")).all()
        engine.dispose()
        everything = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert access.key_hash(key) in hashes
    assert any(access.key_hash(key).encode() in data for data in everything)
    assert not any(key.encode() in data or key.removeprefix("dst_").encode() in data for data in everything)


# ------------------------------------------------------------ what goes out


def test_the_classifier_tells_of_itself(service: Service) -> None:
    said = service.viewer.get("/v1/classifier").json()
    assert said["classes"] == CLASSES
    assert (said["latent"], said["encoder"], said["kind"]) == (WIDTH, ENCODER, "LogisticRegression")
    assert (said["calibrated"], said["latents"], said["keep_days"]) == (True, False, 30.0)


def page_ids(
    service: Service, order: str, place: str, limit: int, busy: Callable[[], bool] = lambda: False
) -> list[int]:
    """The ids of all pages; where the end may not be the end yet, it is looked for again."""
    found, at = list[int](), {"after": 0} if place == "after" else dict[str, int]()
    while True:
        still = busy()
        answer = service.viewer.get("/v1/predictions", params={"order": order, "limit": limit, **at}).json()
        ids = [row["id"] for row in answer["predictions"]]
        assert answer["next"] == (ids[-1] if len(ids) == limit else None)
        found += ids
        if ids:
            at = {place: ids[-1]}
        if len(ids) < limit and not still:
            return found


def test_pages_have_no_gap_while_others_write(fresh: str) -> None:
    with inside(fresh) as own, inside(fresh) as another:
        own.key("box1")
        keys = [own.key(f"other{number}") for number in range(4)]
        own.verdicts(post(latents(40)))
        clients = [(own, another)[place % 2].client(key) for place, key in enumerate(keys)]

        def write(client: httpx2.Client) -> None:
            for number in range(12):
                assert own.send(post(latents(7), first=7 * number), client=client).status_code == 200

        threads = [threading.Thread(target=write, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        start = page_ids(own, "newest", "before", 11)
        forward = page_ids(own, "oldest", "after", 11, lambda: any(thread.is_alive() for thread in threads))
        for thread in threads:
            thread.join()
        everything = [row["id"] for row in own.rows(limit=1000)]
        assert len(everything) == 40 + 4 * 12 * 7
        assert forward == everything
        assert start == sorted(start, reverse=True)
        assert set(start) == {number for number in everything if number <= start[0]}
        assert page_ids(own, "newest", "before", 13) == everything[::-1]


@pytest.fixture(scope="module", params=DATABASES)
def history(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two boxes with three cameras, over ten minutes."""
    with inside(fresh_database(request.param, tmp_path_factory.mktemp("history")), latents=True) as found:
        clients = [found.client(found.key("box1")), found.client(found.key("box ä"))]
        places = itertools.product(range(2), ("door", "yard", "Küche 1"))
        for seed, (box, camera) in enumerate(places):
            message = post(latents(40, seed), camera, captured=1.7e9 + 37.25 * seed, network_ms=float(seed) or None)
            for place, clip in enumerate(message.clips):
                clip.captured = 1.7e9 + 14.77 * place + seed
                clip.encode_ms = 3.0 + place * (seed + 1) / 7
            message.sent = 1.7e9 + 1000
            assert found.send(message, client=clients[box]).status_code == 200
        yield found


@pytest.mark.parametrize(
    ("query", "holds"),
    [
        ({}, lambda row: True),
        ({"device": "box ä"}, lambda row: row["device"] == "box ä"),
        ({"camera": "Küche 1"}, lambda row: row["camera"] == "Küche 1"),
        ({"label": CLASSES[2]}, lambda row: row["label"] == CLASSES[2]),
        ({"label": "WAVE"}, lambda row: False),
        ({"label": "%"}, lambda row: False),
        ({"min_confidence": 0.5}, lambda row: row["confidence"] >= 0.5),
        ({"since": 1.7e9 + 100, "until": 1.7e9 + 200}, lambda row: 100 <= row["captured"] - 1.7e9 < 200),
        ({"device": "box1", "camera": "door", "label": "clap", "since": 1.7e9 + 60}, lambda row:
         (row["device"], row["camera"], row["label"]) == ("box1", "door", "clap") and row["captured"] >= 1.7e9 + 60),
        ({"device": "nobody"}, lambda row: False),
    ],
)  # fmt: skip
def test_filters(history: Service, query: dict[str, Any], holds: Callable[[dict[str, Any]], bool]) -> None:
    everything = history.rows()
    assert len(everything) == 240
    wanted = [row for row in everything if holds(row)]
    assert history.rows(**query) == wanted
    assert history.rows(limit=7, **query) == wanted
    newest = history.viewer.get("/v1/predictions", params={**query, "limit": 1000}).json()["predictions"]
    assert newest == wanted[::-1]


@pytest.mark.parametrize(
    "query",
    [
        {"since": 1.7e9, "until": 1.7e9 + 700},
        {"since": 1.7e9 + 3.3, "until": 1.7e9 + 444.4, "bucket": 12.5},
        {"since": 1.7e9, "until": 1.7e9 + 500, "bucket": 250, "camera": "door"},
        {"since": 1.7e9, "until": 1.7e9 + 500, "bucket": 1000, "device": "box ä", "label": "clap"},
        {"since": 1.7e9 + 5000, "until": 1.7e9 + 6000},
    ],
)
def test_the_summary_counts_what_numpy_counts(history: Service, query: dict[str, Any]) -> None:
    said = history.viewer.get("/v1/summary", params=query).json()
    names, bucket = ("device", "camera", "label"), query.get("bucket", 60.0)
    rows = [
        row
        for row in history.rows()
        if query["since"] <= row["captured"] < query["until"]
        and all(row[name] == query.get(name, row[name]) for name in names)
    ]
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        slot = int((row["captured"] - query["since"]) // bucket)
        key = (query["since"] + slot * bucket, *(row[name] for name in names))
        groups.setdefault(key, []).append(row["confidence"])
    found = {(each["start"], *(each[name] for name in names)): each for each in said["counts"]}
    assert {key: each["count"] for key, each in found.items()} == {key: len(each) for key, each in groups.items()}
    for key, values in groups.items():
        assert found[key]["confidence"] == pytest.approx(np.mean(values))
    assert [each["start"] for each in said["counts"]] == sorted(each["start"] for each in said["counts"])
    spread, _ = np.histogram([row["confidence"] for row in rows], 10, (0, 1))
    assert said["confidence"] == spread.tolist()
    for name in ("encode", "edge", "network", "cloud"):
        known = [row[f"{name}_ms"] for row in rows if row[f"{name}_ms"] is not None]
        points = np.percentile(known, (50, 90, 99)) if known else [None] * 3
        assert list(said["latency_ms"][name].values()) == pytest.approx(list(points))
    assert (said["since"], said["until"], said["bucket"]) == (query["since"], query["until"], bucket)


def test_the_summary_is_of_the_last_hour(service: Service, boot: str) -> None:
    service.verdicts(post(latents(2), f"hour {boot}", boot, captured=time.time() - 3590))
    service.verdicts(post(latents(2), f"hour {boot}", boot, first=9, captured=time.time() - 3610))
    said = service.viewer.get("/v1/summary", params={"camera": f"hour {boot}"}).json()
    assert sum(each["count"] for each in said["counts"]) == 2
    assert (said["until"] - said["since"], said["bucket"]) == (3600, 60)


@pytest.mark.parametrize(
    ("taken", "limit", "shrunk"),
    [
        ("gzip", 1000, True),
        ("br;q=1.0, GZip;q=0.8, *", 1000, True),
        ("gzip", 5, False),
        ("gzip;q=0, br", 1000, False),
        ("gzip; q=0.000", 1000, False),
        ("identity", 1000, False),
    ],
)
def test_large_answers_are_compressed_for_who_takes_it_so(
    history: Service, taken: str, limit: int, shrunk: bool
) -> None:
    plain = history.viewer.get("/v1/predictions", params={"limit": limit}, headers={"Accept-Encoding": "identity"})
    answer = history.viewer.get("/v1/predictions", params={"limit": limit}, headers={"Accept-Encoding": taken})
    assert answer.json() == plain.json()
    assert answer.headers.get("content-encoding") == ("gzip" if shrunk else None)
    assert (int(answer.headers["content-length"]) < len(plain.content) / 5) == shrunk
    assert answer.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize("query", [{}, {"camera": "yard", "min_confidence": 0.4}, {"device": "nobody"}])
def test_exports_are_the_predictions(history: Service, query: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PAGE", 50)
    rows = history.rows(**query)
    whole = {kind: history.viewer.get("/v1/export", params={"format": kind, **query}) for kind in ("csv", "parquet")}
    for kind, answer in whole.items():
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f'attachment; filename="predictions.{kind}"'
    lines = list(csv.DictReader(io.StringIO(whole["csv"].text, newline="")))
    table = parquet.read_table(io.BytesIO(whole["parquet"].content))
    assert tuple(table.column_names) == reading.COLUMNS
    if lines:
        assert tuple(lines[0]) == reading.COLUMNS
    for row, line, stored in zip(rows, lines, table.to_pylist(), strict=True):
        assert json.loads(line["top"]) == json.loads(stored["top"]) == row["top"]
        assert line["label"] == (f"'{row['label']}" if row["label"].startswith("=") else row["label"])
        assert stored["label"] == row["label"]
        for name in ("captured", "received"):
            for moment in (datetime.fromisoformat(line[name]), stored[name]):
                assert moment.timestamp() == pytest.approx(row[name], abs=6e-4)
        for name in ("device", "camera", "boot", "id", "seq"):
            assert line[name] == str(row[name])
            assert stored[name] == row[name]
        for name in ("confidence", "encode_ms", "edge_ms", "network_ms", "cloud_ms"):
            assert stored[name] == row[name]
            assert line[name] == ("" if row[name] is None else str(row[name]))


def state(**more: Any) -> wire.EdgeState:
    told = {"spool_clips": 3, "spool_bytes": 99, "spool_seconds": 1.5, "spool_dropped": 0, "sent_clips": 7}
    fixed = {"boot": "b1", "version": "0.1.0", "encoder": ENCODER, "model": "tiny", "uptime_seconds": 5.0}
    return wire.EdgeState(**{**told, **fixed, "sent": time.time() - 4, "send_errors": 0, "encode_ms": 2.5, **more})


@pytest.mark.parametrize("media", wire.FORMATS)
def test_how_devices_and_cameras_are(service: Service, media: str) -> None:
    name = f"box {media[-4:]}"
    client = service.client(service.key(name))
    (before,) = (each for each in service.viewer.get("/v1/cameras").json()["devices"] if each["name"] == name)
    assert before == {
        "name": name, "seen": None, "silent_seconds": None, "skew_seconds": None, "status": None, "cameras": [],
    }  # fmt: skip
    seen = [wire.CameraState("door", "running", fps=25.0), wire.CameraState("yard", "lost", "no way <b>")]
    answer = service.send(state(cameras=seen), media, client)
    assert (answer.status_code, answer.content) == (204, b"")
    rows = latents(2)
    service.send(post(rows, "door"), client=client)
    assert service.send(state(cameras=seen[::-1], sent_clips=8), media, client).status_code == 204
    (after,) = (each for each in service.viewer.get("/v1/cameras").json()["devices"] if each["name"] == name)
    assert abs(after["seen"] - time.time()) < SOON
    assert after["skew_seconds"] == pytest.approx(4, abs=2)
    assert 0 <= after["silent_seconds"] < SOON
    assert after["status"]["sent_clips"] == 8
    assert "cameras" not in after["status"]
    door, yard = after["cameras"]
    last = service.rows(device=name)[-1]
    assert [door[key] for key in ("name", "label", "confidence", "captured", "seen")] == [
        "door", last["label"], last["confidence"], last["captured"], last["received"],
    ]  # fmt: skip
    assert door["status"]["fps"] == 25.0
    assert (yard["seen"], yard["label"], yard["status"]["why"]) == (None, None, "no way <b>")


def test_cameras_that_an_edge_no_longer_has(service: Service) -> None:
    """What they saw stays; how they are is no longer told."""
    name = "changing box"
    client = service.client(service.key(name))
    seen = [wire.CameraState(camera, "running") for camera in ("door", "roof", "yard")]
    assert service.send(state(cameras=seen), client=client).status_code == 204
    service.send(post(latents(1), "yard"), client=client)

    def told() -> dict[str, Any]:
        (box,) = (each for each in service.viewer.get("/v1/cameras").json()["devices"] if each["name"] == name)
        return {camera["name"]: camera["status"] for camera in box["cameras"]}

    assert {camera: status["state"] for camera, status in told().items()} == dict.fromkeys(
        ("door", "roof", "yard"), "running"
    )
    assert service.send(state(cameras=seen[:1]), client=client).status_code == 204
    assert {camera: status and status["state"] for camera, status in told().items()} == {
        "door": "running",
        "yard": None,
    }


def test_clips_are_a_sign_of_life(service: Service) -> None:
    """Of a device that does not say how it is."""
    client = service.client(service.key("silent box"))
    service.send(post(latents(1)), client=client)
    (box,) = (each for each in service.viewer.get("/v1/cameras").json()["devices"] if each["name"] == "silent box")
    assert box["seen"] == box["cameras"][0]["seen"]
    assert 0 <= box["silent_seconds"] < SOON


# ------------------------------------------------------------ as it comes


class Listener(threading.Thread):
    """Reads /v1/stream until it has seen enough."""

    def __init__(self, service: Service, enough: int, headers: dict[str, str] | None = None, **query: Any) -> None:
        super().__init__(daemon=True)
        self.client, self.enough, self.headers, self.query = service.viewer, enough, headers or {}, query
        self.rows, self.ids, self.listens = list[dict[str, Any]](), list[int](), threading.Event()
        self.start()
        assert self.listens.wait(SOON)

    def run(self) -> None:
        with self.client.stream("GET", "/v1/stream", params=self.query, headers=self.headers) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                name, _, value = line.partition(": ")
                if line.startswith(":"):
                    self.listens.set()
                elif name == "event":
                    assert value == "predictions"
                elif name == "id":
                    self.ids.append(int(value))
                elif name == "data":
                    self.rows += json.loads(value)
                    assert self.rows[-1]["id"] == self.ids[-1]
                if len(self.rows) >= self.enough:
                    return

    def done(self) -> list[dict[str, Any]]:
        self.join(SOON)
        assert not self.is_alive(), len(self.rows)
        return self.rows


def test_a_stream_tells_what_was_and_what_comes(fresh: str) -> None:
    with inside(fresh) as own, inside(fresh) as another:
        own.verdicts(post(latents(6)))
        key = own.key("box1")
        start = own.rows()[2]["id"]
        behind = Listener(own, 6, after=start)
        told = Listener(own, 5, {"Last-Event-ID": str(start + 1)}, after=0)  # the browser knows better than the page
        odd = Listener(own, 9, {"Last-Event-ID": "nonsense"}, after=0)
        now, elsewhere = Listener(own, 3), Listener(another, 3)
        assert own.send(post(latents(2), first=6), client=another.client(key)).status_code == 200
        own.verdicts(post(latents(1), "yard", first=6))
        everything = own.rows()
        assert behind.done() == everything[3:]
        assert told.done() == everything[4:]
        assert odd.done() == everything
        assert now.done() == everything[6:]
        assert elsewhere.done() == everything[6:]


def test_a_stream_is_quiet_where_everything_was_forgotten(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count()
    monkeypatch.setattr(streaming, "page", lambda *given: next(looks) * 0 or reading.page(*given))
    with inside(fresh) as own:
        own.verdicts(post(latents(3)))
        engine = database.open_database(fresh)
        with database.writing(engine) as connection:
            connection.execute(sa.delete(predictions))
        engine.dispose()
        listener = Listener(own, 1, after=0)
        time.sleep(0.5)
        assert next(looks) < 5
        own.verdicts(post(latents(1), first=3))
        assert [row["seq"] for row in listener.done()] == [3]


def test_only_so_many_pages_listen(fresh: str) -> None:
    with inside(fresh, streams=1) as own:
        own.device.get("/health/live")
        first = Listener(own, 1)
        assert "too many" in refused(own.viewer.get("/v1/stream"), 503)
        own.verdicts(post(latents(1)))
        assert len(first.done()) == 1
        eventually(lambda: own.viewer.build_request("GET", "/") and listens(own))


@pytest.mark.parametrize("way", ["revoked", "rotated"])
def test_a_stream_ends_with_its_key(way: str, fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "FRESH_SECONDS", 0.2)
    with inside(fresh) as own:
        listener = Listener(own, 1)
        engine = database.open_database(fresh)
        if way == "revoked":
            access.revoke(engine, "ann")
        else:
            access.rotate(engine, "ann", 0.0)
        engine.dispose()
        time.sleep(0.3)
        own.verdicts(post(latents(1)))  # which wakes whoever listens
        listener.join(SOON)
        assert not listener.is_alive()
        assert listener.rows == []


async def never() -> bool:
    return False


def test_pages_that_come_at_the_same_moment_are_counted_too(fresh: str) -> None:
    """Both were let in while nobody listened yet; one of them is told to come again later."""

    async def both() -> tuple[bytes, bytes]:
        hub = streaming.Hub(database.open_database(fresh), most=1)
        one, two = hub.events(0, never), hub.events(0, never)
        return await anext(one), await anext(two)

    first, second = asyncio.run(both())
    assert b": listening" in first
    assert second == b"retry: 10000\n\n"


def listens(own: Service) -> bool:
    with own.viewer.stream("GET", "/v1/stream") as answer:
        return answer.status_code == 200


# ------------------------------------------------------------ health


def test_numbers_for_prometheus(fresh: str) -> None:
    with inside(fresh) as own:
        own.verdicts(post(latents(5)))
        own.verdicts(post(latents(7)))
        refused(own.send(post(latents(1), encoder="other")), 409)
        own.viewer.get("/v1/nothing")
        answer = own.viewer.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain")
        values = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
        told = {name.removeprefix("distill_cloud_"): float(value) for name, value in values.items()}
    assert told['clips_total{was="stored"}'] == 7
    assert told['clips_total{was="known"}'] == 5
    assert told['requests_total{code="200",route="/v1/latents"}'] == 2
    assert told['requests_total{code="409",route="/v1/latents"}'] == 1
    assert told['requests_total{code="404",route="other"}'] == 1
    assert told["queue_clips"] == 0
    assert told["batch_clips_sum"] == 12
    assert told["batch_clips_count"] == told["classify_seconds_count"] == told["database_seconds_count"] == 2
    assert told['request_seconds_count{route="/v1/latents"}'] == 2
    assert told['camera_last_seen_seconds{camera="door",device="box1"}'] == pytest.approx(time.time(), abs=SOON)


def test_what_goes_wrong_here_is_counted(fresh: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "health", lambda _: 1 // 0)
    with inside(fresh) as own:
        assert own.viewer.get("/v1/cameras").status_code == 500
        text = own.client(own.key("ann")).get("/metrics").text  # the server closed the connection
        assert 'requests_total{code="500",route="/v1/cameras"} 1.0' in text


@pytest.mark.parametrize("kind", DATABASES)
def test_the_database_goes_away_and_comes_back(
    kind: str, tmp_path: Path, boot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.3)
    with inside(fresh_database(kind, tmp_path)) as own:
        own.verdicts(post(latents(2), boot=boot))
        own.rows()
        listener = Listener(own, 1) if kind == "sqlite" else None
        with writer(own.database) if kind == "sqlite" else without_postgres():
            refused(own.send(post(latents(4), boot=boot)), 503)
            ready = own.viewer.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
            assert own.viewer.get("/health/live").status_code == 200
            if kind == "postgresql":  # readers of SQLite do not mind a writer
                refused(own.viewer.get("/v1/predictions"), 503)
                refused(own.viewer.get("/v1/cameras"), 503)
                refused(own.client("unheard of").get("/v1/cameras"), 503)
                refused(own.viewer.get("/v1/export"), 503)
                refused(own.viewer.get("/v1/stream"), 503)
        eventually(lambda: own.viewer.get("/health/ready").json() == {"status": "ok"})
        assert [each.known for each in own.verdicts(post(latents(4), boot=boot))] == [True, True, False, False]
        assert [row["seq"] for row in own.rows()] == [0, 1, 2, 3]
        if listener:
            assert listener.done()[0]["seq"] == 2


def test_a_database_that_is_removed_is_missed(tmp_path: Path) -> None:
    """SQLite itself would go on as if nothing had happened, and all of it would be gone at the end."""
    with inside(fresh_database("sqlite", tmp_path)) as own:
        own.verdicts(post(latents(2)))
        own.rows()
        for path in tmp_path.glob("*.sqlite*"):
            path.unlink()
        refused(own.send(post(latents(1), first=2)), 503)
        refused(own.viewer.get("/v1/predictions"), 503)
        eventually(lambda: own.viewer.get("/health/ready").status_code == 503)


@contextmanager
def without_postgres() -> Iterator[None]:
    postgres().stop()
    try:
        yield
    finally:
        postgres().start()


def test_what_browsers_are_told(service: Service) -> None:
    page = service.client().get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for answer in (page, service.viewer.get("/v1/predictions"), service.client().get("/v1/predictions")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    assert service.viewer.get("/v1/predictions").headers["cache-control"] == "no-store"
