"""UCF101 with its official train/test lists.

The class is the folder's name, and its number is the line in classInd.txt, which is sorted without regard to case.
File names are no guide: the folder HandstandPushups holds v_HandStandPushups_g01_c01.avi.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest

CLASS = re.compile(r"(\d+)\s+(\S+)")
CLIP = re.compile(r"([^/]+)/([^/]+_(g\d+)_c\d+)\.avi(?:\s+(\d+))?", re.IGNORECASE)
ORIGIN = "https://www.crcv.ucf.edu/data/UCF101.php"


@dataclass
class Options:
    folder: str = MISSING
    """Where the videos lie, at any depth."""
    lists: str = MISSING
    """Folder of the official lists: classInd.txt, trainlist01.txt, testlist01.txt and so on."""
    fold: int = 1
    """Which of the three official divisions."""


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder", ORIGIN)
    lists = listing.the_folder(options.lists, "lists", ORIGIN)
    paths = {split: listing.the_list(lists, f"{split}list{options.fold:02d}.txt") for split in ("train", "test")}
    classes = read_classes(listing.the_list(lists, "classInd.txt"))
    number = {name: label for label, name in enumerate(classes)}
    found = listing.find(folder, listing.videos(folder), lambda path: listing.stem(path).casefold())
    clips = [
        Clip(f"{name}/{take}", found.get(take.casefold(), ""), number[name], split, group=f"{name}_{group}")
        for split, path in paths.items()
        for name, take, group in read(path, number)
    ]
    return listing.manifest(clips, classes, folder, ".avi")


def read_classes(path: Path) -> list[str]:
    """The names in classInd.txt, whose numbers start at 1 and leave none out."""
    classes: list[str] = []
    for line, text in listing.lines(path):
        match = CLASS.fullmatch(text)
        if not match or int(match[1]) != len(classes) + 1:
            raise listing.wrong(path, line, f"{text!r} is not '{len(classes) + 1} ClassName'")
        classes.append(match[2])
    return classes


def read(path: Path, number: Mapping[str, int]) -> list[tuple[str, str, str]]:
    """(class, file name without its ending, group) of every line of a train or test list."""
    rows = []
    for line, text in listing.lines(path):
        match = CLIP.fullmatch(text)
        if not match:
            raise listing.wrong(path, line, f"{text!r} is not 'Class/v_Class_g01_c01.avi', with or without a number")
        name, take, group, label = match.groups()
        if name not in number:
            raise listing.wrong(path, line, f"classInd.txt has no class {name!r}")
        if label and int(label) != number[name] + 1:
            raise listing.wrong(path, line, f"{name} is class {number[name] + 1} in classInd.txt, not {label}")
        rows.append((name, take, group))
    return rows
