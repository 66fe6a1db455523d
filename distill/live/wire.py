"""What an edge and the cloud say to each other, as JSON or as msgpack: one set of types, checked as they are read.

Latents travel as plain lists of numbers, which people can read, or packed: float32, float16, or int8 with a scale of
its own for each latent; in JSON the packed bytes are base64.

Shape legend: L latent width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct

JSON, MSGPACK = "application/json", "application/msgpack"
FORMATS = (JSON, MSGPACK)
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1"}
ENCODINGS = ("float16", "int8", "float32", "list")  # of a latent
MOST_CLIPS = 1024  # of one message
MOST_CAMERAS = 1024  # of one device
WIDEST = 1 << 16  # numbers of a latent
LATEST = 2.0**33  # seconds since 1970; a clock that was never set says something small, which is let pass
LONGEST = 1e9  # milliseconds
LONGEST_TEXT = 400

# A camera or device: letters, digits and a few signs. Not even the end of the line, which $ alone would let pass.
NAME = r"^\w[\w .:-]{0,63}$(?!\n)"
Name = Annotated[str, Meta(pattern=NAME, description="letters, digits, blanks and .:-_, at most 64")]
Boot = Annotated[str, Meta(pattern=r"^[0-9a-zA-Z-]{1,64}$(?!\n)", description="drawn anew whenever an edge starts")]
EncoderId = Annotated[
    str, Meta(pattern=r"^[0-9a-zA-Z:._-]{1,200}$(?!\n)", description="of the student's weights that made the latents")
]
Count = Annotated[int, Meta(ge=0, le=2**53 - 1)]
Clock = Annotated[float, Meta(ge=0, le=LATEST, description="seconds since 1970, UTC, by the edge's clock")]
Milliseconds = Annotated[float, Meta(ge=0, le=LONGEST)]
Seconds = Annotated[float, Meta(ge=0, le=LONGEST)]
Text = Annotated[str, Meta(max_length=LONGEST_TEXT, pattern=r"^[^\x00]*$")]


class Packed(Struct, forbid_unknown_fields=True):
    """A latent as bytes, the smallest byte of a number first."""

    dtype: Literal["float32", "float16", "int8"]
    data: bytes
    scale: Annotated[float, Meta(ge=0)] = 1.0
    """What one step of int8 is worth."""


class Clip(Struct, forbid_unknown_fields=True):
    """What one camera saw in a clip. (camera, boot, seq) says which one: sent twice, it is stored once."""

    camera: Name
    boot: Boot
    seq: Count
    captured: Clock
    """When the clip's last frame was seen."""
    latent: Annotated[list[float], Meta(min_length=1, max_length=WIDEST)] | Packed
    encode_ms: Milliseconds = 0.0
    """What encoding took, this clip's share."""


class Post(Struct, forbid_unknown_fields=True):
    """Clips on their way to the cloud, those of each camera in their order."""

    encoder: EncoderId
    sent: Clock
    clips: Annotated[list[Clip], Meta(min_length=1, max_length=MOST_CLIPS)]
    network_ms: Milliseconds | None = None
    """What the edge's last message took on its way there and back, without what the cloud needed: no clock is
    compared with another."""


class Verdict(Struct):
    """What the cloud makes of a clip. `known`: it was stored before."""

    camera: str
    boot: str
    seq: int
    label: str
    confidence: float
    known: bool


class Answer(Struct):
    """Once everything is stored."""

    results: list[Verdict]
    took_ms: float


class CameraState(Struct, forbid_unknown_fields=True):
    """How a camera is."""

    name: Name
    state: Literal["starting", "running", "lost", "ended"]
    why: Text = ""
    """It is lost."""
    fps: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    frames: Count = 0
    """Read since the edge started."""
    frames_dropped: Count = 0
    clips: Count = 0
    """Encoded since the edge started."""
    clips_dropped: Count = 0
    """Ready, but pushed out by newer ones before the encoder came to them."""
    reconnects: Count = 0


class EdgeState(Struct, forbid_unknown_fields=True):
    """How an edge is; sent now and then."""

    boot: Boot
    sent: Clock
    version: Text
    encoder: EncoderId
    model: Text
    uptime_seconds: Seconds
    spool_clips: Count
    """That wait to be sent."""
    spool_bytes: Count
    spool_seconds: Seconds
    """Age of the oldest of them."""
    spool_dropped: Count
    """Clips that were given up, because there was no more room or they were too old."""
    sent_clips: Count
    send_errors: Count
    encode_ms: Milliseconds
    """What a clip takes, lately."""
    cameras: Annotated[list[CameraState], Meta(max_length=MOST_CAMERAS)] = []
    report_seconds: Seconds = 5.0
    """Between this and the next."""


Message = TypeVar("Message")


class WireError(ValueError):
    """A message that means nothing; its text is for whoever sent it."""


class WidthError(WireError):
    """A whole message of latents that are as long as each other, and none as it should be: another encoder's."""


def dump(message: Any, media: str) -> bytes:
    return msgspec.json.encode(message) if media == JSON else msgspec.msgpack.encode(message)


def load(body: bytes, media: str, kind: type[Message]) -> Message:
    try:
        found: Message = (msgspec.json if media == JSON else msgspec.msgpack).decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise WireError(f"this is no {kind.__name__}: {error or type(error).__name__}") from error
    return found


def pack(latent: np.ndarray, encoding: str) -> list[float] | Packed:
    """float32 [L] as it travels."""
    if encoding == "list":
        return [float(value) for value in latent]
    if encoding != "int8":
        with np.errstate(over="ignore"):
            numbers = latent.astype(DTYPES[encoding])
        if encoding == "float16" and not np.isfinite(numbers).all():  # beyond what it holds
            return pack(latent, "float32")
        return Packed(encoding, numbers.tobytes())  # type: ignore[arg-type]
    largest = np.abs(latent).max()
    scale = np.nextafter(largest / np.float32(127), np.float32(0))  # 127 of them are never beyond float32
    steps = np.round(latent / scale) if scale else np.zeros_like(latent)
    return Packed("int8", steps.clip(-127, 127).astype(np.int8).tobytes(), float(scale))


def unpack(latents: Sequence[list[float] | Packed], width: int) -> np.ndarray:
    """float32 [N,L] of what came; a WireError names the one that cannot be used."""
    widths = [_width(latent) for latent in latents]
    if set(widths) - {width}:
        place, given = next((place, given) for place, given in enumerate(widths) if given != width)
        others = set(widths) == {given} and given > 0 and given % 1 == 0
        what = f"clips[{place}].latent has {given:g} numbers, and the classifier takes {width}"
        raise WidthError(what) if others else WireError(what)
    rows = np.empty((len(latents), width), np.float32)
    for place, latent in enumerate(latents):
        if isinstance(latent, list):
            with np.errstate(over="ignore"):
                rows[place] = latent
        else:
            rows[place] = np.frombuffer(latent.data, DTYPES[latent.dtype])
            if latent.dtype == "int8":
                with np.errstate(over="ignore", invalid="ignore"):
                    rows[place] *= latent.scale if math.isfinite(latent.scale) else math.nan
    whole = np.isfinite(rows).all(1)
    if not whole.all():
        raise WireError(f"clips[{int(whole.argmin())}].latent holds a number that is not finite in float32")
    return rows


def _width(latent: list[float] | Packed) -> float:
    """How many numbers it has; a part of one, if bytes are missing."""
    return len(latent) if isinstance(latent, list) else len(latent.data) / np.dtype(DTYPES[latent.dtype]).itemsize
