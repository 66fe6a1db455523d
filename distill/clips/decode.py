"""A clip's frames, whatever holds them: a video, a folder of pictures, or a packed file.

Frames are counted 0..n-1 in the order in which they are shown, as the ffmpeg command counts them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np

from distill.clips import decoders
from distill.clips.facts import Facts
from distill.clips.looking import look
from distill.clips.pictures import PACKED, listed, packed_frames, read_folder, read_packed
from distill.clips.video import BrokenFileError, Film, Painter, read_in_order, read_skipping, skip_to


def count_frames(path: str | Path) -> int:
    """How many frames can really be decoded; headers lie."""
    if Path(path).is_dir():
        return len(listed(path))
    if Path(path).suffix == PACKED:
        return packed_frames(path)
    with Film(path) as film:
        return sum(1 for _ in film.frames())


def read_frames(
    path: str | Path, indices: Iterable[int] | None = None, decoder: str = "pyav", facts: Facts | None = None
) -> np.ndarray:
    """The frames at `indices` (any order, repeats allowed; None = all of them) as uint8 [n,H,W,3], upright.

    `facts` is what is known of the file from an earlier look; it makes reading faster, never different. A file that
    cannot give these frames raises BrokenFileError, which says why in a few words.
    """
    asked = None if indices is None else [int(index) for index in indices]
    found = read_each(path, asked, decoder, facts)
    frames = list(found.values()) if asked is None else [found[number] for number in asked]
    return np.stack(frames)


def read_each(
    path: str | Path, wanted: Collection[int] | None, decoder: str = "pyav", facts: Facts | None = None
) -> dict[int, np.ndarray]:
    """The same frames under their numbers, each by itself: uint8 [H,W,3], all of one size."""
    if wanted is not None and (not wanted or min(wanted) < 0):
        raise ValueError(f"frames are counted from 0, and at least one is asked for: {wanted}")
    found = _read(path, None if wanted is None else sorted(set(wanted)), decoder, facts)
    missing = [number for number in wanted or [0] if number not in found]
    if missing:
        raise BrokenFileError(
            f"has no frame {missing[0]}" if found or missing[0] else "has no frame that can be decoded"
        )
    if len({frame.shape for frame in found.values()}) > 1:
        raise BrokenFileError("has pictures of several sizes")
    return found


def _read(path: str | Path, wanted: list[int] | None, decoder: str, facts: Facts | None) -> dict[int, np.ndarray]:
    if Path(path).is_dir():
        return read_folder(path, wanted)
    if Path(path).suffix == PACKED:
        return read_packed(path, wanted)
    if decoder != "pyav" and wanted is not None:
        facts = facts or look(path)  # only a look tells which decoder is right for a file
        if not facts.trouble and decoders.choose(decoder, path, facts) == decoder:
            return decoders.read(decoder, path, wanted)
    if facts is not None and facts.skips and wanted is not None:
        return read_skipping(path, wanted, facts.frames)
    return read_in_order(path, wanted)


def pictures(path: str | Path, span: range, facts: Facts) -> Iterator[np.ndarray]:
    """Frames in a row, one at a time: uint8 [H,W,3]."""
    if Path(path).is_dir() or Path(path).suffix == PACKED:
        for number in span:
            yield read_frames(path, [number])[0]
        return
    paint = Painter()
    with Film(path) as film:
        if facts.skips:
            yield from (paint.picture(frame) for _, frame in skip_to(film, span, facts.frames))
            return
        for number, frame in enumerate(film.frames()):
            if number == 0:
                paint.size = (frame.width, frame.height)
            if number in span:
                yield paint.picture(frame)
            if number >= span[-1]:
                return
