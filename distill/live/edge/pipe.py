"""What an edge and the process that reads a camera say to each other, through two pipes.

Shape legend: T frames, S side of what the model sees.
"""

from __future__ import annotations

import struct
from typing import IO, Any

import msgspec

LENGTH = struct.Struct("<Q")  # of the message that follows


class Order(msgspec.Struct):
    """What a reader reads, and how it cuts clips from it: the first that it is told."""

    source: str
    classes: list[str]
    """That the demo draws."""
    frames: int
    size: int
    seconds: float
    every: float
    drop: str
    repeat: bool
    silence: float


class Ask(msgspec.Struct):
    """For one clip, now or as soon as there is one."""

    next_seconds: float
    """From now until the clip after this one will be asked for; 0: at once."""


class Beat(msgspec.Struct, tag="beat"):
    """It lives; since it was started:"""

    frames: int
    frames_dropped: int
    clips_dropped: int
    waits: bool = False
    """Nothing more is read until a clip is asked for."""


class Taken(msgspec.Struct, tag="taken"):
    """A clip, uint8 [T,S,S,3]."""

    pixels: bytes
    captured: float
    """Its last frame, in seconds since 1970."""


class Said(msgspec.Struct, tag="said"):
    text: str


class Over(msgspec.Struct, tag="over"):
    """The last that it says."""

    why: str
    """Empty: the source has come to its end."""
    again: bool
    """Whether it makes sense to open it again."""


News = Beat | Taken | Said | Over


def send(pipe: IO[bytes], message: object) -> None:
    body = msgspec.msgpack.encode(message)
    pipe.write(LENGTH.pack(len(body)) + body)
    pipe.flush()


def receive(pipe: IO[bytes], kind: Any) -> Any:
    """None: nothing more comes, since the other one has ended, in the middle of a message or not."""
    head = pipe.read(LENGTH.size)
    body = pipe.read(LENGTH.unpack(head)[0]) if len(head) == LENGTH.size else b""
    whole = body and len(body) == LENGTH.unpack(head)[0]
    return msgspec.msgpack.decode(body, type=kind) if whole else None
