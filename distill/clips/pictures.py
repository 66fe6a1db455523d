"""Clips that are kept as pictures: a folder of image files, or one packed file that holds every frame.

A packed file is safetensors: `raw` holds "frames" uint8 [n,H,W,3]; `jpeg` holds "bytes", all pictures one after the
other, and "ends", where each of them ends. Only the frames that are asked for are read from the disk.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill.clips.video import BrokenFileError

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PACKED = ".safetensors"
JPEG_QUALITY = 90


def listed(folder: str | Path) -> list[str]:
    """The picture files of a folder in the order of their names; numbers count as numbers."""
    names = [
        entry.name
        for entry in os.scandir(folder)
        if entry.name.lower().endswith(ENDINGS) and not entry.name.startswith("flow_")  # optical flow lies beside it
    ]
    if not names:
        raise BrokenFileError("is a folder without pictures")
    return sorted(names, key=lambda name: ([int(run) for run in _digits(name)], name))


def each_picture(path: str | Path) -> Iterator[np.ndarray]:
    """Every frame of a folder of pictures or a packed file, one at a time."""
    if Path(path).is_dir():
        yield from (_decode(Path(path, name)) for name in listed(path))
    else:
        for number in range(packed_frames(path)):
            yield from read_packed(path, [number]).values()


def _digits(name: str) -> list[str]:
    return "".join(c if c.isdigit() and c.isascii() else " " for c in name).split()


def read_folder(folder: str | Path, wanted: Sequence[int] | None) -> dict[int, np.ndarray]:
    """The pictures with these numbers, counted from 0 in the order of their names, or all of them."""
    names = listed(folder)
    numbers = range(len(names)) if wanted is None else [number for number in wanted if number < len(names)]
    return {number: _decode(Path(folder, names[number])) for number in numbers}


def _decode(source: Path | io.BytesIO) -> np.ndarray:
    try:
        with Image.open(source) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = source.name if isinstance(source, Path) else "a frame"
        raise BrokenFileError(f"has a picture that cannot be decoded ({name}: {error})") from error


def pack(frames: Iterable[np.ndarray], form: str, path: Path) -> None:
    """Keep a clip's frames, uint8 [H,W,3] each, in one file."""
    if form == "raw":
        save_file({"frames": np.stack(list(frames))}, path)
        return
    data, ends = encode(frames)
    save_file({"bytes": data, "ends": ends}, path)


def encode(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [H,W,3] each as JPEG: all pictures one after the other, and where each of them ends."""
    pictures = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=JPEG_QUALITY)
        pictures.append(stream.getvalue())
    return np.frombuffer(b"".join(pictures), np.uint8), np.cumsum([len(picture) for picture in pictures])


def decode(data: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """The pictures that `encode` made, uint8 [H,W,3] each."""
    starts = [0, *ends[:-1].tolist()]
    return [_decode(io.BytesIO(data[a:b].tobytes())) for a, b in zip(starts, ends.tolist(), strict=True)]


def read_packed(path: str | Path, wanted: Sequence[int] | None) -> dict[int, np.ndarray]:
    """The frames with these numbers of a packed file, or all of them."""
    try:
        with safe_open(path, "numpy") as file:
            if "frames" in file.keys():  # noqa: SIM118 - it is no dict
                rows = file.get_slice("frames")
                return {number: rows[number] for number in _within(wanted, rows.get_shape()[0])}
            data, ends = file.get_slice("bytes"), file.get_tensor("ends").tolist()
            return {
                number: _decode(io.BytesIO(data[ends[number - 1] if number else 0 : ends[number]].tobytes()))
                for number in _within(wanted, len(ends))
            }
    except SafetensorError as error:
        raise BrokenFileError(f"is not a packed clip that can be read ({error})") from error


def packed_frames(path: str | Path) -> int:
    """How many frames a packed file holds."""
    try:
        with safe_open(path, "numpy") as file:
            return int(file.get_slice("frames" if "frames" in file.keys() else "ends").get_shape()[0])  # noqa: SIM118
    except SafetensorError as error:
        raise BrokenFileError(f"is not a packed clip that can be read ({error})") from error


def _within(wanted: Sequence[int] | None, count: int) -> Sequence[int]:
    return range(count) if wanted is None else [number for number in wanted if number < count]
