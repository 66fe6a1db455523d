"""From a recipe's clips to batches. Which clips make up a step is arithmetic on (seed, step), so a resumed run, a run
with other workers and a run with more processes see the same batches."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from distill import plugins
from distill.clips import views
from distill.clips.frames import DecodedFrames, Frames, StoredFrames, frame_shards
from distill.clips.manifest import Manifest
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec
from distill.randomness import generator

WORKER_SECONDS = 300  # a worker silent for this long is stuck in a file


@dataclass
class ClipOptions:
    source: Any = field(default_factory=lambda: {"name": "motion"})
    """The data set: name of a file in distill/clips/sources/, and its options."""
    views: views.ViewOptions = field(default_factory=views.ViewOptions)
    labelled: float = 1.0
    """Share of each class's training clips whose label training may use; the other labels are hidden."""
    unlabelled: bool = True
    """Whether training also sees the clips without a label."""
    workers: int = 2
    """Processes that decode; not used when frames come from the cache."""


@dataclass(frozen=True)
class ClipSet:
    """A manifest that can be looked at: the clips as one run sees them."""

    manifest: Manifest
    spec: ClipSpec
    options: ClipOptions
    frames: Frames

    def training(self) -> list[int]:
        clips = self.manifest.clips
        chosen = [i for i in self.manifest.of("train") if self.options.unlabelled or clips[i].label >= 0]
        if not chosen:
            hidden = "clips.labelled hides every label and clips.unlabelled is false"
            why = hidden if self.manifest.of("train") else "the data source has none"
            raise UserError(f"no training clips: {why}")
        return chosen

    @property
    def workers(self) -> int:
        return self.options.workers if isinstance(self.frames, DecodedFrames) else 0


def open_manifest(options: ClipOptions, seed: int) -> Manifest:
    """The data source's clips, with the labels hidden that the recipe hides."""
    views.check(options.views)
    if options.workers < 0:
        raise UserError(f"clips.workers is {options.workers}; it is at least 0")
    manifest: Manifest = plugins.build("source", options.source)
    return manifest.hide_labels(options.labelled, seed)


def open_clips(manifest: Manifest, options: ClipOptions, spec: ClipSpec, stored: Path | None) -> ClipSet:
    """The clips at one size; `stored` is the cache folder when its frames are to be used."""
    frames: Frames = (
        StoredFrames(frame_shards(stored, manifest, options.views, spec))
        if stored
        else DecodedFrames(manifest, options.views, spec)
    )
    return ClipSet(manifest, spec, options, frames)


def training_view(options: views.ViewOptions, epoch: int) -> int:
    return 1 + epoch % options.count


@dataclass(frozen=True)
class Part:
    """One micro-batch: clips, the view they are seen in, and how much each label counts."""

    indices: Sequence[int]
    view: int
    label_weight: np.ndarray  # float32


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a run. A step's batch is cut into parts; process r of w does the r-th w-th of the parts."""

    indices: Sequence[int]
    labelled: Sequence[bool]  # per entry of `indices`
    batch: int
    parts: int
    view_options: views.ViewOptions
    seed: int

    def __post_init__(self) -> None:
        if self.batch > len(self.indices):
            raise UserError(f"train.batch is {self.batch}, but there are only {len(self.indices)} training clips")
        if self.batch % self.parts:
            raise UserError(
                f"train.batch is {self.batch}, which cannot be cut into {self.parts} equal parts "
                "(processes x train.accumulate)"
            )

    @property
    def epoch_steps(self) -> int:
        return len(self.indices) // self.batch

    def step(self, step: int) -> list[Part]:
        """The parts of one optimiser step."""
        epoch, place = divmod(step, self.epoch_steps)
        chosen = _epoch_order(len(self.indices), self.seed, epoch)[place * self.batch : (place + 1) * self.batch]
        labelled = np.array([self.labelled[i] for i in chosen])
        weight = (labelled * (self.batch / max(1, labelled.sum()))).astype(np.float32)
        size, view = self.batch // self.parts, training_view(self.view_options, epoch)
        return [
            Part([self.indices[i] for i in chosen[at : at + size]], view, weight[at : at + size])
            for at in range(0, self.batch, size)
        ]


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(count)


class _Parts(Dataset[Clips]):
    """Loads the micro-batch that it is handed as its key."""

    def __init__(self, clips: ClipSet) -> None:
        self.clips = clips

    def __getitem__(self, part: Part) -> Clips:
        frames = np.concatenate([self.clips.frames.get(index, [part.view]) for index in part.indices])
        return Clips(
            frames=torch.from_numpy(frames),
            label=torch.tensor([self.clips.manifest.clips[index].label for index in part.indices]),
            index=torch.tensor(part.indices),
            view=torch.full((len(part.indices),), part.view),
            label_weight=torch.from_numpy(part.label_weight),
        )


def patience(workers: int) -> int:
    """Seconds after which a loader gives up on a worker that is stuck in a file."""
    return WORKER_SECONDS if workers else 0


def load(clips: ClipSet, parts: Iterable[Part]) -> Iterator[Clips]:
    """The batches for these parts, in their order, whatever the number of workers."""
    workers = clips.workers
    loader = DataLoader(
        _Parts(clips),
        batch_size=None,
        sampler=parts,
        num_workers=workers,
        timeout=patience(workers),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def training_batches(clips: ClipSet, plan: Plan, steps: range, rank: int, world: int) -> Iterator[Clips]:
    """This process's micro-batches of these steps."""
    share = plan.parts // world
    parts = (part for step in steps for part in plan.step(step)[rank * share : (rank + 1) * share])
    return load(clips, parts)


def evaluation_batches(
    clips: ClipSet, indices: Sequence[int], batch: int, rank: int = 0, world: int = 1
) -> Iterator[Clips]:
    """This process's share of these clips in the plain view, each once."""
    mine = indices[rank::world] or indices[:1]  # a process without a share does one clip over again
    chunks = (mine[at : at + batch] for at in range(0, len(mine), batch))
    return load(clips, (Part(chunk, 0, np.ones(len(chunk), np.float32)) for chunk in chunks))
