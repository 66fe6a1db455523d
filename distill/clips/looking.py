"""One look at a file: decode it whole, once, and write down what training would otherwise find out again and again."""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np

from distill.clips.decoders import Traits, trouble
from distill.clips.facts import Facts, stamp
from distill.clips.pictures import PACKED, each_picture, listed
from distill.clips.video import BrokenFileError, Film, timeline

LARGEST = 256 << 20  # bytes; skipping holds a file's packets in memory
# Codecs whose pictures can be skipped by their timestamps; AV1 shows pictures that no packet of its own holds, and the
# first pictures after an HEVC keyframe may be built on what came before it.
SKIPPING = ("h264", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4")


def look(path: str | Path) -> Facts:
    """Everything there is to know of a file. A broken one is a fact too, never an exception."""
    state = stamp(str(path))
    try:
        facts = _look(path)
    except OSError as error:  # a disk that fails, a network that is away: the next look may find otherwise
        return Facts(trouble=error.strerror or str(error))
    except BrokenFileError as error:
        facts = Facts(trouble=str(error))
    except Exception as error:  # whatever a library makes of it: one odd file must not end a look at 240,000
        facts = Facts(trouble=f"cannot be looked at ({type(error).__name__}: {error})")
    return replace(facts, trouble=" ".join(facts.trouble.split()), stamp=state)


def _look(path: str | Path) -> Facts:
    if Path(path).is_dir():
        return _look_at_pictures(path, [Path(path, name) for name in listed(path)], "pictures")
    if Path(path).suffix == PACKED:
        return _look_at_pictures(path, [Path(path)], "packed")
    return _look_at_video(path)


def _look_at_pictures(path: str | Path, files: Sequence[Path], container: str) -> Facts:
    shapes = [picture.shape for picture in each_picture(path)]
    if len(set(shapes)) > 1:
        raise BrokenFileError("has pictures of several sizes")
    height, width = shapes[0][:2]
    size = sum(file.stat().st_size for file in files)
    return Facts(frames=len(shapes), width=width, height=height, container=container, bytes=size, digest=_digest(files))


def _look_at_video(path: str | Path) -> Facts:
    if not Path(path).stat().st_size:
        raise BrokenFileError("is empty")
    with Film(path) as film:
        seen = _decode_all(film)
        if not seen.sums:
            raise BrokenFileError("has no frame that can be decoded")
        width, height = seen.size[::-1] if seen.rotation % 180 else seen.size
        listed = film.stream.frames - seen.hidden if film.stream.frames else 0
        facts = Facts(
            frames=len(seen.sums),
            fps=_rate(film, seen.times if seen.timestamps else []),
            times=_uneven(film, seen.times) if seen.timestamps else (),
            width=width,
            height=height,
            rotation=seen.rotation,
            codec=film.decoder.codec.canonical_name,
            container=film.container.format.name,
            keyframes=seen.keyframes,
            timestamps=seen.timestamps,
            lost=max(film.lost, listed - len(seen.sums)) + seen.smeared,
            bytes=Path(path).stat().st_size,
            digest=_digest([Path(path)]),
        )
        traits = Traits(
            container=facts.container,
            codec=facts.codec,
            narrowest=min(seen.size),
            turned=facts.rotation != 0,
            streams=len(film.container.streams.video),
            endless=film.container.duration is None,
            reordered=film.decoder.has_b_frames,
            hidden=seen.hidden > 0,
            leading=seen.leading,
            resized=len(seen.sizes) > 1,
        )
    tried = _may_skip(facts) and not traits.resized
    skips = tried and _skips(path, seen)
    return replace(facts, skips=skips, avoid=trouble(replace(traits, unsafe=tried and not skips)))


@dataclass
class _Seen:
    """What one pass over a file shows."""

    times: list[int] = field(default_factory=list)  # of the frames that have one
    sums: list[int] = field(default_factory=list)  # a checksum of every frame
    size: tuple[int, int] = (0, 0)  # of the first frame, as it is stored
    sizes: set[tuple[int, int]] = field(default_factory=set)  # of all frames
    rotation: int = 0
    keyframes: int = 0
    hidden: int = 0  # packets whose picture is never shown
    leading: bool = False
    smeared: int = 0  # frames that the decoder patched up

    @property
    def timestamps(self) -> bool:
        return len(self.times) == len(self.sums) and all(a < b for a, b in itertools.pairwise(self.times))


def _decode_all(film: Film) -> _Seen:
    seen, key = _Seen(), None
    for packet in film.packets():
        if packet is not None and packet.size:
            if packet.is_keyframe:
                seen.keyframes += 1
                key = packet.pts
            elif seen.keyframes and None not in (key, packet.pts):
                seen.leading |= packet.pts < key
            seen.hidden += packet.is_discard
        for frame in film.decode(packet):
            if not seen.sums:
                seen.size, seen.rotation = (frame.width, frame.height), frame.rotation
            seen.sizes.add((frame.width, frame.height))
            if frame.pts is not None:
                seen.times.append(frame.pts)
            seen.sums.append(_sum(frame))
            seen.smeared += frame.is_corrupt
    return seen


def _rate(film: Film, times: Sequence[int]) -> float:
    """Frames a second: by the timestamps, or what the header says."""
    base = film.stream.time_base
    if base and len(times) > 1:
        return round(float((len(times) - 1) / ((times[-1] - times[0]) * base)), 4)
    rate = film.stream.average_rate or film.stream.guessed_rate
    return round(float(rate), 4) if rate else 0.0


def _uneven(film: Film, times: Sequence[int]) -> tuple[float, ...]:
    """The seconds of the frames where they are not evenly spaced, nothing where they are."""
    seconds = (np.array(times) - times[0]) * float(film.stream.time_base or 0)
    even = np.linspace(0, seconds[-1], len(seconds))
    step = seconds[-1] / max(1, len(seconds) - 1)
    return tuple(np.round(seconds, 4).tolist()) if np.abs(seconds - even).max() > step / 2 else ()


def _may_skip(facts: Facts) -> bool:
    plain = facts.codec in SKIPPING and facts.container != "avi" and facts.bytes < LARGEST
    return plain and facts.timestamps and not facts.lost


def _skips(path: str | Path, seen: _Seen) -> bool:
    """Whether leaving out what is not wanted gives the same pictures: tried, on the whole file.

    Every stretch is decoded by itself from its keyframe, without the pictures that claim that no other is built on
    them. If all others come out as before, any choice of pictures can be had that way.
    """
    expected = dict(zip(seen.times, seen.sums, strict=True))
    with Film(path) as film:
        packets, shown = timeline(film)
        if shown != seen.times:
            return False
        film.decoder.skip_frame = "NONREF"
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        for key, stop in zip(keys, [*keys[1:], len(packets)], strict=True):
            decoded = (frame for packet in (*packets[key:stop], None) for frame in film.decode(packet))
            sums = {frame.pts: _sum(frame) for frame in decoded if frame.pts is not None}
            film.decoder.flush_buffers()
            first = packets[key].pts
            # What is shown before its keyframe was built on the stretch before.
            right = all(sums[time] == expected[time] for time in sums.keys() & expected.keys() if time >= first)
            if not right or (first in expected and first not in sums):
                return False
    return bool(keys) and keys[0] == 0


def _sum(frame: av.VideoFrame) -> int:
    """A checksum of a frame's planes, without the padding at the ends of their lines."""
    total = 0
    for plane in frame.planes:
        wide = plane.width * -(-frame.format.components[0].bits // 8)
        data = np.frombuffer(memoryview(plane), np.uint8)
        if plane.line_size and data.size == plane.height * plane.line_size:  # a palette is a plane without lines
            data = data.reshape(plane.height, plane.line_size)[:, :wide]
        total = zlib.crc32(data.tobytes(), total)
    return total


def _digest(files: Sequence[Path]) -> str:
    summed = hashlib.blake2b(digest_size=8)
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                summed.update(block)
    return summed.hexdigest()
