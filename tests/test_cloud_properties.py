"""Whatever is sent, the service answers in a sentence, and never that something is wrong with itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from cloud_server import Service, fresh_database, inside, latents, post
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distill.live import wire

BOUNDED = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=40)
ANYTHING = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
FIELDS = ("camera", "boot", "seq", "captured", "latent", "encode_ms", "more")
PATHS = ("predictions", "cameras", "summary", "export", "classifier")
KEYS = ("device", "camera", "label", "min_confidence", "since", "until", "after", "before", "limit", "order", "bucket",
        "format")  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("cloud")
    with inside(fresh_database("sqlite", folder)) as made:
        yield made


def check(answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert isinstance(answer.json()["detail"], str)
        assert "Traceback" not in answer.text


@BOUNDED
@given(body=st.binary(max_size=300), media=st.sampled_from([*wire.FORMATS, "text/plain", ""]))
def test_bytes_that_mean_nothing(service: Service, body: bytes, media: str) -> None:
    check(service.device.post("/v1/latents", content=body, headers={"Content-Type": media}))


@BOUNDED
@given(field=st.sampled_from(FIELDS), value=ANYTHING, media=st.sampled_from(wire.FORMATS))
def test_a_message_with_one_thing_wrong(service: Service, field: str, value: Any, media: str) -> None:
    message = msgspec.to_builtins(post(latents(2), encoding="list"))
    message["clips"][1][field] = value
    try:
        body = wire.dump(message, media)
    except (UnicodeError, ValueError, OverflowError, TypeError):
        return  # not even a message
    check(service.device.post("/v1/latents", content=body, headers={"Content-Type": media}))


@BOUNDED
@given(
    path=st.sampled_from(PATHS), query=st.dictionaries(st.sampled_from(KEYS), st.text() | st.floats() | st.integers())
)
def test_any_question(service: Service, path: str, query: dict[str, Any]) -> None:
    try:
        asked = {key: str(value).encode() for key, value in query.items()}
    except UnicodeError:
        return
    check(service.viewer.get(f"/v1/{path}", params={key: value.decode() for key, value in asked.items()}))


@BOUNDED
@given(key=st.lists(st.integers(0x21, 0xFF).filter(lambda byte: byte != 0x7F), max_size=60).map(bytes))
def test_any_key(service: Service, key: bytes) -> None:
    answer = service.viewer.get("/v1/classifier", headers=[(b"Authorization", b"Bearer x" + key)])
    assert answer.status_code in (400, 401)
