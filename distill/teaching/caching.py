"""The caching job: decode every clip once, ask the teacher once, keep both."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from distill.clips import views
from distill.clips.batches import Failures
from distill.clips.clipset import ClipSet
from distill.clips.frames import DecodedFrames, Frames, StoredFrames, frame_bytes, stored, together
from distill.errors import UserError
from distill.evaluate import top_shares
from distill.files import sweep
from distill.recipe import Recipe, for_cache, stages
from distill.rehearsal import check_recipe, check_student
from distill.run_log import Talk
from distill.shards.grid import Needs, Shards
from distill.teaching.asking import Asking
from distill.teaching.expectations import compare_with_beginning, expect
from distill.teaching.filling import Filling, Looked, Records
from distill.teaching.store import CacheOptions
from distill.teaching.teacher import open_teacher
from distill.training import cached_outputs, see_clips, start

UNREAD = "its record says so, and no training takes it"


def cache(recipe: Recipe) -> dict[str, Any]:
    """Ask a recipe's teacher once about every view of every clip, and keep what it says.

    accelerate launch distill/cache.py recipe=quickstart
    distill cache recipe=quickstart cache.frames=true
    distill cache status recipe=quickstart      what is there, and what is missing
    distill cache verify recipe=quickstart      every byte, and some records asked anew
    distill cache prune recipe=quickstart       remove what the recipe does not need

    With cache.frames=true the decoded frames are kept too. Work that is there already is not done again: the job may be
    stopped and started at will, with any number of processes, and several may run at once. Prints what it will cost,
    and how often the teacher is right on the labelled splits.
    """
    recipe = for_cache(recipe)
    for stage in stages(recipe):
        check_recipe(stage)  # the teacher is not asked for what no training can use
    accelerator = start(recipe)
    talk = Talk(accelerator.is_main_process)
    asks = recipe.teacher is not None and recipe.cache.outputs
    if not recipe.cache.frames and not asks:
        why = "cache.outputs is false" if recipe.teacher else "the recipe has no teacher"
        raise UserError(f"nothing to cache: {why}, and cache.frames is false")
    clips = see_clips(recipe, accelerator)
    for stage in stages(recipe):
        check_student(stage, clips.manifest)
    failures = Failures(talk.warn, UNREAD, max(1, recipe.clips.failing * len(clips.manifest.clips)))
    filling = Filling(clips, accelerator.process_index, accelerator.num_processes, talk, failures)
    if recipe.cache.frames:
        keep_frames(recipe, filling, accelerator)
    if asks:
        keep_outputs(recipe, filling, accelerator)
    if failures.found:
        talk.warn(
            f"{len(failures.found)} clips gave no record; mend the files and run distill clips, or, to try the same "
            "files again, distill cache prune with cache.failed=true; then distill cache"
        )
    return {"teacher": teacher_accuracy(recipe, clips)} if asks else {}


def all_needs(recipe: Recipe, clips: ClipSet) -> Needs:
    """Everything that is worth keeping: every clip in the plain view, training clips in all."""
    training = np.array(clips.manifest.of("train"), np.int64)
    return {0: np.arange(len(clips.manifest.clips))} | dict.fromkeys(range(1, recipe.clips.views.count + 1), training)


def output_needs(recipe: Recipe, clips: ClipSet) -> Needs:
    """The same for teacher outputs, of which a soft label is one for all views."""
    needs = all_needs(recipe, clips)
    return {0: needs[0]} if recipe.cache.test_clips else needs


def keep_frames(recipe: Recipe, filling: Filling, accelerator: Accelerator) -> None:
    clips, form = filling.clips, recipe.cache.form
    assert isinstance(clips.frames, StoredFrames)
    shards, needs = clips.frames.shards, all_needs(recipe, clips)
    shards.enroll(needs)
    todo = sum(map(len, shards.missing(needs).values()))
    each = frame_bytes(clips.spec)
    if form == "raw":
        _require_room(shards.folder, todo * each)
    _announce(
        filling.talk, "frames", shards, todo, f"{each / 1e3:.1f} kB each" + (" before JPEG" if form == "jpeg" else "")
    )
    accelerator.wait_for_everyone()

    def make(looked: Iterator[Looked], numbers: list[int]) -> Iterator[tuple[int, Records]]:
        found = list(looked)
        for place, view in enumerate(numbers):
            shown = [clip.frames[place].numpy() for clip in found]
            with ThreadPoolExecutor() as threads:  # JPEG is made without Python's lock
                fields = together(list(threads.map(partial(stored, form=form), shown)))
            yield view, fields | {"seen": np.stack([clip.seen[place].numpy() for clip in found])}

    if todo:
        decoded = DecodedFrames(clips.manifest, recipe.clips.views, clips.spec, recipe.clips.decoder)
        filling.fill("keep frames", shards, needs, decoded, lambda numbers: numbers, make)
    _finish(shards, accelerator)


def keep_outputs(recipe: Recipe, filling: Filling, accelerator: Accelerator) -> None:
    ask(recipe, filling, output_needs(recipe, filling.clips), accelerator)


def ask(
    recipe: Recipe,
    filling: Filling,
    needs: Needs,
    accelerator: Accelerator,
    kept: str = "teacher outputs",
    doing: str = "ask teacher",
) -> Shards:
    """Ask the recipe's teacher about these clips; `kept` and `doing` are what a person is told of it."""
    clips, options = filling.clips, recipe.cache
    shards = cached_outputs(recipe, clips)
    shards.enroll(needs)
    todo = sum(map(len, shards.missing(needs).values()))
    _announce(filling.talk, kept, shards, todo)
    accelerator.wait_for_everyone()
    if todo:
        teacher = open_teacher(recipe.teacher, clips.manifest.classes, options.maps, options.autocast)
        asking = Asking(teacher.to(accelerator.device), options, clips, accelerator.device, filling.heed)
        frames, look_at = source_of_frames(options, clips)
        compare_with_beginning(shards, asking, filling.talk)
        if accelerator.is_main_process:
            at_once = filling.at_once(sorted(shards.missing(needs)))[0]
            workers = filling.workers(frames)
            filling.talk.say(expect(asking, frames, look_at(at_once), todo, workers, accelerator.num_processes))
        filling.news = asking.news
        filling.fill(doing, shards, needs, frames, look_at, asking.make)
    _finish(shards, accelerator)
    return shards


def source_of_frames(options: CacheOptions, clips: ClipSet) -> tuple[Frames, Callable[[list[int]], list[int]]]:
    """Where the teacher's frames come from, and which views of a clip it is shown for a record."""
    if not options.test_clips:
        return clips.frames, lambda numbers: numbers
    tested = replace(clips.options.views, test_clips=options.test_clips, test_crops=options.test_crops)
    frames = DecodedFrames(clips.manifest, tested, clips.spec, clips.options.decoder)
    return frames, lambda numbers: views.test_views(tested)


def _announce(talk: Talk, what: str, shards: Shards, todo: int, each: str = "") -> None:
    state = f"{todo:,} clip views to do" + (f", {each}" if each else "") if todo else "complete"
    talk.say(f"{what}: {shards.folder}  {state}")


def _finish(shards: Shards, accelerator: Accelerator) -> None:
    accelerator.wait_for_everyone()
    shards.refresh()
    if accelerator.is_main_process and shards.folder.exists():
        with suppress(PermissionError):  # of a finished store that is for reading only
            sweep(shards.folder)


def teacher_accuracy(recipe: Recipe, clips: ClipSet) -> dict[str, dict[str, float]]:
    """How often the cached teacher is right in the plain view, or with its soft labels, by split."""
    shards, found = cached_outputs(recipe, clips), {}
    for split in ("val", "test"):
        index = np.array(clips.manifest.of(split))
        if len(index):
            label = np.array([clips.manifest.clips[i].label for i in index])
            logits = _logits(shards, index, len(clips.manifest.classes))
            found[split] = dict(top_shares(label, logits))
    return found


def _logits(shards: Shards, index: np.ndarray, classes: int) -> np.ndarray:
    """float32 [N,K]; nan for a clip that gave no frames, -inf for what was not among the largest."""
    view = np.zeros_like(index)
    if "logits" in shards.record("", int(index[0]), 0)[0]:
        seen, logits = shards.read(["seen", "logits"], index, view)
        logits = logits.astype(np.float32)
    else:
        seen, values, places = shards.read(["seen", "values", "indices"], index, view)
        logits = np.full((len(index), classes), -np.inf, np.float32)
        np.put_along_axis(logits, places.astype(np.int64), values.astype(np.float32), 1)
    logits[~seen.any(1)] = np.nan
    return logits


def _require_room(folder: Path, needed: int) -> None:
    """Say at once, not hours later, that it will not fit."""
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(
            f"this needs {needed / 1e9:.1f} GB and {there} has {free / 1e9:.1f} GB free; take fewer "
            "clips.views.count, another cache.folder, cache.form=jpeg, or cache.frames=false with clips.prepare=true"
        )
