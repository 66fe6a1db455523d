"""The clips job: look at every file once, say what was found, and make copies that decode quickly when asked to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distill.clips.clipset import ClipOptions, file_index, list_clips, with_facts
from distill.clips.facts import Facts, stamp
from distill.clips.index import Index
from distill.clips.looking import look
from distill.clips.manifest import SPLITS, Clip, Manifest
from distill.clips.prepare import Copies, fitted
from distill.clips.workers import StuckError, note, spread
from distill.recipe import Recipe
from distill.run_log import Talk

NAMED = 10  # files of each kind that the summary names
LARGE = 1.25  # a file is worth a copy when its short side is this many times a copy's
STATES = ("ok", "damaged", "broken")


def clips(recipe: Recipe) -> dict[str, Any]:
    """Look at every file of a recipe's data set once, and write down what training needs to know of it.

    distill clips recipe=ucf101 clips.source.folder=/data/UCF-101
    distill clips recipe=ucf101 prepare=true short_side=128

    Decodes each file whole: how many frames there really are, their size, rotation and timestamps, and whether the
    file is broken. Writes the index beside the cache; training never opens a file that the index says is broken. With
    prepare=true it then makes small copies that decode several times faster (frames=jpeg or frames=raw for pictures),
    which every job with clips.prepare=true reads. Work that is done already is not done again, so the job may be
    stopped and started at will. (prepare, frames and short_side are short for clips.prepare and so on.)
    """
    talk, cache = Talk(), Path(recipe.cache.folder)
    options = recipe.clips
    listed = list_clips(options)
    index = file_index(cache, options)
    look_at_files(listed, index, options, talk)
    manifest = with_facts(listed, index)
    summarise(manifest, index, options, talk)
    if options.prepare:
        copies = Copies(cache, options.frames, options.short_side)
        make_copies(manifest, copies, options, talk)
    return {}


def look_at_files(manifest: Manifest, index: Index, options: ClipOptions, talk: Talk) -> None:
    """Look at what is new, and at what changed since."""
    known = index.read()
    # Several clips may be spans of one file.
    files = list(dict.fromkeys(clip.path for clip in manifest.clips if clip.facts is None))
    todo = [place for place, path in enumerate(files) if path not in known or known[path].stamp != stamp(path)]
    if not todo:
        talk.say(f"look: nothing is new in {len(files)} files")
        return
    with index.adding() as add, talk.track("look", len(files), len(files) - len(todo)) as track:
        for place, facts in work_through(_Look(files), todo, options, files.__getitem__):
            path = files[place]
            add(path, facts)
            track.advance(1, f"{Path(path).name} {facts.trouble}" if facts.trouble else "")


def make_copies(manifest: Manifest, copies: Copies, options: ClipOptions, talk: Talk) -> None:
    clips, todo = manifest.clips, copies.lacking(manifest)
    total = sum(not clip.broken for clip in clips)
    if not todo:
        talk.say(f"prepare: nothing is new in {total} copies")
        return
    failed = []
    with copies.index.adding() as add, talk.track("prepare", total, total - len(todo)) as track:
        for place, facts in work_through(_Copy(copies, clips), todo, options, lambda place: clips[place].path):
            add(copies.name(clips[place]), facts)
            failed += [f"{clips[place].path} {facts.trouble}"] if facts.trouble else []
            track.advance(1, failed[-1] if facts.trouble else "")
    made = sum(facts.bytes for facts in copies.index.read().values())
    before = sum({clip.path: clip.facts.bytes for clip in clips if clip.facts}.values())
    talk.say(f"copies: {copies.folder}  {_size(made)}, where the files are {_size(before)}")
    _name_some(talk, "could not be prepared", failed)


class _Look:
    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __call__(self, place: int) -> Facts:
        note(place)
        return look(self.files[place])


class _Copy:
    def __init__(self, copies: Copies, clips: Sequence[Clip]) -> None:
        self.copies, self.clips = copies, clips

    def __call__(self, place: int) -> Facts:
        note(place)
        return self.copies.make(self.clips[place])


def work_through(
    work: Callable[[int], Facts], places: Sequence[int], options: ClipOptions, name: Callable[[int], str]
) -> Iterator[tuple[int, Facts]]:
    """(place, work(place)) for all places; one that no worker comes back from is broken, and the rest goes on."""
    left = list(places)
    while left:
        try:
            for facts in spread(work, tuple(left), options.workers, options.timeout, name):
                yield left.pop(0), facts
        except StuckError as stuck:
            if stuck.clip not in left:
                raise
            left.remove(stuck.clip)
            why = f"hangs or kills its reader ({str(stuck).partition(' while')[0]})"
            yield stuck.clip, Facts(trouble=why, stamp="to be looked at again")


def summarise(manifest: Manifest, index: Index, options: ClipOptions, talk: Talk) -> None:
    """What a person can act on."""
    clips = manifest.clips
    rows = []
    for split in SPLITS:
        chosen = [clips[i] for i in manifest.of(split)]
        missing = manifest.missing.get(split, 0)
        if not chosen and not missing:
            continue
        counts = [sum(_state(clip) == state for clip in chosen) for state in STATES]
        rows.append((split, *map(str, (len(chosen) + missing, missing, *counts))))
    title = f"{options.source.name}: {len(clips)} clips of {len(manifest.classes)} classes"
    talk.table(title, ("split", "listed", "missing", *STATES), rows)
    for state in ("broken", "damaged"):
        found = dict.fromkeys(f"{clip.path}  {_why(clip.facts)}" for clip in clips if _state(clip) == state)
        _name_some(talk, state, list(found))
    _say_what_copies_save(clips, options, talk)
    talk.say(f"index: {index.path}")


def _state(clip: Clip) -> str:
    return clip.facts.status if clip.facts else ""


def _why(facts: Facts | None) -> str:
    assert facts is not None
    return facts.trouble or f"has {facts.frames} frames; {facts.lost} are missing or patched up"


def _say_what_copies_save(clips: Sequence[Clip], options: ClipOptions, talk: Talk) -> None:
    """Decoding costs about as much as it has pixels to make."""
    sizes = {
        clip.path: clip.facts for clip in clips if clip.facts and not clip.broken and clip.facts.container != "packed"
    }
    larger = [facts for facts in sizes.values() if min(facts.width, facts.height) > LARGE * options.short_side]
    if not larger or options.prepare:
        return
    before = sum(facts.width * facts.height * facts.frames for facts in sizes.values())
    sides = [(fitted(facts.width, facts.height, options.short_side), facts.frames) for facts in sizes.values()]
    after = sum(width * height * frames for (width, height), frames in sides)
    talk.say(
        f"{len(larger)} of {len(sizes)} files are larger than {options.short_side} pixels need: decoding them makes "
        f"{before / after:.1f} times as many pixels as decoding copies would; prepare=true makes the copies"
    )


def _name_some(talk: Talk, what: str, found: Sequence[str]) -> None:
    if not found:
        return
    talk.say(f"{what}: {len(found)}")
    for line in found[:NAMED]:
        talk.say(f"  {line}")
    if len(found) > NAMED:
        talk.say(f"  and {len(found) - NAMED} more")


def _size(count: int) -> str:
    power = min(4, (len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
