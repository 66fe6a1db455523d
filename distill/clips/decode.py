"""Video files to frames. Frames are counted 0..n-1 in presentation order, as the ffmpeg command shows them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter


def _frames(path: str | Path) -> Iterator[av.VideoFrame]:
    """Every frame of the first video stream, in order."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path} holds no video stream")
        stream = container.streams.video[0]
        # Frame threads can deadlock on an early exit and cost more CPU than they save on short clips.
        stream.thread_type = "NONE"
        yield from container.decode(stream)


def count_frames(path: str | Path) -> int:
    """How many frames can really be decoded; headers lie."""
    return sum(1 for _ in _frames(path))


def read_frames(path: str | Path, indices: Iterable[int] | None = None) -> np.ndarray:
    """The frames at `indices` (any order, repeats allowed; None = all of them) as uint8 [n, H, W, 3]."""
    wanted = None if indices is None else list(indices)
    last = None if wanted is None else max(wanted)
    kept: dict[int, np.ndarray] = {}
    convert = VideoReformatter()  # one for the clip: setting up a colour conversion costs more than decoding a frame
    for position, frame in enumerate(_frames(path)):
        if wanted is None or position in wanted:
            picture = convert.reformat(frame, format="rgb24", threads=1).to_ndarray()
            kept[position] = np.rot90(picture, frame.rotation // 90) if frame.rotation else picture
        if position == last:
            break
    if wanted is None:
        wanted = list(range(len(kept)))
    missing = sorted(set(wanted) - set(kept))
    if missing or not kept:
        raise ValueError(f"{path} has no frame {missing[0] if missing else 0}")
    return np.stack([kept[position] for position in wanted])
