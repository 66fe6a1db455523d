"""The cloud service, over both databases: what comes in is classified and stored once, or refused."""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import sqlalchemy as sa
from cloud_server import (
    CLASSES,
    ENCODER,
    SOON,
    WIDTH,
    Service,
    eventually,
    inside,
    latents,
    post,
    postgres,
    refused,
    shares,
    writer,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from distill.live import wire
from distill.live.cloud import access, database, intake
from distill.live.cloud.tables import DEVICE, predictions

pytest_plugins = ("cloud_fixtures",)
TIED = [0.0, 0.125, 0.25, 0.5]


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


@given(
    shares=hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.sampled_from(TIED)),
    most=st.integers(1, 11),
)
def test_the_largest_shares_are_those_that_sorting_finds(shares: np.ndarray, most: int) -> None:
    expected = np.argsort(-shares, axis=1, kind="stable")[:, :most]
    assert intake._largest(shares, most).tolist() == expected.tolist()


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
    assert "has 15 numbers" in refused(service.send(post(latents(2)[:, :15])), 409)  # right, and for another classifier
    assert "has 15 numbers" in refused(service.send(post([*latents(2), latents(1)[0, :15]])), 422)
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
