"""Messages between edge and cloud: what packing keeps of a latent, and how many bytes it takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.command import guarded
from distill.live import wire
from tools import bytes_table
from tools.bytes_table import MARKS, PLAIN, TOGETHER, WIDTH, message_bytes, run

Capture = pytest.CaptureFixture[str]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
LATENTS = arrays(np.float32, st.integers(1, 40), elements=FLOATS)


def there_and_back(latent: np.ndarray, encoding: str, media: str) -> np.ndarray:
    sent = wire.Clip("door", "b1", 0, 0.0, wire.pack(latent, encoding))
    clip = wire.load(wire.dump(sent, media), media, wire.Clip)
    (found,) = wire.unpack([clip.latent], len(latent))
    return np.asarray(found)


@pytest.mark.parametrize("media", wire.FORMATS)
@pytest.mark.parametrize("encoding", ["list", "float32"])
@given(latent=LATENTS)
def test_whole_numbers_come_as_they_went(media: str, encoding: str, latent: np.ndarray) -> None:
    assert there_and_back(latent, encoding, media).tobytes() == latent.tobytes()


@pytest.mark.parametrize("media", wire.FORMATS)
@given(latent=LATENTS)
def test_float16_is_the_nearest(media: str, latent: np.ndarray) -> None:
    """To half a step of eleven bits, or of the smallest that there is; what is too large travels in float32."""
    found = there_and_back(latent, "float16", media)
    if np.abs(latent.astype(np.float64)).max() >= 65520:
        assert found.tobytes() == latent.tobytes()
    else:
        bound = np.maximum(np.abs(latent.astype(np.float64)) * 2**-11, 2.0**-25)
        assert (np.abs(found.astype(np.float64) - latent) <= bound).all()


@pytest.mark.parametrize("media", wire.FORMATS)
@given(latent=LATENTS)
def test_int8_is_within_half_a_step(media: str, latent: np.ndarray) -> None:
    """Of 127 between nothing and the largest; signs and zeros stay."""
    largest = np.abs(latent.astype(np.float64)).max()
    assume(largest == 0 or largest > 1e-36)  # beyond that float32 itself gets coarse
    found = there_and_back(latent, "int8", media).astype(np.float64)
    assert (np.abs(found - latent) <= (largest / 127) * 0.5001 + 1e-44).all()
    assert (found[latent == 0] == 0).all()
    assert (found * latent >= 0).all()
    assert np.abs(found).max() == pytest.approx(largest, rel=1e-5)


@given(latent=LATENTS)
def test_every_latent_can_be_packed(latent: np.ndarray) -> None:
    """The largest and the smallest of float32, too."""
    for encoding in wire.ENCODINGS:
        assert np.isfinite(there_and_back(latent, encoding, wire.MSGPACK)).all()


@pytest.mark.parametrize(("encoding", "size"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_packed_bytes(encoding: str, size: int) -> None:
    packed = wire.pack(np.linspace(-2, 2, 1000, dtype=np.float32), encoding)
    assert isinstance(packed, wire.Packed)
    assert len(packed.data) == 1000 * size
    assert packed.dtype == encoding


def test_many_latents_keep_their_order() -> None:
    rows = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32)
    packed = [wire.pack(row, encoding) for row, encoding in zip(rows, wire.ENCODINGS * 2, strict=True)]
    assert np.abs(wire.unpack(packed, 5) - rows).max() < 0.02
    assert wire.unpack([], 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("latent", "said"),
    [
        ([1.0] * 4, "has 4 numbers, and the classifier takes 3"),
        ([], "has 0 numbers"),
        ([1.0, math.nan, 1.0], "not finite"),
        ([1.0, 1e39, 1.0], "not finite"),
        (wire.Packed("float16", b"12345"), "has 2.5 numbers"),
        (wire.Packed("float32", b""), "has 0 numbers"),
        (wire.Packed("float16", b"\x00\x7c" * 3), "not finite"),
        (wire.Packed("int8", b"123", math.inf), "not finite"),
        (wire.Packed("int8", b"000", 1e39), "not finite"),
    ],
)
def test_what_cannot_be_used_is_named(latent: Any, said: str) -> None:
    with pytest.raises(wire.WireError, match=rf"^clips\[1\]\.latent .*{said}"):
        wire.unpack([[1.0, 2.0, 3.0], latent], 3)


def test_a_message_of_another_width_is_another_matter_than_one_bad_clip() -> None:
    with pytest.raises(wire.WidthError, match=r"^clips\[0\]\.latent has 2 numbers, and the classifier takes 3$"):
        wire.unpack([[1.0, 2.0], wire.Packed("float16", b"1234")], 3)
    broken = wire.Packed("float16", b"123")
    for latents in ([[1.0, 2.0], [1.0]], [[1.0, 2.0, 3.0], [1.0]], [[]], [broken, broken]):
        with pytest.raises(wire.WireError, match="and the classifier takes 3") as told:
            wire.unpack(latents, 3)
        assert not isinstance(told.value, wire.WidthError)


@pytest.mark.parametrize("media", wire.FORMATS)
@given(body=st.binary(max_size=60))
def test_nonsense_means_nothing(media: str, body: bytes) -> None:
    for kind in (wire.Post, wire.EdgeState, wire.Answer):
        with pytest.raises(wire.WireError, match=f"^this is no {kind.__name__}: "):
            wire.load(body, media, kind)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera": ""}, "camera"),
        ({"camera": " door"}, "camera"),
        ({"camera": "door\n"}, "camera"),
        ({"camera": "a" * 65}, "camera"),
        ({"camera": "a\x00"}, "camera"),
        ({"boot": "b_1"}, "boot"),
        ({"boot": "b\n"}, "boot"),
        ({"seq": -1}, "seq"),
        ({"seq": 1.5}, "seq"),
        ({"seq": 2**53}, "seq"),
        ({"seq": True}, "seq"),
        ({"captured": -1.0}, "captured"),
        ({"captured": 1e300}, "captured"),
        ({"captured": None}, "captured"),
        ({"encode_ms": -0.1}, "encode_ms"),
        ({"encode_ms": "1"}, "encode_ms"),
        ({"latent": {"dtype": "int4", "data": ""}}, "latent"),
        ({"latent": {"dtype": "int8", "data": "?"}}, "latent"),
        ({"latent": {"dtype": "int8", "data": "", "scale": -1}}, "latent"),
        ({"latent": [None]}, "latent"),
        ({"latent": []}, "latent"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_the_field_that_is_wrong_is_named(changes: dict[str, Any], said: str) -> None:
    good = {"camera": "door", "boot": "b1", "seq": 1, "captured": 1.0, "latent": [1.0]}
    assert wire.load(msgspec.json.encode(good), wire.JSON, wire.Clip).seq == 1
    for media, encode in ((wire.JSON, msgspec.json.encode), (wire.MSGPACK, msgspec.msgpack.encode)):
        with pytest.raises(wire.WireError, match=said):
            wire.load(encode(good | changes), media, wire.Clip)


# ------------------------------------------------------------ bytes per clip


@pytest.mark.parametrize("clips", [1, TOGETHER])
def test_what_surrounds_a_latent_is_small(clips: int) -> None:
    """Beside the numbers a clip has its names and times, and a message says whose encoder it was."""
    for encoding, size in (("float32", 4), ("float16", 2), ("int8", 1)):
        bare = size * WIDTH
        assert bare < message_bytes(wire.MSGPACK, encoding, clips) / clips < bare + 340
        if encoding != "float32":
            written = 4 * math.ceil(bare / 3)  # base64
            assert written < message_bytes(wire.JSON, encoding, clips) / clips < written + 430


def test_smaller_forms_are_smaller() -> None:
    order = [("json", "list"), ("msgpack", "float32"), ("json", "float16"), ("msgpack", "float16"), ("json", "int8")]
    sizes = [message_bytes(f"application/{media}", encoding, 1) for media, encoding in [*order, ("msgpack", "int8")]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < PLAIN < sizes[1]


def test_the_table_in_the_readme_is_this_one() -> None:
    run(["--check"])


def test_another_table_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    readme = tmp_path / "README.md"
    monkeypatch.setattr(bytes_table, "README", readme)
    readme.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    assert guarded(lambda: run(["--check"])) == 2
    assert "out of date; python -m tools.bytes_table --write" in capsys.readouterr().err
    run(["--write"])
    run(["--check"])
    run([])
    assert readme.read_text() == f"before\n{MARKS[0]}\n{capsys.readouterr().out}{MARKS[1]}\nafter\n"
    readme.write_text("nothing here")
    assert guarded(lambda: run(["--write"])) == 2
    assert MARKS[0] in capsys.readouterr().err
    assert readme.read_text() == "nothing here"
