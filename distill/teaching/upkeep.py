"""Looking after a cache: what is there, whether it is still right, and what nobody needs any more."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.clips.clipset import ClipSet
from distill.clips.frames import StoredFrames
from distill.errors import UserError
from distill.randomness import generator
from distill.recipe import Recipe, for_cache
from distill.run_log import Talk
from distill.shards.grid import Needs, Shards, parse, parse_view
from distill.teaching.asking import Asking
from distill.teaching.caching import all_needs, output_needs, source_of_frames
from distill.teaching.expectations import size
from distill.teaching.filling import Look
from distill.teaching.teacher import open_teacher
from distill.training import cached_outputs, see_clips, start

Store = tuple[str, Shards, Needs]
TOLERANCE = {"float16": 2e-3, "float32": 1e-4}  # of records asked anew, as shares of the largest value of their field


def stores(recipe: Recipe, clips: ClipSet) -> list[Store]:
    """What a recipe keeps, each with the records that it needs."""
    found: list[Store] = []
    if isinstance(clips.frames, StoredFrames):
        found.append(("frames", clips.frames.shards, all_needs(recipe, clips)))
    if recipe.teacher is not None and recipe.cache.outputs:
        found.append(("outputs", cached_outputs(recipe, clips), output_needs(recipe, clips)))
    if not found:
        raise UserError("this recipe keeps nothing: neither teacher outputs nor frames")
    return found


def status(recipe: Recipe) -> dict[str, Any]:
    """Show what a recipe's cache holds and what it lacks, and what else lies in the cache folder.

    distill cache status recipe=quickstart
    """
    recipe = for_cache(recipe)
    accelerator = start(recipe)
    clips, talk = see_clips(recipe, accelerator), Talk(accelerator.is_main_process)
    kept = stores(recipe, clips)
    for group, shards, needs in kept:
        there = _present(shards, needs)
        rows = []
        for view, wanted in needs.items():
            weight = _weight(shards.path(view, 0).parent)
            rows.append((f"view {view}", f"{len(there[view]):,} of {len(wanted):,}", size(weight)))
        talk.table(f"{group}: {shards.folder}", ("", "records", "on disk"), rows)
        for key, value in shards.spec.items():
            talk.say(f"  {key}: {_brief(value)}")
        failed = {clip for found in shards.failures(needs).values() for clip in found}
        if failed:
            names = ", ".join(clips.manifest.clips[i].id for i in sorted(failed)[:5])
            talk.say(f"  {len(failed)} clips could not be read: {names}{', ...' if len(failed) > 5 else ''}")
        _show_a_row(talk, shards, there, clips)
    mine = {shards.folder for _, shards, _ in kept}
    for folder in _others(recipe, mine):
        talk.say(f"not of this recipe: {folder}  {size(_weight(folder))}")
    return {}


def _others(recipe: Recipe, mine: Collection[Path]) -> list[Path]:
    """The stores in the cache folder that are not the recipe's."""
    found = (path.parent for path in sorted(Path(recipe.cache.folder).glob("*/*/spec.json")))
    return [folder for folder in found if folder not in mine]


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list):
        return f"{len(value)}"
    text = str(value)
    return text if len(text) <= 40 else text[:16] + "..."


def _present(shards: Shards, needs: Needs) -> dict[int, np.ndarray]:
    """The clips whose records are there, by view."""
    missing = shards.missing(needs)
    return {view: np.setdiff1d(clips, missing.get(view, np.empty(0, np.int64))) for view, clips in needs.items()}


def _show_a_row(talk: Talk, shards: Shards, there: Needs, clips: ClipSet) -> None:
    view = next((view for view, found in there.items() if len(found)), None)
    if view is None:
        return
    index = int(there[view][0])
    fields, row = shards.record("", index, view)
    shown = {name: rows[row] for name, rows in fields.items() if len(rows) and name not in ("bytes", "frames")}
    for name, value in shown.items():
        numbers = " ".join(f"{number:.4g}" for number in value.reshape(-1)[:6].tolist())
        talk.say(f"  {clips.manifest.clips[index].id} view {view} {name} {list(value.shape)}: {numbers} ...")


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


def verify(recipe: Recipe) -> dict[str, Any]:
    """Check every byte of a recipe's cache, and ask the teacher anew about some records.

    distill cache verify recipe=quickstart
    distill cache verify recipe=quickstart cache.rows=1000

    Damaged shards are named; they are not deleted. cache.rows says how many records to make again.
    """
    recipe = for_cache(recipe)
    accelerator = start(recipe)
    clips, talk = see_clips(recipe, accelerator), Talk(accelerator.is_main_process)
    found: dict[str, Any] = {}
    damaged = []
    for group, shards, needs in stores(recipe, clips):
        started, weight, count = time.perf_counter(), 0, 0
        for path in sorted(shards.folder.rglob("*.safetensors")):
            count, weight = count + 1, weight + path.stat().st_size
            try:
                if not shards.check(path):
                    talk.say(f"not of this store: {path}")
            except UserError as error:
                damaged.append(str(error))
        seconds = time.perf_counter() - started
        talk.say(f"{group}: {count} files, {size(weight)} read in {seconds:.2f} s ({size(weight / seconds)}/s)")
        lacking = sum(map(len, shards.missing(needs).values()))
        found[group] = {"files": count, "bytes": weight, "gigabytes_per_second": weight / seconds / 1e9}
        found[group]["missing_records"] = lacking
    if damaged:
        for line in damaged:
            talk.warn(line)
        raise UserError(f"{len(damaged)} files are damaged; delete them and run the caching job again")
    if "outputs" in found and recipe.cache.rows:
        found["outputs"] |= _ask_again(recipe, clips, accelerator.device)
    return found


def _ask_again(recipe: Recipe, clips: ClipSet, device: torch.device) -> dict[str, Any]:
    """Make some records anew, each alone, and compare."""
    shards, needs = cached_outputs(recipe, clips), output_needs(recipe, clips)
    teacher = open_teacher(recipe.teacher, clips.manifest.classes, recipe.cache.maps, recipe.cache.autocast)
    asking = Asking(teacher.to(device), recipe.cache, clips, device)
    frames, look_at = source_of_frames(recipe.cache, clips)
    look, worst = Look(clips, frames, {}), dict[str, float]()
    chosen = list(_some(shards, needs, recipe.cache.rows))
    unread = 0
    for index, view in chosen:
        kept, row = shards.record("", index, view)
        if not kept["seen"][row].any():
            unread += 1
            continue
        ((_, again),) = asking.make(iter([look((index, look_at([view])))]), [view])
        if not np.array_equal(again["seen"][0], kept["seen"][row]):
            raise UserError(f"{clips.name(index)}: view {view} does not look as it did when the teacher saw it")
        for name, rows in again.items():
            old = shards.read([name], np.array([index]), np.array([view]))[0].astype(np.float32)
            scale = max(1.0, float(np.abs(old).max()))
            worst[name] = max(worst.get(name, 0.0), float(np.abs(rows.astype(np.float32) - old).max()) / scale)
    most = TOLERANCE[recipe.cache.precision]
    off = {name: value for name, value in worst.items() if value > most and name != "indices"}
    if off:
        raise UserError(
            f"{shards.folder} is not what this teacher says: "
            + ", ".join(f"{name} is off by {value:.2g} of its size" for name, value in off.items())
        )
    return {"asked_anew": len(chosen) - unread, "never_read": unread} | {
        f"largest_difference.{name}": value for name, value in worst.items()
    }


def _some(shards: Shards, needs: Needs, count: int) -> Iterator[tuple[int, int]]:
    """Records that are there, drawn evenly."""
    there = _present(shards, needs)
    views = [view for view, clips in there.items() if len(clips)]
    dice = generator("verify", shards.folder.name)
    for _ in range(count if views else 0):
        view = views[dice.integers(len(views))]
        yield int(dice.choice(there[view])), view


def prune(recipe: Recipe) -> dict[str, Any]:
    """Remove from a recipe's cache what the recipe does not need.

    That is: views beyond clips.views.count, maps it does not name, and what killed jobs left behind. With
    cache.failed=true also the shards with clips that could not be read, so that the next job tries them again.

    distill cache prune recipe=quickstart
    distill cache prune recipe=quickstart cache.others=true

    With cache.others=true every store in the cache folder goes that is not this recipe's. Not to be run beside other
    jobs on the same cache.
    """
    recipe = for_cache(recipe)
    accelerator = start(recipe)
    clips, talk = see_clips(recipe, accelerator), Talk(accelerator.is_main_process)
    if not accelerator.is_main_process:
        return {}
    kept, freed = stores(recipe, clips), 0
    for _, shards, needs in kept:
        failed = shards.failures(needs) if recipe.cache.failed else {}
        again = [key for key, found in failed.items() if not all(clips.manifest.clips[i].broken for i in found)]
        if again:
            count = sum(len(shards.members(shard)) for shard, _ in again)
            talk.say(f"{count:,} records are to be made again for the sake of those that could not be read")
        for path in _superfluous(shards, needs, again):
            freed += path.stat().st_size
            path.unlink()
    mine = {shards.folder for _, shards, _ in kept}
    if recipe.cache.others:
        for folder in _others(recipe, mine):
            freed += _weight(folder)
            talk.say(f"removing {folder}")
            if folder.is_symlink():
                folder.unlink()
            else:
                shutil.rmtree(folder)
    return {"freed": size(freed)}


def _superfluous(shards: Shards, needs: Needs, again: Collection[tuple[int, int]]) -> Iterator[Path]:
    """Files of ours that nobody needs, and those of the shards to make again; what is not ours stays."""
    for shard, view in again:
        yield from (path for path in shards.files(view, shard) if path.exists())
    for folder in sorted(shards.folder.glob("v*")):
        held = parse_view(folder.name)
        for path in sorted(folder.iterdir()) if held is not None and folder.is_dir() else ():
            part = re.fullmatch(r"\.(.+)\.\d+-\w+\.part", path.name)
            found = parse(part[1] if part else path.name)
            if found and path.is_file() and (part or held not in needs or found[1] not in shards.parts):
                yield path
