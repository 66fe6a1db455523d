"""Where the frames of a view come from: decoded from the clip's file, or kept by an earlier caching job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from xxhash import xxh3_64_intdigest

from distill.clips import views
from distill.clips.decode import read_each
from distill.clips.facts import stamp
from distill.clips.manifest import Manifest
from distill.clips.pictures import decode, encode
from distill.clips.video import BrokenFileError
from distill.clips.workers import note
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.shards.grid import Shards

SHARD_BYTES = 32 << 20  # of frames that one view of a shard holds, so that a caching job fits in memory
FORMS = ("raw", "jpeg")
SEEN = 20  # bytes of Clips.seen for a view
DRAWN = 16  # of them that tell what the view drew


class ClipError(UserError):
    """A clip that gives no frames; says which, where its file is, and why, in one line whatever the names."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class Frames(Protocol):
    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        """Views of one clip: uint8 [V,T,3,size,size]."""

    def seen(self, index: int, numbers: Sequence[int], frames: np.ndarray) -> np.ndarray:
        """Of the frames that `get` gave, uint8 [V,20]: what each view drew, and a checksum; see Clips.seen."""


class DecodedFrames:
    """Decodes on demand, once for all the views asked for; every process and worker opens files for itself."""

    def __init__(
        self,
        manifest: Manifest,
        options: views.ViewOptions,
        spec: ClipSpec,
        decoder: str = "pyav",
        coloured: bool = True,
    ) -> None:
        """Without `coloured` a view's change of colour is left to whoever asked."""
        self.manifest, self.options, self.spec, self.decoder = manifest, options, spec, decoder
        self.coloured = coloured

    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        return self.render(index, numbers, [self.spec])[0]

    def seen(self, index: int, numbers: Sequence[int], frames: np.ndarray) -> np.ndarray:
        clip = self.manifest.clips[index].id
        drawn = [views.pack(views.draw(self.options, clip, number)) for number in numbers]
        sums = [checksum(view) if self.coloured else np.zeros(4, np.uint8) for view in frames]
        return np.concatenate([np.stack(drawn), np.stack(sums)], 1)

    def render(self, index: int, numbers: Sequence[int], specs: Sequence[ClipSpec]) -> list[np.ndarray]:
        """The same views as several models want to see them, from one decode: [V,T,3,size,size] for each."""
        clip = self.manifest.clips[index]
        note(index)
        if clip.facts is None:
            raise ClipError(f"clip {clip.id} has not been looked at ({clip.path}); run distill clips first")
        if clip.broken:
            raise ClipError(f"clip {clip.id}: {clip.path} {clip.facts.trouble}")
        if clip.facts.stamp and stamp(clip.path) != clip.facts.stamp:
            raise ClipError(f"clip {clip.id}: {clip.path} changed since distill clips looked at it")
        span, drawn = clip.span, [views.draw(self.options, clip.id, number) for number in numbers]
        window = max(spec.frames for spec in specs) * self.options.stride
        places = [
            [span.start + views.indices(view, self.options, len(span), spec.frames, window) for view in drawn]
            for spec in specs
        ]
        wanted = {int(number) for row in places for place in row for number in place}
        try:
            video = read_each(clip.path, wanted, self.decoder, clip.facts)
        except BrokenFileError as error:
            raise ClipError(f"clip {clip.id}: {clip.path} {error}") from error
        except OSError as error:
            raise ClipError(f"clip {clip.id}: {clip.path} cannot be opened ({error.strerror})") from error
        drawn = drawn if self.coloured else [views.uncoloured(view) for view in drawn]
        return [
            _stack([views.cut(v, [video[n] for n in place], spec.size) for v, place in zip(drawn, row, strict=True)])
            for spec, row in zip(specs, places, strict=True)
        ]


def _stack(videos: list[np.ndarray]) -> np.ndarray:
    """[V,...] of V videos; one alone is not copied, since memory's first touch costs as much as a crop."""
    return videos[0][None] if len(videos) == 1 else np.stack(videos)


@dataclass(frozen=True)
class Kept:
    """Where frames are kept, and how."""

    folder: Path
    form: str = "raw"
    remote: str = ""


class StoredFrames:
    """Reads what the caching job kept."""

    def __init__(self, shards: Shards, form: str = "raw") -> None:
        self.shards, self.form = shards, form

    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        keys = np.full(len(numbers), index), np.asarray(numbers)
        raw = ["frames"] if self.form == "raw" else []
        seen, *frames = self.shards.read(["seen", *raw], *keys)
        if not seen.any(1).all():
            raise ClipError(f"clip number {index} could not be read when frames were cached")
        if frames:
            return frames[0]
        return np.stack([self._decoded(index, number) for number in numbers])

    def _decoded(self, index: int, number: int) -> np.ndarray:
        """[T,3,size,size]"""
        fields, row = self.shards.record("", index, number)
        start, ends = int(fields["starts"][row]), fields["ends"][row]
        pictures = decode(fields["bytes"][start : start + int(ends[-1])], ends)
        return np.ascontiguousarray(np.stack(pictures).transpose(0, 3, 1, 2))

    def seen(self, index: int, numbers: Sequence[int], frames: np.ndarray) -> np.ndarray:
        (found,) = self.shards.read(["seen"], np.full(len(numbers), index), np.asarray(numbers))
        if self.form != "raw":  # pictures come out of a JPEG a little different
            found[:, DRAWN:] = np.stack([checksum(view) for view in frames])
        return found


def stored(frames: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """One view [T,3,size,size] as it is kept."""
    if form == "raw":
        return {"frames": frames}
    data, ends = encode(frames.transpose(0, 2, 3, 1))
    return {"bytes": data, "ends": ends}


def together(views: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """What `stored` made of the clips of a shard as the fields of it."""
    if "frames" in views[0]:
        return {"frames": np.stack([view["frames"] for view in views])}
    sizes = [len(view["bytes"]) for view in views]
    return {
        "bytes": np.concatenate([view["bytes"] for view in views]),
        "starts": np.cumsum([0, *sizes[:-1]]),
        "ends": np.stack([view["ends"] for view in views]),
    }


def checksum(frames: np.ndarray) -> np.ndarray:
    """Of one view's frames, in four bytes that are never all zero."""
    value = xxh3_64_intdigest(np.ascontiguousarray(frames).data) & 0xFFFFFFFF
    return np.array([value or 1], "<u4").view(np.uint8)


def blank(views: int, spec: ClipSpec) -> np.ndarray:
    """What stands for the views of a clip that gives no frames."""
    return np.zeros((views, spec.frames, 3, spec.size, spec.size), np.uint8)


def unseen(views: int) -> np.ndarray:
    """What stands for `seen` of a clip that gives no frames."""
    return np.zeros((views, SEEN), np.uint8)


def identity(options: views.ViewOptions, spec: ClipSpec, decoder: str) -> dict[str, Any]:
    """What a clip's frames depend on. How many views and which clips there are is not part of it: more can join."""
    drawn = {key: value for key, value in asdict(options).items() if key not in ("count", "test_clips", "test_crops")}
    drawn["version"] = views.VERSION
    return {"views": drawn, "spec": asdict(spec), "decoder": decoder}


def frame_bytes(spec: ClipSpec) -> int:
    """Size of one view of one clip."""
    return spec.frames * 3 * spec.size**2


def frame_shards(
    kept: Kept, manifest: Manifest, options: views.ViewOptions, spec: ClipSpec, decoder: str = "pyav"
) -> Shards:
    about = identity(options, spec, decoder) | {"form": kept.form}
    most = max(1, SHARD_BYTES // frame_bytes(spec))
    return Shards(kept.folder, "frames", about, manifest.keys, most=most, remote=kept.remote)
