"""From a recipe's clips to batches. Which clips make up a step is arithmetic on (seed, step), so a resumed run, a run
with other workers and a run with more processes see the same batches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.clips import views
from distill.clips.clipset import ClipSet
from distill.clips.frames import ClipError, DecodedFrames, blank, unseen
from distill.clips.workers import spread
from distill.errors import UserError
from distill.outputs import Clips
from distill.randomness import generator, number

CPU = torch.device("cpu")
Heed = Callable[[Mapping[int, str]], object]  # is told of clips that failed: index and why


def ignore(failures: Mapping[int, str]) -> None:
    """For callers that find the failed clips marked in their batches."""


TURNS = 8  # clips that are tried in place of one that failed


def training_view(options: views.ViewOptions, epoch: int) -> int:
    return 1 + epoch % options.count


@dataclass(frozen=True)
class Part:
    """One micro-batch: clips, the views each is seen in, and how much each label counts."""

    indices: Sequence[int]
    views: Sequence[int]
    label_weight: np.ndarray  # float32


@dataclass(frozen=True)
class Plan:
    """Every micro-batch of a run. A step's batch is cut into parts.

    The m-th part of process r of w is part m * w + r: what all of them do at a time is what one process would do then,
    so a batch norm that spans the processes sees the same clips together.
    """

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
            Part([self.indices[i] for i in chosen[at : at + size]], [view], weight[at : at + size])
            for at in range(0, self.batch, size)
        ]


@functools.lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(count)


@dataclass(frozen=True)
class _Loaded:
    """What a worker sends: a batch, and a line for every clip of it that failed."""

    clips: Clips
    failures: dict[int, str]

    def pin_memory(self) -> _Loaded:
        return replace(self, clips=self.clips.pin_memory())


class _Load:
    """Loads a micro-batch. A clip that fails is replaced by one of `substitutes`, or left blank and marked."""

    def __init__(self, clips: ClipSet, substitutes: Substitutes | None) -> None:
        self.clips, self.substitutes = clips, substitutes

    def __call__(self, part: Part) -> _Loaded:
        failures: dict[int, str] = {}
        indices, frames, seen, failed = [], [], [], []
        for index in part.indices:
            candidates = self.substitutes.after(index, part.views) if self.substitutes else iter(())
            found = self._views(index, part.views, failures)
            while found is None and (other := next(candidates, None)) is not None:
                index, found = other, self._views(other, part.views, failures)
            indices.append(index)
            failed.append(found is None)
            frames.append(blank(len(part.views), self.clips.spec) if found is None else found)
            seen.append(self._seen(index, part.views, found))
        if self.substitutes and any(failed):
            raise UserError(f"no clip can be read in place of those that failed; first {next(iter(failures.values()))}")
        batch = self._batch(part, indices, np.concatenate(frames), failed)
        batch.seen = torch.from_numpy(np.concatenate(seen))
        return _Loaded(batch, failures)

    def _seen(self, index: int, views: Sequence[int], frames: np.ndarray | None) -> np.ndarray:
        if frames is None:
            return unseen(len(views))
        return self.clips.frames.seen(index, views, frames)

    def _views(self, index: int, views: Sequence[int], failures: dict[int, str]) -> np.ndarray | None:
        clip = self.clips.manifest.clips[index]
        try:
            if clip.broken:
                raise ClipError(f"clip {clip.id}: {clip.path} {clip.facts and clip.facts.trouble}")
            return self.clips.frames.get(index, views)
        except ClipError as error:
            failures[index] = str(error)
            return None

    def _batch(self, part: Part, indices: Sequence[int], frames: np.ndarray, failed: Sequence[bool]) -> Clips:
        each = len(part.views)
        return Clips(
            frames=torch.from_numpy(frames),
            label=torch.tensor([self._label(index, view) for index in indices for view in part.views]),
            index=torch.tensor(indices).repeat_interleave(each),
            view=torch.tensor(part.views).repeat(len(indices)),
            label_weight=torch.from_numpy(part.label_weight).repeat_interleave(each),
            failed=torch.tensor(failed).repeat_interleave(each),
            colour=self._colour(indices, part.views),
        )

    def _colour(self, indices: Sequence[int], numbers: Sequence[int]) -> torch.Tensor | None:
        """The changes of colour that the frames do not have yet."""
        frames, clips = self.clips.frames, self.clips.manifest.clips
        if not isinstance(frames, DecodedFrames) or frames.coloured:
            return None
        drawn = (views.draw(frames.options, clips[index].id, number) for index in indices for number in numbers)
        return torch.from_numpy(np.stack([views.colour(view) for view in drawn]))

    def _label(self, index: int, view: int) -> int:
        """The clip's label, or in a mirrored view the label of what it looks like there."""
        manifest, options = self.clips.manifest, self.clips.options.views
        label = manifest.clips[index].label
        if options.flip and label in manifest.mirrored and views.draw(options, manifest.clips[index].id, view).flip:
            return manifest.mirrored[label]
        return label


@dataclass(frozen=True)
class Substitutes:
    """Which clip takes the place of one that failed: another of its kind, always the same one for a clip and view."""

    labelled: Sequence[int]
    unlabelled: Sequence[int]
    is_labelled: Mapping[int, bool]
    seed: int

    def after(self, index: int, views: Sequence[int]) -> Iterator[int]:
        pool = self.labelled if self.is_labelled[index] else self.unlabelled
        return (pool[number(self.seed, "substitute", index, *views, turn) % len(pool)] for turn in range(TURNS))


def load(
    clips: ClipSet,
    parts: Iterable[Part],
    substitutes: Substitutes | None = None,
    heed: Heed = ignore,
) -> Iterator[Clips]:
    """The batches for these parts, in their order, whatever the number of workers; `heed` is told of failed clips."""
    work, options = _Load(clips, substitutes), clips.options
    for loaded in spread(work, parts, clips.workers, options.timeout, clips.name, torch.cuda.is_available()):
        if loaded.failures:
            heed(loaded.failures)
        yield loaded.clips


class Failures:
    """Says of each clip that could not be read what that means, once; stops when more than `most` have failed."""

    def __init__(self, say: Callable[[str], object], means: str, most: float = math.inf) -> None:
        self.say, self.means, self.most = say, means, most
        self.found: dict[int, str] = {}

    def __call__(self, failures: Mapping[int, str]) -> None:
        new = {index: why for index, why in failures.items() if index not in self.found}
        self.found |= new
        for why in new.values():
            self.say(f"{why}; {self.means}")
        if len(self.found) > self.most:
            raise UserError(
                f"{len(self.found)} training clips cannot be read (last {list(new.values())[-1]}); "
                "run distill clips to see which, or allow more with clips.failing"
            )


def on_device(clips: Clips, device: torch.device) -> Clips:
    """The batch on the device, with the changes of colour made there that were left to it."""
    if clips.colour is None:
        return clips.to(device)
    matrices, moved = clips.colour.numpy(), replace(clips, colour=None).to(device)
    frames = [views.recolour(video, matrix) for video, matrix in zip(moved.frames, matrices, strict=True)]
    return replace(moved, frames=torch.stack(frames))


def training_batches(
    clips: ClipSet,
    plan: Plan,
    steps: range,
    rank: int,
    world: int,
    heed: Heed,
    device: torch.device = CPU,
) -> Iterator[Clips]:
    """This process's micro-batches of these steps, on its device; an accelerator changes the colours itself."""
    if device.type != "cpu":
        clips = clips.uncoloured()
    parts = (part for step in steps for part in plan.step(step)[rank::world])
    kinds = {True: list[int](), False: list[int]()}
    for index, labelled in zip(plan.indices, plan.labelled, strict=True):
        kinds[labelled].append(index)
    is_labelled = dict(zip(plan.indices, plan.labelled, strict=True))
    substitutes = Substitutes(kinds[True], kinds[False], is_labelled, plan.seed)
    return (on_device(batch, device) for batch in load(clips, parts, substitutes, heed))


def evaluation_batches(
    clips: ClipSet, indices: Sequence[int], batch: int, heed: Heed = ignore, rank: int = 0, world: int = 1
) -> Iterator[Clips]:
    """This process's share of these clips, each once in every test view. A clip that fails is marked, not replaced."""
    shown = views.test_views(clips.options.views)
    mine = indices[rank::world] or indices[:1]  # a process without a share does one clip over again
    size = max(1, batch // len(shown))
    chunks = (mine[at : at + size] for at in range(0, len(mine), size))
    parts = (Part(chunk, shown, np.ones(len(chunk), np.float32)) for chunk in chunks)
    return load(clips.for_tests(), parts, None, heed)
