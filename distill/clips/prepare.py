"""Copies of clips that are small and quick to decode: made once, read in every epoch.

A copy holds its clip's span of the file and nothing else, upright, with every frame of it, so that frame numbers mean
the same. `video` is H.264 with a keyframe every 16 frames, no pictures that wait for later ones and no costly filters;
`jpeg` and `raw` are packed files of pictures (distill/clips/pictures.py).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from safetensors import SafetensorError

from distill.clips.decode import pictures
from distill.clips.facts import Facts, stamp
from distill.clips.index import Index
from distill.clips.looking import look
from distill.clips.manifest import Clip, Manifest
from distill.clips.pictures import PACKED, pack
from distill.clips.video import SAME, BrokenFileError
from distill.errors import UserError
from distill.files import publish
from distill.randomness import number

FORMS = ("video", "jpeg", "raw")
VERSION = 1  # raise when a copy would come out otherwise
KEYFRAMES = 16  # frames from one keyframe to the next
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES)  # no fault of the clip
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

    def name(self, clip: Clip) -> str:
        """Each content has a copy of its own, so that two data sets may name their clips alike."""
        safe = "/".join(part.replace("..", "__") for part in clip.id.split("/"))
        ending = ".mp4" if self.form == "video" else PACKED
        return f"{safe}.{_origin(clip)}{ending}"

    def lacking(self, manifest: Manifest) -> list[int]:
        """The clips that should have a copy and have none, or one that changed."""
        known = self.index.read()

        def is_there(name: str) -> bool:
            return name in known and known[name].stamp == stamp(str(self.folder / name))

        return [i for i, clip in enumerate(manifest.clips) if not clip.broken and not is_there(self.name(clip))]

    def make(self, clip: Clip) -> Facts:
        """Copy one clip; what can be known of the copy comes back."""
        path = self.folder / self.name(clip)
        try:
            publish(path, lambda part: self._write(clip, part))
        except BrokenFileError as error:
            return Facts(trouble=f"could not be prepared: it {error}")
        except (OSError, SafetensorError, av.FFmpegError) as error:
            if getattr(error, "errno", DISK[0]) in DISK:
                raise UserError(f"{path} could not be written: {error}") from error
            return Facts(trouble=f"could not be prepared: {error}")
        facts = look(path)
        return facts if facts.frames == len(clip.span) else Facts(trouble=f"gave {facts.frames} of its frames")

    def _write(self, clip: Clip, path: Path) -> None:
        if self.form == "video":
            _encode(clip, path, self.short_side)
        else:
            pack((frame.to_ndarray() for frame in _shrunk(clip, self.short_side)), self.form, path)

    def instead_of(self, manifest: Manifest) -> Manifest:
        """The same clips, read from their copies."""
        known = self.index.read()
        clips, lacking = [], 0
        for clip in manifest.clips:
            facts = None if clip.broken else known.get(self.name(clip))
            lacking += facts is None and not clip.broken
            path = str(self.folder / self.name(clip)) if facts else clip.path
            clips.append(replace(clip, path=path, start=0.0, end=None, facts=facts) if facts else clip)
        if lacking:
            raise UserError(
                f"{lacking} of {len(manifest.clips)} clips have no copy in {self.folder}; "
                "run: distill clips with the same recipe and keys, and prepare=true"
            )
        return manifest.with_clips(clips)


def _origin(clip: Clip) -> str:
    """What a copy was made from: a content and a span of it."""
    assert clip.facts is not None
    return f"{number(clip.facts.digest, clip.start, clip.end):016x}"


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
    rate = Fraction(min(240.0, max(1.0, clip.facts.fps or 25))).limit_denominator(1001)
    options = SAME | {"crf": QUALITY, "tune": "fastdecode", "g": str(KEYFRAMES), "bf": "0"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(frames):
            if not number:
                stream.width, stream.height = frame.width, frame.height
            frame.pts, frame.time_base = number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
