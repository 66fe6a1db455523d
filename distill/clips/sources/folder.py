"""A class per folder: CLASS/clip.mp4, or train/CLASS/clip.mp4, val/CLASS/clip.mp4 and test/CLASS/clip.mp4.

A clip is a video, or a folder of pictures. Without split folders a clip's split hangs on its id, never on an order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest
from distill.errors import UserError
from distill.randomness import number

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


@dataclass
class Options:
    folder: str = MISSING
    """Holds a folder for every class, or train, val (validation) and test with a folder for every class in each."""
    test: float = 0.2
    """Share of every class that is the test split, if there are no split folders."""
    val: float = 0.1
    """Share of every class that is the validation split, if there are no split folders."""


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder")
    if not 0 <= options.test <= options.test + options.val < 1:
        raise UserError("clips.source.test and clips.source.val are shares from 0 on that leave something to train on")
    found = sorted(media(folder))
    if not found:
        raise UserError(f"{folder} holds no video and no folder of pictures; set clips.source.folder to the classes")
    by_split = all(parts[0] in SPLITS for parts in found)
    for parts in found:
        if len(parts) < 2 + by_split:
            raise UserError(f"{folder / Path(*parts)} lies in no class's folder; put each clip into one")
    classes = sorted({parts[by_split] for parts in found})
    label = {name: place for place, name in enumerate(classes)}
    splits = {parts: SPLITS[parts[0]] for parts in found} if by_split else drawn(found, options)
    clips = [
        Clip("/".join(parts), f"{folder}/{'/'.join(parts)}", label[parts[by_split]], split)
        for parts, split in splits.items()
    ]
    return listing.manifest(clips, classes, folder, "")


def media(folder: Path) -> Iterator[tuple[str, ...]]:
    """Every clip, as the parts of its path: a video, or a folder of pictures that holds no video."""
    for base, files in listing.walk(folder):
        clips = [base + name for name in files if name.lower().endswith(listing.VIDEOS)]
        if files and not clips:
            clips = [base.removesuffix("/")]
        yield from (tuple(clip.split("/")) for clip in clips)


def drawn(found: Sequence[tuple[str, ...]], options: Options) -> dict[tuple[str, ...], str]:
    """A split for every clip, so that each class is divided in the same shares."""
    members: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in found:
        members[parts[0]].append(parts)
    splits = dict.fromkeys(found, "train")
    for clips in members.values():
        clips.sort(key=lambda parts: number("split", "/".join(parts)))
        test = round(options.test * len(clips))
        val = round(options.val * len(clips))
        splits |= dict.fromkeys(clips[:test], "test") | dict.fromkeys(clips[test : test + val], "val")
    return splits
