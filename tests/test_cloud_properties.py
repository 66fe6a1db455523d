"""Whatever is sent, the service answers in a sentence, and never that something is wrong with itself."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import httpx2
import msgspec
import numpy as np
import pytest
import schemathesis
from cloud_server import DATABASES, ENCODER, WIDTH, Service, fresh_database, inside, latents, post
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi import checks

from distill.live import wire
from distill.live.cloud.described import BIGGEST

BOUNDED = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
SURROGATES = st.characters(codec=None) | st.sampled_from("\ud800\udfff\x00\u202e\U0010ffff")
TEXT = st.text(SURROGATES, max_size=80)
NUMBERS = st.integers(-(2**80), 2**80) | st.floats() | st.sampled_from([2**53, 2**53 - 1, BIGGEST, -BIGGEST, 1e-320])
PLAIN = st.none() | st.booleans() | NUMBERS | TEXT | st.binary(max_size=40)
ANYTHING = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))
ODD_PACKED = st.fixed_dictionaries(
    {"dtype": st.sampled_from([*wire.DTYPES, "int4", ""]), "data": st.binary(max_size=70)},
    optional={"scale": NUMBERS, "offset": NUMBERS},
)
ODD_LATENTS = (
    ANYTHING | ODD_PACKED | st.lists(PLAIN, max_size=20) | st.lists(st.floats(), min_size=WIDTH, max_size=WIDTH)
)
FIELDS = {"encoder", "sent", "clips", "network_ms", "more"}
CLIP_FIELDS = {"camera", "boot", "seq", "captured", "latent", "encode_ms", "more"}
STATE = wire.EdgeState(
    "b1", 1.0, "0.1", ENCODER, "tiny", 1.0, 0, 0, 0.0, 0, 0, 0, 1.0, [wire.CameraState("door", "lost", "gone")]
)
PATHS = ("predictions", "cameras", "summary", "export", "classifier", "nothing", "latents", "../metrics", "")
KEYS = ("device", "camera", "label", "min_confidence", "since", "until", "after", "before", "limit", "order", "bucket",
        "format", "which", "request", "")  # fmt: skip
ASKED = (
    st.text(max_size=70) | st.binary(max_size=20) | NUMBERS | st.sampled_from(["oldest", "parquet", "1e-300", "nan"])
)


@pytest.fixture(scope="module", params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Which is well at the end."""
    with inside(fresh_database(request.param, tmp_path_factory.mktemp("cloud"))) as made:
        made.verdicts(post(latents(20)))
        yield made
        assert made.client().get("/health/ready").json() == {"status": "ok"}
        boot = secrets.token_hex(8)
        assert not made.verdicts(post(latents(1), boot=boot))[0].known
        assert made.rows(limit=1000)[-1]["boot"] == boot


def check(answer: httpx2.Response) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == "application/json"
        assert set(answer.json()) == {"detail"}
        assert isinstance(answer.json()["detail"], str)
        assert "Traceback" not in answer.text
        assert len(answer.text) < 2000


def send(service: Service, body: bytes, media: str, path: str = "latents") -> httpx2.Response:
    return service.device.post(f"/v1/{path}", content=body, headers={"Content-Type": media})


def dumped(message: Any, media: str) -> bytes:
    """As it would be sent, if it can be."""
    with suppress(UnicodeError, ValueError, OverflowError, TypeError):
        return wire.dump(message, media)
    return reject()


# ------------------------------------------------------------ messages


@st.composite
def clips(draw: st.DrawFn) -> wire.Clip:
    numbers = st.floats(-1e4, 1e4, width=32)
    latent = np.array(draw(st.lists(numbers, min_size=WIDTH, max_size=WIDTH)), np.float32)
    return wire.Clip(
        draw(st.from_regex(wire.NAME)),
        draw(st.from_regex(r"\A[0-9a-zA-Z-]{1,64}\Z")),
        draw(st.integers(0, 2**53 - 1)),
        draw(st.floats(0, wire.LATEST)),
        wire.pack(latent, draw(st.sampled_from(wire.ENCODINGS))),
        draw(st.floats(0, wire.LONGEST)),
    )


@settings(BOUNDED, max_examples=30)
@given(
    found=st.lists(clips(), min_size=1, max_size=6, unique_by=lambda clip: (clip.camera, clip.seq)),
    sent=st.floats(0, wire.LATEST),
    network=st.none() | st.floats(0, wire.LONGEST),
    media=st.sampled_from(wire.FORMATS),
)
def test_a_good_message_comes_as_it_went(
    service: Service, found: list[wire.Clip], sent: float, network: float | None, media: str
) -> None:
    start = service.viewer.get("/v1/predictions?limit=1").json()["predictions"][0]["id"]
    boot = secrets.token_hex(8)
    for clip in found:
        clip.boot = f"{boot}{clip.boot}"[:64]
    verdicts = service.verdicts(wire.Post(ENCODER, sent, found, network), media)
    assert [(each.camera, each.boot, each.seq) for each in verdicts] == [
        (clip.camera, clip.boot, clip.seq) for clip in found
    ]
    assert not any(each.known for each in verdicts)
    rows = service.viewer.get("/v1/predictions", params={"order": "oldest", "after": start}).json()["predictions"]
    assert [
        (row["camera"], row["boot"], row["seq"], row["captured"], row["encode_ms"], row["network_ms"]) for row in rows
    ] == [(clip.camera, clip.boot, clip.seq, clip.captured, clip.encode_ms, network) for clip in found]
    assert [row["edge_ms"] for row in rows] == pytest.approx([max(0.0, 1e3 * (sent - clip.captured)) for clip in found])


@BOUNDED
@given(body=st.binary(max_size=300), media=st.sampled_from([*wire.FORMATS, "text/plain", ""]))
@pytest.mark.parametrize("path", ["latents", "status"])
def test_bytes_that_mean_nothing(service: Service, path: str, body: bytes, media: str) -> None:
    answer = send(service, body, media, path)
    check(answer)
    assert answer.status_code in (415, 422)


@BOUNDED
@given(
    cuts=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 0.1), st.binary(max_size=6)), min_size=1, max_size=3),
    encoding=st.sampled_from(wire.ENCODINGS),
    media=st.sampled_from(wire.FORMATS),
)
@pytest.mark.parametrize("path", ["latents", "status"])
def test_bytes_that_were_spoilt(
    service: Service, path: str, cuts: list[tuple[float, float, bytes]], encoding: str, media: str
) -> None:
    """On the way some were lost, and others came in."""
    message = STATE if path == "status" else post(latents(2), encoding=encoding, captured=1.7e9)
    body = wire.dump(message, media)
    for start, share, more in cuts:
        at = int(start * len(body))
        body = body[:at] + more + body[at + int(share * len(body)) :]
    check(send(service, body, media, path))


@BOUNDED
@given(data=st.data(), media=st.sampled_from(wire.FORMATS))
def test_a_message_with_one_thing_wrong(service: Service, data: st.DataObject, media: str) -> None:
    message = msgspec.to_builtins(post(latents(2), encoding="list"))
    if data.draw(st.booleans()):
        message[data.draw(st.sampled_from(sorted(FIELDS)))] = data.draw(ANYTHING)
    else:
        field = data.draw(st.sampled_from(sorted(CLIP_FIELDS)))
        message["clips"][1][field] = data.draw(ODD_LATENTS if field == "latent" else ANYTHING)
    check(send(service, dumped(message, media), media))


@BOUNDED
@given(data=st.data(), media=st.sampled_from(wire.FORMATS))
def test_a_state_with_one_thing_wrong(service: Service, data: st.DataObject, media: str) -> None:
    message = msgspec.to_builtins(STATE)
    part = message if data.draw(st.booleans()) else message["cameras"][0]
    part[data.draw(st.sampled_from(sorted(part)))] = data.draw(ANYTHING)
    check(send(service, dumped(message, media), media, "status"))
    check(service.viewer.get("/v1/cameras"))


@pytest.mark.parametrize(
    ("media", "body"),
    [
        (wire.JSON, b"[" * 1_000_000),
        (wire.JSON, b'{"clips":' * 200_000),
        (wire.JSON, b'{"a":' * 500 + b"1" + b"}" * 500),
        (wire.JSON, b'{"more":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        (wire.JSON, b'{"sent":' + b"9" * 1_000_000 + b"}"),
        (wire.JSON, b'{"sent":1e999999999}'),
        (wire.JSON, b'{"\\ud800":1}'),
        (wire.JSON, b'{"encoder":"\\udfff\\u0000"}'),
        (wire.JSON, b'\xef\xbb\xbf{"encoder":"a"}'),
        (wire.JSON, '{"encoder":"a"}'.encode("utf-16")),
        (wire.JSON, b'{"clips":[' + b'{"latent":[' + b"1," * 70_000 + b"1]}]}"),
        (wire.JSON, b"NaN"),
        (wire.JSON, b"\x00" * 100),
        (wire.MSGPACK, b"\x91" * 1_000_000),
        (wire.MSGPACK, b"\x81\xa1a" * 200_000),
        (wire.MSGPACK, b"\xdd\xff\xff\xff\xff"),
        (wire.MSGPACK, b"\xdf\xff\xff\xff\xff\xa1a\x01"),
        (wire.MSGPACK, b"\xc6\xff\xff\xff\xff"),
        (wire.MSGPACK, b"\x81\xa5clips\xdd\x7f\xff\xff\xff" + b"\x80" * 1000),
        (wire.MSGPACK, b"\x81\xa4sent\xd6\xff\x00\x00\x00\x00"),
        (wire.MSGPACK, b"\x81\xa4sent\xc7\x0c\xff" + b"\xff" * 12),
        (wire.MSGPACK, b"\x81\xa1\xff\x01"),
        (wire.MSGPACK, b"\x81\xc0\x01"),
        (wire.MSGPACK, b"\x81\x90\x01"),
    ],
)
def test_bodies_that_were_made_to_hurt(service: Service, media: str, body: bytes) -> None:
    for path in ("latents", "status"):
        answer = send(service, body, media, path)
        check(answer)
        assert answer.status_code == 422


def test_the_largest_and_the_smallest(service: Service) -> None:
    check(service.send(post(np.zeros((0, WIDTH), np.float32))))
    check(service.send(post(np.zeros((1, 0), np.float32))))
    check(service.send(post(np.zeros((1, wire.WIDEST + 1), np.float32), encoding="list")))
    check(service.send(post(latents(1).repeat(wire.MOST_CLIPS + 1, 0))))
    extremes = np.full((2, WIDTH), np.finfo(np.float32).max, np.float32)
    extremes[1, ::2] *= -1
    check(service.send(post(extremes, boot=secrets.token_hex(8))))
    check(service.send(post(np.full((1, WIDTH), 1e-45, np.float32), boot=secrets.token_hex(8), encoding="int8")))


# ------------------------------------------------------------ questions


@BOUNDED
@given(path=st.sampled_from(PATHS), query=st.lists(st.tuples(st.sampled_from(KEYS) | st.text(max_size=9), ASKED)))
def test_any_question(service: Service, path: str, query: list[tuple[str, Any]]) -> None:
    """The same thing twice, too."""
    check(service.viewer.get(f"/v1/{path}?{urlencode(query, errors='surrogatepass')}"))


@BOUNDED
@given(
    since=st.floats(0, wire.LATEST), length=st.floats(0, wire.LATEST), bucket=st.floats(0, wire.LATEST),
    least=st.floats(0, 1),
)  # fmt: skip
def test_any_span(service: Service, since: float, length: float, bucket: float, least: float) -> None:
    until = min(since + length, wire.LATEST)
    check(service.viewer.get("/v1/summary", params={"since": since, "until": until, "bucket": bucket}))
    answer = service.viewer.get("/v1/predictions", params={"since": since, "until": until, "min_confidence": least})
    assert answer.status_code == 200


HEADERS = (
    "Authorization",
    "X-API-Key",
    "Content-Type",
    "Content-Encoding",
    "Last-Event-ID",
    "Accept",
    "Range",
    "Origin",
)
VALUES = st.lists(st.sampled_from([9, *range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=60).map(bytes)


@settings(BOUNDED, max_examples=30)
@given(headers=st.lists(st.tuples(st.sampled_from(HEADERS), VALUES), max_size=4), good=st.booleans())
def test_any_header(service: Service, headers: list[tuple[str, bytes]], good: bool) -> None:
    given_ = [(name.encode(), value.strip()) for name, value in headers]
    client = service.viewer if good else service.client()
    for path in ("/v1/classifier", "/v1/predictions", "/"):
        check(client.get(path, headers=given_))
    check(service.device.post("/v1/latents", content=b"{}", headers=given_))


@settings(BOUNDED, max_examples=20)
@given(value=VALUES | st.integers().map(lambda number: str(number).encode()))
def test_any_place_to_listen_from(service: Service, value: bytes) -> None:
    with service.viewer.stream("GET", "/v1/stream", headers=[(b"Last-Event-ID", value.strip())]) as answer:
        assert answer.status_code == 200
        assert b": listening" in next(answer.iter_bytes())


# ------------------------------------------------------------ as it describes itself


@schemathesis.serializer(wire.MSGPACK)
def _as_msgpack(_: Any, value: Any) -> bytes:
    return dumped(value, wire.MSGPACK)


CONFORMS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
UNASKED = ("/v1/stream", "/health/live", "/health/ready")  # without an end, or without anything to vary
FRESH = settings(
    BOUNDED,
    max_examples=12,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_it_is_as_it_describes_itself(service: Service, mode: schemathesis.GenerationMode) -> None:
    schema = schemathesis.openapi.from_dict(service.viewer.get("/openapi.json").json())
    keys = {"post": service.key("box1"), "get": service.key("ann", "viewer")}
    seen = set()

    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and "encoder" in case.body:
            case.body["encoder"] = ENCODER
        key = keys[case.operation.method]
        answer = case.call(base_url=service.url, headers={"Authorization": f"Bearer {key}"})
        seen.add((case.operation.path, answer.status_code))
        case.validate_response(answer, checks=CONFORMS)

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        if operation.path not in UNASKED:
            FRESH(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    assert {path for path, _ in seen} == set(schema.raw_schema["paths"]) - set(UNASKED)
    assert len({code for _, code in seen}) > 1
