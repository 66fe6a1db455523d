"""The caching job: decode every clip once, ask the teacher once, keep both."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from distill.clips.clipset import ClipSet
from distill.clips.frames import ClipError, DecodedFrames, Frames, StoredFrames, blank, frame_bytes
from distill.clips.manifest import Manifest
from distill.clips.workers import spread
from distill.errors import UserError
from distill.evaluate import top_shares
from distill.outputs import Clips, ClipSpec, TeacherOutput
from distill.recipe import Recipe
from distill.run_log import Talk
from distill.shards import Shards
from distill.teaching.store import pack
from distill.teaching.teacher import LiveTeacher, open_teacher
from distill.training import cached_outputs, see_clips, start


def cache(recipe: Recipe) -> dict[str, Any]:
    """Ask a recipe's teacher once about every view of every clip, and keep what it says.

    accelerate launch distill/cache.py recipe=quickstart
    distill cache recipe=quickstart cache.frames=true

    With cache.frames=true the decoded frames are kept too. Work that is there already is not done again, so the job
    may be stopped and started at will. Prints how often the teacher is right on the labelled splits.
    """
    accelerator = start(recipe)
    talk = Talk(accelerator.is_main_process)
    if not recipe.cache.frames and recipe.teacher is None:
        raise UserError("nothing to cache: the recipe has no teacher and cache.frames is false")
    clips = see_clips(recipe, accelerator)
    work = _Work(recipe, clips, accelerator, talk)
    if recipe.cache.frames:
        work.keep_frames()
        accelerator.wait_for_everyone()
    if recipe.teacher is None:
        return {}
    work.keep_outputs(open_teacher(recipe.teacher, clips.manifest.classes).to(accelerator.device))
    accelerator.wait_for_everyone()
    return {"teacher": teacher_accuracy(recipe, clips)}


def teacher_accuracy(recipe: Recipe, clips: ClipSet) -> dict[str, dict[str, float]]:
    """How often the cached teacher is right in the plain view, by split."""
    shards, found = cached_outputs(recipe, clips), {}
    for split in ("val", "test"):
        index = np.array(clips.manifest.of(split))
        if len(index):
            label = np.array([clips.manifest.clips[i].label for i in index])
            logits = shards.read("logits", index, np.zeros_like(index)).astype(np.float32)
            logits[[clips.manifest.clips[i].broken for i in index]] = np.nan  # counts as wrong
            found[split] = dict(top_shares(label, logits))
    return found


@dataclass
class _Work:
    recipe: Recipe
    clips: ClipSet
    accelerator: Accelerator
    talk: Talk

    def gaps(self, shards: Shards) -> list[tuple[int, list[int]]]:
        """This process's share of what is missing: every clip in the plain view, training clips in all."""
        everyone = shards.missing(range(len(self.clips.manifest.clips)), [0])
        training = shards.missing(self.clips.manifest.of("train"), range(1, self.recipe.clips.views.count + 1))
        views: dict[int, list[int]] = {}
        for shard, numbers in (*everyone, *training):
            views.setdefault(shard, []).extend(numbers)
        # By number, not by place in the list: another process may have filled gaps before this one looked.
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        return sorted((shard, numbers) for shard, numbers in views.items() if shard % world == rank)

    def keep_frames(self) -> None:
        options, manifest = self.recipe.clips, self.clips.manifest
        assert isinstance(self.clips.frames, StoredFrames)
        shards = self.clips.frames.shards
        gaps = self.gaps(shards)
        each = frame_bytes(self.clips.spec)
        _require_room(shards.folder, sum(len(shards.members(shard)) * len(views) for shard, views in gaps) * each)
        self._announce("frames", shards, gaps, f"{each / 1e3:.1f} kB")
        decoded = DecodedFrames(manifest, options.views, self.clips.spec, options.decoder)
        for shard, numbers, stacks in self._read("keep frames", shards, gaps, decoded, options.workers):
            frames = np.stack([stack.numpy() for stack in stacks])
            for place, view in enumerate(numbers):
                shards.commit(shard, view, {"frames": frames[:, place]})

    def keep_outputs(self, teacher: LiveTeacher) -> None:
        shards = cached_outputs(self.recipe, self.clips)
        gaps = self.gaps(shards)
        self._announce("teacher outputs", shards, gaps, "a few kB")
        for shard, numbers, stacks in self._read("ask teacher", shards, gaps, self.clips.frames, self.clips.workers):
            answers = list(self._ask(teacher, stacks, numbers, shards.members(shard)))
            packed = pack(answers, self.recipe.cache.precision)
            for place, view in enumerate(numbers):
                shards.commit(shard, view, {name: rows[place :: len(numbers)] for name, rows in packed.items()})

    def _ask(
        self, teacher: LiveTeacher, stacks: Iterator[torch.Tensor], numbers: list[int], members: range
    ) -> Iterator[TeacherOutput]:
        """The teacher's answers about every (clip, view) of a shard, clip by clip."""
        waiting: list[torch.Tensor] = []
        for done, stack in enumerate(stacks, 1):
            waiting.append(stack)
            if len(waiting) * len(numbers) >= self.recipe.train.batch or done == len(members):
                index = torch.tensor(members[done - len(waiting) : done])
                clips = Clips(
                    frames=torch.cat(waiting),
                    label=torch.full((len(index) * len(numbers),), -1),
                    index=index.repeat_interleave(len(numbers)),
                    view=torch.tensor(numbers).repeat(len(index)),
                )
                with self.accelerator.autocast():
                    yield teacher(clips.to(self.accelerator.device))
                waiting.clear()

    def _read(
        self, what: str, shards: Shards, gaps: list[tuple[int, list[int]]], frames: Frames, workers: int
    ) -> Iterator[tuple[int, list[int], Iterator[torch.Tensor]]]:
        """Shard by shard, the clips' views [V,T,3,H,W] as they come from the workers."""
        keys = [(index, numbers) for shard, numbers in gaps for index in shards.members(shard)]
        manifest, seconds = self.clips.manifest, self.clips.options.timeout
        loader = spread(_Views(frames, manifest, self.clips.spec), keys, workers, seconds, self.clips.name)
        with self.talk.track(what, len(keys)) as track:
            for shard, numbers in gaps:
                yield shard, numbers, itertools.islice(loader, len(shards.members(shard)))
                track.advance(len(shards.members(shard)))

    def _announce(self, what: str, shards: Shards, gaps: list[tuple[int, list[int]]], each: str) -> None:
        count = sum(len(shards.members(shard)) * len(numbers) for shard, numbers in gaps)
        state = f"{count:,} clip views to do, {each} each" if count else "complete"
        self.talk.say(f"{what}: {shards.folder}  {state}")


def _require_room(folder: Path, needed: int) -> None:
    """Say at once, not hours later, that the frames will not fit."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"the frames need {needed / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free; take fewer "
            "clips.views.count, another cache.folder, or cache.frames=false with clips.prepare=true"
        )


class _Views:
    """Reads the views of a clip; a clip that is known to be broken is blank, and no job ever asks for it."""

    def __init__(self, frames: Frames, manifest: Manifest, spec: ClipSpec) -> None:
        self.frames, self.manifest, self.spec = frames, manifest, spec

    def __call__(self, key: tuple[int, list[int]]) -> torch.Tensor:
        index, numbers = key
        if self.manifest.clips[index].broken:
            return torch.from_numpy(blank(len(numbers), self.spec))
        try:
            return torch.from_numpy(self.frames.get(index, numbers))
        except ClipError as error:
            raise UserError(f"{error}; run distill clips with the same recipe and keys, then this job again") from error
