"""Where the frames of a view come from: decoded from the video, or kept by an earlier caching job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np

from distill.clips import views
from distill.clips.decode import read_frames
from distill.clips.manifest import Manifest
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.shards import ROWS, Shards

SHARD_BYTES = 32 << 20  # of frames that one view of a shard holds, so that a caching job fits in memory


class Frames(Protocol):
    def get(self, index: int, views: Sequence[int]) -> np.ndarray:
        """Views of one clip: uint8 [V,T,3,size,size]."""


class DecodedFrames:
    """Decodes on demand, once for all the views asked for; every process and worker opens files for itself."""

    def __init__(self, manifest: Manifest, options: views.ViewOptions, spec: ClipSpec) -> None:
        self.manifest, self.options, self.spec = manifest, options, spec

    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        clip = self.manifest.clips[index]
        try:
            video = read_frames(clip.path)
        except (ValueError, av.FFmpegError) as error:
            raise UserError(f"clip {clip.id} cannot be decoded ({clip.path}): {error}") from error
        drawn = (views.draw(self.options, clip.id, number) for number in numbers)
        return np.stack([views.apply(view, video, self.spec) for view in drawn])


class StoredFrames:
    """Reads what the caching job kept."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def get(self, index: int, numbers: Sequence[int]) -> np.ndarray:
        return self.shards.read("frames", np.full(len(numbers), index), np.asarray(numbers))


def identity(manifest: Manifest, options: views.ViewOptions, spec: ClipSpec) -> dict[str, Any]:
    """What a frame depends on. The number of views is not part of it: more can join."""
    drawn = {key: value for key, value in asdict(options).items() if key != "count"}
    drawn["version"] = views.VERSION
    return {"clips": manifest.digest, "views": drawn, "spec": asdict(spec), "decoder": "pyav"}


def frame_bytes(spec: ClipSpec) -> int:
    """Size of one view of one clip."""
    return spec.frames * 3 * spec.size**2


def frame_shards(root: Path, manifest: Manifest, options: views.ViewOptions, spec: ClipSpec) -> Shards:
    rows = max(1, min(ROWS, SHARD_BYTES // frame_bytes(spec)))
    return Shards(root, "frames", identity(manifest, options, spec), len(manifest.clips), rows)
