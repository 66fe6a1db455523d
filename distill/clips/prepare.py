"""Copies of clips that are small and quick to decode: made once, read in every epoch.

A copy holds its clip's span of the file and nothing else, upright, with every frame of it, so that frame numbers mean
the same. `video` is H.264 with a keyframe every 16 frames, no pictures that wait for later ones and no costly filters;
`jpeg` and `raw` are packed files of pictures (distill/clips/pictures.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from distill.clips.decode import pictures
from distill.clips.facts import Facts
from distill.clips.index import Entry, Index
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.pictures import PACKED, pack
from distill.clips.video import BrokenFileError
from distill.errors import UserError
from distill.files import publish

FORMS = ("video", "jpeg", "raw")
VERSION = 1  # raise when a copy would come out otherwise
KEYFRAMES = 16  # frames from one keyframe to the next
QUALITY = "20"  # x264's scale: 0 is lossless, 23 the default


class Copies:
    """Where the copies of one form and size lie."""

    def __init__(self, cache: Path, form: str, short_side: int) -> None:
        if form not in FORMS:
            raise UserError(f"clips.frames is {form!r}; known: {', '.join(FORMS)}")
        if short_side < 16:
            raise UserError(f"clips.short_side is {short_side}; it is at least 16 pixels")
        self.form, self.short_side = form, short_side
        self.folder = cache / "prepared" / f"{form}-{short_side}-{VERSION}"
        self.index = Index(self.folder / "index.jsonl")

    def path(self, clip: Clip) -> Path:
        safe = "/".join(part.replace("..", "__") for part in clip.id.split("/"))
        return self.folder / f"{safe}{'.mp4' if self.form == 'video' else PACKED}"

    def lacking(self, manifest: Manifest) -> list[int]:
        """The clips that should have a copy and have none, or one of another file."""
        entries = self.index.read()
        return [
            index
            for index, clip in enumerate(manifest.clips)
            if not clip.broken and (clip.id not in entries or entries[clip.id].stamp != _origin(clip))
        ]

    def make(self, clip: Clip) -> Facts:
        """Copy one clip; what can be known of the copy comes back."""
        path = self.path(clip)
        try:
            publish(path, lambda part: self._write(clip, part))
        except (BrokenFileError, av.FFmpegError) as error:
            return Facts(trouble=f"could not be prepared: {error}")
        return look(path)

    def _write(self, clip: Clip, path: Path) -> None:
        if self.form == "video":
            _encode(clip, path, self.short_side)
        else:
            pack((frame.to_ndarray() for frame in _shrunk(clip, self.short_side)), self.form, path)

    def entry(self, clip: Clip, facts: Facts) -> Entry:
        return Entry(str(self.path(clip)), _origin(clip), facts)

    def instead_of(self, manifest: Manifest) -> Manifest:
        """The same clips, read from their copies."""
        entries = self.index.read()
        lacking = len(self.lacking(manifest))
        if lacking:
            raise UserError(
                f"{lacking} of {len(manifest.clips)} clips have no copy in {self.folder}; "
                "run: distill clips with the same recipe and keys, and prepare=true"
            )
        return manifest.with_clips(
            clip
            if clip.broken
            else replace(clip, path=entries[clip.id].path, start=0.0, end=None, facts=entries[clip.id].facts)
            for clip in manifest.clips
        )


def _origin(clip: Clip) -> str:
    """What a copy was made from."""
    assert clip.facts is not None
    return f"{clip.facts.digest}-{clip.start}-{clip.end}"


def fitted(width: int, height: int, short_side: int) -> tuple[int, int]:
    """The size of a copy: never larger than the original, and even, as H.264 wants it."""
    scale = min(1.0, short_side / min(width, height))
    return max(2, round(width * scale / 2) * 2), max(2, round(height * scale / 2) * 2)


def _shrunk(clip: Clip, short_side: int) -> Iterator[av.VideoFrame]:
    """The frames of a clip's span at the size of the copy."""
    assert clip.facts is not None
    convert = VideoReformatter()
    for picture in pictures(clip.path, clip.span, clip.facts):
        width, height = fitted(picture.shape[1], picture.shape[0], short_side)
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        yield convert.reformat(frame, width, height, interpolation="BICUBIC", threads=1)


def _encode(clip: Clip, path: Path, short_side: int) -> None:
    assert clip.facts is not None
    frames = _shrunk(clip, short_side)
    rate = Fraction(clip.facts.fps or 25).limit_denominator(1001)
    options = {"crf": QUALITY, "tune": "fastdecode", "g": str(KEYFRAMES), "bf": "0", "threads": "1"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if not number:
                stream.width, stream.height = frame.width, frame.height
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
