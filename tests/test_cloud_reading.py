"""The cloud service, over both databases: what is stored is told as it is, by page, as files and as it comes."""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
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
    SOON,
    WIDTH,
    Service,
    eventually,
    fresh_database,
    inside,
    latents,
    post,
    postgres,
    refused,
    writer,
)
from pyarrow import parquet

from distill.live import wire
from distill.live.cloud import access, database, reading, streaming
from distill.live.cloud.tables import predictions

pytest_plugins = ("cloud_fixtures",)


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
