"""Small videos of every awkward kind, made on the spot."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def pictures(count: int, width: int = 64, height: int = 48, seed: int = 0) -> np.ndarray:
    """Frames that differ from each other everywhere, and that codecs can predict from each other."""
    chance = np.random.default_rng(seed)
    ground = chance.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).repeat(8, 0).repeat(8, 1)
    frames = []
    for number in range(count):
        frame = np.roll(ground, (number, 2 * number), (0, 1))[:height, :width].astype(np.int64)
        frame[: height // 4, : width // 4] = (number * 11) % 256
        frames.append(np.clip(frame + chance.integers(-6, 7, frame.shape), 0, 255).astype(np.uint8))
    return np.stack(frames)


def write(
    path: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,
    streams: int = 1,
) -> Path:
    """Encode frames; `times` are their timestamps in 1/25 s."""
    with av.open(str(path), "w") as container:
        tracks = [container.add_stream(codec, rate=25, options=dict(options or {})) for _ in range(streams)]
        for track in tracks:
            track.width, track.height, track.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        for place, track in enumerate(tracks):
            for number, picture in enumerate(frames if not place else frames[::-1][:-1]):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = (times[number] if times else number), Fraction(1, 25)
                container.mux(track.encode(frame))
            container.mux(track.encode())
    return path


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        track: Any = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        for _ in range(4):
            container.mux(track.encode(silence))
        container.mux(track.encode())
    return path


def cut_without_decoding(source: Path, path: Path, first: int) -> Path:
    """As `ffmpeg -ss X -c copy` cuts: earlier frames stay in the file, and an edit list hides them."""
    with av.open(str(source)) as given, av.open(str(path), "w") as out:
        track = given.streams.video[0]
        copy = out.add_stream_from_template(track)
        ticks = 0
        for packet in given.demux(track):
            if packet.dts is None or packet.pts is None:
                continue
            ticks = ticks or int(1 / (packet.time_base * 25))
            packet.pts -= first * ticks
            packet.dts -= first * ticks
            packet.stream = copy
            out.mux(packet)
    return path


def turn(path: Path, quarter_turns: int) -> Path:
    """Write a rotation into an .mp4's track header, as telephones do."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0: the matrix comes after 40 bytes
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    one = 1 << 16
    data[place : place + 36] = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    path.write_bytes(bytes(data))
    return path


def flip_bits(data: bytes, places: list[int], first: int = 0) -> bytes:
    """Change single bits, none of them in the first bytes."""
    changed = bytearray(data)
    for place in places:
        at = first + place % max(1, (len(data) - first))
        changed[at] ^= 1 << (place % 8)
    return bytes(changed)
