"""The decoders that a recipe may ask for instead of PyAV, and the files with which each of them is known to go wrong.

On those files PyAV is used and a warning says so, once for each reason. Every entry of TROUBLE was seen: wrong frames
without a word, a file that is refused, or a loop that never ends and that only SIGKILL stops.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from distill.clips.facts import Facts
from distill.clips.video import BrokenFileError
from distill.errors import UserError

DECODERS = ("pyav", "decord", "torchcodec")


@dataclass(frozen=True)
class Traits:
    """What tells the files apart with which a decoder goes wrong."""

    container: str
    codec: str
    narrowest: int = 64  # pixels of the shorter side
    turned: bool = False
    streams: int = 1
    endless: bool = False  # says nothing of its duration
    reordered: bool = False  # pictures are decoded in another order than they are shown in
    hidden: bool = False  # an edit list leaves pictures out
    leading: bool = False  # pictures that are shown before the keyframe they come after
    resized: bool = False  # pictures of several sizes
    unsafe: bool = False  # decoding from a keyframe gives other pictures than decoding from the start


TROUBLE: Mapping[str, Mapping[str, Callable[[Traits], bool]]] = MappingProxyType(
    {
        "decord": {
            "never returns from MPEG transport streams": lambda file: file.container == "mpegts",
            "mixes up frames of AVI files": lambda file: file.container == "avi" and file.reordered,
            "gives neighbours of HEVC frames": lambda file: file.codec == "hevc",
            "cannot decode AV1": lambda file: file.codec == "av1",
            "cannot open files without a duration": lambda file: file.endless,
            "counts frames that an edit list hides": lambda file: file.hidden,
            "takes another video stream than the first": lambda file: file.streams > 1,
            "starts at keyframes that are no clean start": lambda file: file.leading or file.unsafe,
            "cannot turn pictures of every size": lambda file: file.turned,
            "cannot copy very small pictures": lambda file: file.narrowest < 16,
            "cannot hold pictures of several sizes": lambda file: file.resized,
        },
        "torchcodec": {
            "is off by one or two frames in AVI files": lambda file: file.container == "avi",
            "repeats frames of MPEG transport streams": lambda file: file.container == "mpegts",
            "takes another video stream than the first": lambda file: file.streams > 1,
            "starts at keyframes that are no clean start": lambda file: file.unsafe,
            "cannot hold pictures of several sizes": lambda file: file.resized,
        },
    }
)


def trouble(traits: Traits) -> dict[str, str]:
    """The decoders that such a file should be kept from, each with the reason."""
    reasons = {
        decoder: next((why for why, applies in kinds.items() if applies(traits)), None)
        for decoder, kinds in TROUBLE.items()
    }
    return {decoder: why for decoder, why in reasons.items() if why}


def check(decoder: str) -> None:
    """Refuse a decoder that is unknown or cannot be had here."""
    if decoder not in DECODERS:
        raise UserError(f"clips.decoder is {decoder!r}; known: {', '.join(DECODERS)}")
    if decoder == "decord" and _installed("decord") and _installed("decord2"):
        raise UserError("clips.decoder=decord: decord and decord2 are both installed and overwrite each other; "
                        "uninstall both, then install decord")  # fmt: skip
    try:
        _module(decoder)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(
            f"clips.decoder={decoder} cannot be used here ({str(error).strip().splitlines()[0]}); "
            f"pip install {decoder}, or say clips.decoder=pyav"
        ) from error


def _installed(package: str) -> bool:
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _module(decoder: str) -> Any:
    """The library, imported no earlier than it is asked for."""
    return importlib.import_module({"pyav": "av", "decord": "decord", "torchcodec": "torchcodec.decoders"}[decoder])


def choose(decoder: str, path: str | Path, facts: Facts) -> str:
    """The decoder to use for a file: the one asked for, or PyAV where that one is known to go wrong."""
    why = "fails on damaged files" if facts.lost else facts.avoid.get(decoder)
    if why is None:
        return decoder
    _warn(f"{decoder} {why}; PyAV reads such files instead, the first of them {path}", f"{decoder} {why}")
    return "pyav"


_warned: set[str] = set()


def _warn(text: str, key: str) -> None:
    if key not in _warned:
        _warned.add(key)
        warnings.warn(text, RuntimeWarning, stacklevel=2)


def read(decoder: str, path: str | Path, wanted: Sequence[int]) -> dict[int, np.ndarray]:
    """The frames with these numbers, which rise."""
    try:
        pictures = _read_decord(path, wanted) if decoder == "decord" else _read_torchcodec(path, wanted)
    except Exception as error:  # decord's own error is not even a RuntimeError
        raise BrokenFileError(f"cannot be read by {decoder} ({str(error).strip().splitlines()[0]})") from error
    return dict(zip(wanted, pictures, strict=True))


def _read_decord(path: str | Path, wanted: Sequence[int]) -> np.ndarray:
    decord = _module("decord")
    frames: np.ndarray = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1).get_batch(wanted).asnumpy()
    return frames


def _read_torchcodec(path: str | Path, wanted: Sequence[int]) -> np.ndarray:
    open_video = _module("torchcodec").VideoDecoder
    reader = open_video(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
    frames: np.ndarray = reader.get_frames_at(list(wanted)).data.numpy()
    return frames
