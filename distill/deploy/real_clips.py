"""Real clips as a camera's software would hand them to an exported file: one plain view of each, in bytes.

Shape legend: N clips, T frames, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np

from distill.clips.batches import evaluation_batches
from distill.clips.clipset import ClipSet, open_clips, open_manifest
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.randomness import generator
from distill.recipe import Recipe

TOGETHER = 8  # clips that are decoded at a time


@dataclass(frozen=True)
class RealClips:
    frames: np.ndarray  # uint8 [N,T,H,W,3]
    labels: np.ndarray  # int64 [N]; -1 = unlabelled

    def __len__(self) -> int:
        return len(self.frames)


def plain_clips(recipe: Recipe, spec: ClipSpec) -> ClipSet:
    """The recipe's clips from its files, one view of each, at the student's own size: the real-time protocol."""
    options = replace(recipe.clips, labelled=1.0)
    manifest = open_manifest(options, Path(recipe.cache.folder), recipe.seed)
    return open_clips(manifest, options, spec, None).seen_once()


def take(clips: ClipSet, split: str, count: int, seed: int, purpose: str) -> RealClips:
    """So many readable clips of a split, drawn; 0 = all. They lie on the disk, since they may be many."""
    known = [i for i in clips.manifest.of(split) if not clips.manifest.clips[i].broken]
    if not known:
        raise UserError(f"{purpose} needs clips, and the split {split!r} has none that can be read")
    order = generator(seed, "real clips", split).permutation(len(known))[: count or None]
    chosen = [known[i] for i in sorted(order)]
    shape = (len(chosen), clips.spec.frames, clips.spec.size, clips.spec.size, 3)
    with TemporaryFile() as file:  # gone by name; the map keeps its content
        frames = np.memmap(file, np.uint8, "w+", shape=shape)
    labels, done = [], 0
    for label, found in _decoded(clips, chosen):
        frames[done], done = found, done + 1
        labels.append(label)
    if not done:
        raise UserError(f"{purpose}: none of the {len(chosen)} clips of the split {split!r} could be read")
    return RealClips(frames[:done], np.array(labels))


def _decoded(clips: ClipSet, chosen: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    for batch in evaluation_batches(clips, chosen, TOGETHER):
        for label, failed, frames in zip(batch.label, batch.failed, batch.frames, strict=True):
            if not failed:
                yield int(label), frames.permute(0, 2, 3, 1).numpy()
