"""HMDB51 with its official lists: one file per class and fold, each line a video and 1 (train), 2 (test) or 0 (unused).

File names hold characters such as [ ] # and !, so no name is ever used as a pattern, and a class's list is found by its
exact name: `climb` is not `climb_stairs`. Class numbers are ranks of the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest
from distill.errors import UserError

SPLITS = {"0": "", "1": "train", "2": "test"}
# After the class: visible body parts, camera motion, number of people, view, quality, number.
TAGS = r"_[a-z]_(?:cm|nm)_np\d+_[a-z]{2}_[a-z]+_\d+"
ORIGIN = "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database"


@dataclass
class Options:
    folder: str = MISSING
    """Where the class folders with the videos lie."""
    lists: str = MISSING
    """Folder of the official lists: brush_hair_test_split1.txt and so on."""
    fold: int = 1
    """Which of the three official divisions."""


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder", ORIGIN)
    lists = listing.the_folder(options.lists, "lists", ORIGIN)
    ending = f"_test_split{options.fold}.txt"
    names = (entry.name for entry in listing.entries(str(lists)))
    classes = sorted(name.removesuffix(ending) for name in names if name.endswith(ending))
    if not classes:
        raise UserError(f"{lists} has no file *{ending}; set clips.source.lists to the folder of the official lists")
    found = listing.find(folder, listing.videos(folder), class_and_stem)
    clips = [
        Clip(f"{name}/{take}", found.get(f"{name}/{take}", ""), label, split, group=recording(take, name))
        for label, name in enumerate(classes)
        for take, split in read(lists / f"{name}{ending}")
    ]
    return listing.manifest(clips, classes, folder, ".avi")


def read(path: Path) -> Iterator[tuple[str, str]]:
    """(file name without its ending, split) of every line that is used."""
    for line, text in listing.lines(path):
        name, _, use = text.rpartition(" ")
        if use not in SPLITS or not name.lower().rstrip().endswith(".avi"):
            raise listing.wrong(path, line, f"{text!r} is not 'name.avi' and 0, 1 or 2")
        if SPLITS[use]:
            yield listing.stem(name.rstrip()), SPLITS[use]


def class_and_stem(path: str) -> str:
    """class/name, whatever lies above the class's folder."""
    return f"{path.rpartition('/')[0].rpartition('/')[2]}/{listing.stem(path)}"


def recording(take: str, name: str) -> str:
    """What stands before the class in a file's name is the video that it was cut from.

    The official folds keep such videos on one side within a class only, so the class belongs to the group.
    """
    match = re.fullmatch(rf"(.+)_{re.escape(name)}{TAGS}", take)
    return f"{name}/{match[1]}" if match else ""
