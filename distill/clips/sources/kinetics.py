"""Kinetics-400, -600 and -700 in the layout of CVDF and DeepMind; the lists say which of them it is.

A video is known by its name, {id}_{start}_{end} with six digits each, in whatever folder it lies: directly in the
folder, by split, by class (spelt raw, with underscores or without quotes and brackets), or among the replacements of
corrupted files, which go first. Class numbers are ranks of the raw labels: sorting sanitised folder names swaps two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest

FILES = {"train": ("train.csv",), "val": ("val.csv", "validate.csv"), "test": ("test.csv",)}
ORIGIN = "https://github.com/cvdfoundation/kinetics-dataset"


@dataclass
class Options:
    folder: str = MISSING
    """Where the videos lie, at any depth."""
    lists: str = MISSING
    """Folder of the official lists: train.csv, val.csv or validate.csv, and test.csv if test is "test"."""
    test: str = "val"
    """The official list to test on: "val", as papers report, or "test"; only then there is a validation split."""


class Row(NamedTuple):
    line: int
    label: str  # "" in a test list without labels
    youtube: str
    key: str


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder", ORIGIN)
    lists = listing.the_folder(options.lists, "lists", ORIGIN)
    splits = listing.official_splits(options.test)
    paths = {name: listing.the_list(lists, *FILES[name]) for name in splits}
    rows = {name: list(read(path, labelled=name != "test")) for name, path in paths.items()}
    classes = sorted({row.label for name in ("train", "val") for row in rows[name]})
    number = {name: label for label, name in enumerate(classes)} | {"": -1}

    replacements_first = sorted(listing.videos(folder), key=lambda path: ("replacement" not in path.lower(), path))
    found = listing.find(folder, replacements_first, listing.stem)
    named, clips = Counter[str](), list[Clip]()
    for name, split in splits.items():
        for row in rows[name]:
            if row.label not in number:
                raise listing.wrong(paths[name], row.line, f"no training clip has the label {row.label!r}")
            named[row.key] += 1  # the same seconds of a video may be named again, with another label
            clip_id = row.key if named[row.key] == 1 else f"{row.key}+{named[row.key]}"
            clips.append(Clip(clip_id, found.get(row.key, ""), number[row.label], split, group=row.youtube))
    return listing.manifest(clips, classes, folder, ".mp4 (.mkv, .webm)")


def read(path: Path, labelled: bool) -> Iterator[Row]:
    """The rows of an official list."""
    needed = ("label",) * labelled + ("youtube_id", "time_start", "time_end")
    for line, cells in listing.table(path, needed):
        label, youtube = cells.get("label", ""), cells["youtube_id"]
        if not youtube or (labelled and not label):
            raise listing.wrong(path, line, "lacks its label or its YouTube id")
        try:
            start, end = int(cells["time_start"]), int(cells["time_end"])
        except ValueError:
            times = f"{cells['time_start']!r} to {cells['time_end']!r}"
            raise listing.wrong(path, line, f"the times are whole seconds, not {times}") from None
        yield Row(line, label, youtube, f"{youtube}_{start:06d}_{end:06d}")
