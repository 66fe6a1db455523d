"""Video files to frames with PyAV, in the order that the ffmpeg command shows them.

Two ways to the same pictures. One after the other is always right: a packet that cannot be decoded is left out and
the rest goes on, as ffmpeg does. Skipping leaves undecoded what nobody asked for: pictures that no other picture is
built on, and whole stretches before a keyframe. It needs timestamps that name the frames, so it is used only on files
where it was tried (Facts.skips).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter

MOST_PIXELS = 1 << 26  # a damaged header may claim any size
OPTIONS = {"protocol_whitelist": "file", "max_pixels": str(MOST_PIXELS)}  # a playlist must not reach the network
# For x264: the same frames give the same bytes wherever. Else it computes as each processor does it fastest, shares its
# work out by their number, and with AVX-512 the same process says something else from one time to the next.
SAME = {"threads": "1", "x264-params": "cpu-independent=1"}


class BrokenFileError(ValueError):
    """Says in a few words why a file gives no frames."""


class Film:
    """An open video file: its first video stream. Lives in one process, inside a `with` block."""

    def __init__(self, path: str | Path) -> None:
        try:
            # The prefix keeps a name such as "concat:a" from being read as an address.
            self.container = av.open(f"file:{path}", metadata_errors="replace", options=OPTIONS)
        except (FileNotFoundError, PermissionError):
            raise
        except av.FFmpegError as error:
            raise BrokenFileError(f"is not a video that can be opened ({error.strerror})") from error
        if not self.container.streams.video:
            self.container.close()
            raise BrokenFileError("holds no video stream")
        self.stream = self.container.streams.video[0]
        self.decoder = self.stream.codec_context
        if self.decoder is None:
            self.container.close()
            raise BrokenFileError("holds video of an unknown kind")
        # Frame threads can deadlock on an early exit and cost more CPU than they save on short clips.
        self.stream.thread_type = "NONE"
        self.lost = 0  # packets that could not be decoded, so far

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()

    def packets(self) -> Iterator[Any]:
        """The stream's packets up to the end, or to where the file is cut; the last one is empty."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except (av.FFmpegError, IndexError):  # the index: a damaged file makes up streams on its way
                self.lost += 1
                yield None
                return
            yield packet

    def decode(self, packet: Any) -> list[av.VideoFrame]:
        """The frames that come out when a packet goes in; None asks for what is left."""
        try:
            return list(self.decoder.decode(packet))
        except av.FFmpegError:
            self.lost += 1
            return []

    def frames(self) -> Iterator[av.VideoFrame]:
        """Every frame that can be decoded."""
        for packet in self.packets():
            yield from self.decode(packet)


class Painter:
    """Makes frames of one file into RGB pictures: upright, and all of one size."""

    def __init__(self) -> None:
        # One for the file: setting up a colour conversion costs more than decoding a frame.
        self.reformatter = VideoReformatter()
        self.size: tuple[int, int] | None = None

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [H,W,3]"""
        self.size = self.size or (frame.width, frame.height)
        width, height = self.size  # a stream may change its size half-way
        rgb = self.reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1).to_ndarray()
        return np.rot90(rgb, frame.rotation // 90) if frame.rotation else rgb


def read_in_order(path: str | Path, wanted: Sequence[int] | None) -> dict[int, np.ndarray]:
    """The frames with these numbers, or all of them."""
    chosen, last = (None, None) if wanted is None else (set(wanted), max(wanted))
    paint, found = Painter(), dict[int, np.ndarray]()
    with Film(path) as film:
        for position, frame in enumerate(film.frames()):
            if position == 0:
                paint.size = (frame.width, frame.height)
            if chosen is None or position in chosen:
                found[position] = paint.picture(frame)
            if position == last:
                break
    return found


def read_skipping(path: str | Path, wanted: Sequence[int], frames: int) -> dict[int, np.ndarray]:
    """The frames with these numbers of a file that has `frames` of them, decoding as little as possible."""
    paint = Painter()
    with Film(path) as film:
        return {number: paint.picture(frame) for number, frame in skip_to(film, wanted, frames)}


def skip_to(film: Film, wanted: Sequence[int], frames: int) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames with these numbers, each with its number."""
    packets, times = timeline(film)
    if len(times) != frames:
        raise BrokenFileError(f"has {len(times)} frames where there were {frames}; it changed since it was looked at")
    numbers = {times[number]: number for number in wanted}
    for feed in _feeds(packets, numbers):
        for frame in _decode_feed(film, feed, numbers):
            assert frame.pts is not None  # else it would not be a wanted one
            yield numbers[frame.pts], frame


def timeline(film: Film) -> tuple[list[Any], list[int]]:
    """All packets in the order in which they are decoded, and the timestamps of the pictures that are shown."""
    packets = [packet for packet in film.packets() if packet is not None and packet.size]
    return packets, sorted(packet.pts for packet in packets if not packet.is_discard and packet.pts is not None)


def _feeds(packets: Sequence[Any], wanted: Mapping[int, int]) -> Iterator[Sequence[Any]]:
    """Runs of packets, each from a keyframe to the last wanted packet before a gap that is worth a jump."""
    places, starts, keys = [], [], list[int]()
    for place, packet in enumerate(packets):
        if packet.is_keyframe:
            keys.append(place)
        if packet.pts in wanted:
            places.append(place)
            # A picture that is shown before its keyframe was built on the stretch before that one.
            starts.append(next((key for key in reversed(keys) if packets[key].pts <= packet.pts), 0))
    # From here on nothing earlier than this is needed any more.
    starts = list(itertools.accumulate(reversed(starts), min))[::-1]
    begin, end = starts[0], starts[0]
    for place, start in zip(places, starts, strict=True):
        if start > end:
            yield packets[begin:end]
            begin = start
        end = place + 1
    yield packets[begin:end]


def _decode_feed(film: Film, feed: Sequence[Any], wanted: dict[int, int]) -> Iterator[av.VideoFrame]:
    for packet in feed:
        film.decoder.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from (frame for frame in film.decode(packet) if frame.pts in wanted)
    yield from (frame for frame in film.decode(None) if frame.pts in wanted)
    film.decoder.flush_buffers()
