"""Where the frames of a view come from: decoded from the clip's file, or kept by an earlier caching job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distill.clips import views
from distill.clips.decode import read_each
from distill.clips.facts import stamp
from distill.clips.manifest import Manifest
from distill.clips.video import BrokenFileError
from distill.clips.workers import note
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.shards import ROWS, Shards

SHARD_BYTES = 32 << 20  # of frames that one view of a shard holds, so that a caching job fits in memory


class ClipError(UserError):
    """A clip that gives no frames; says which, where its file is, and why, in one line whatever the names."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split()))


class Frames(Protocol):
    def get(self, index: int, views: Sequence[int]) -> np.ndarray:
        """Views of one clip: uint8 [V,T,3,size,size]."""


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
            _together([views.cut(v, [video[n] for n in place], spec.size) for v, place in zip(drawn, row, strict=True)])
            for spec, row in zip(specs, places, strict=True)
        ]


def _together(videos: list[np.ndarray]) -> np.ndarray:
    """[V,...] of V videos; one alone is not copied, since memory's first touch costs as much as a crop."""
    return videos[0][None] if len(videos) == 1 else np.stack(videos)


class StoredFrames:
    """Reads what the caching job kept."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        return self.shards.read("frames", np.full(len(numbers), index), np.asarray(numbers))


def blank(views: int, spec: ClipSpec) -> np.ndarray:
    """What stands for the views of a clip that gives no frames."""
    return np.zeros((views, spec.frames, 3, spec.size, spec.size), np.uint8)


def identity(manifest: Manifest, options: views.ViewOptions, spec: ClipSpec, decoder: str) -> dict[str, Any]:
    """What a frame depends on. How many views there are is not part of it: more can join."""
    drawn = {key: value for key, value in asdict(options).items() if key not in ("count", "test_clips", "test_crops")}
    drawn["version"] = views.VERSION
    return {"clips": manifest.digest, "views": drawn, "spec": asdict(spec), "decoder": decoder}


def frame_bytes(spec: ClipSpec) -> int:
    """Size of one view of one clip."""
    return spec.frames * 3 * spec.size**2


def frame_shards(
    root: Path, manifest: Manifest, options: views.ViewOptions, spec: ClipSpec, decoder: str = "pyav"
) -> Shards:
    rows = max(1, min(ROWS, SHARD_BYTES // frame_bytes(spec)))
    return Shards(root, "frames", identity(manifest, options, spec, decoder), len(manifest.clips), rows)
