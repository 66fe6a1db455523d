"""Jester v1: hand gestures, each clip a folder of JPEG pictures. A mirror turns six of the classes into another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest

FILES = {name: f"jester-v1-{file}.csv" for name, file in (("train", "train"), ("val", "validation"), ("test", "test"))}
MIRRORED = (
    ("Swiping Left", "Swiping Right"),
    ("Sliding Two Fingers Left", "Sliding Two Fingers Right"),
    ("Turning Hand Clockwise", "Turning Hand Counterclockwise"),
)
ORIGIN = "https://www.qualcomm.com/developer/software/jester-dataset"


@dataclass
class Options:
    folder: str = MISSING
    """Where the clips' folders lie, each with 00001.jpg and so on."""
    lists: str = MISSING
    """Folder of jester-v1-labels.csv, jester-v1-train.csv, jester-v1-validation.csv and jester-v1-test.csv."""
    test: str = "val"
    """The official list to test on: "val", or "test", which has no labels; only then there is a validation split."""


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder", ORIGIN)
    lists = listing.the_folder(options.lists, "lists", ORIGIN)
    splits = listing.official_splits(options.test)
    paths = {name: listing.the_list(lists, FILES[name]) for name in splits}
    classes = [name for _, name in listing.lines(listing.the_list(lists, "jester-v1-labels.csv"))]
    number = {name: label for label, name in enumerate(classes)}
    there = {entry.name for entry in listing.entries(str(folder)) if entry.is_dir()}
    clips = [
        Clip(clip_id, f"{folder}/{clip_id}" if clip_id in there else "", label, split)
        for name, split in splits.items()
        for clip_id, label in read(paths[name], number, labelled=name != "test")
    ]
    return listing.manifest(clips, classes, folder, "/00001.jpg", listing.mirror(classes, MIRRORED))


def read(path: Path, number: dict[str, int], labelled: bool) -> Iterator[tuple[str, int]]:
    """(clip, class number) of every line: `id;label`, or `id` alone in the test list."""
    for line, text in listing.lines(path):
        clip_id, _, label = (part.strip() for part in text.partition(";"))
        if not clip_id or (labelled and not label):
            raise listing.wrong(path, line, f"{text!r} is not 'id;label'")
        if label and label not in number:
            raise listing.wrong(path, line, f"jester-v1-labels.csv has no {label!r}")
        yield clip_id, number[label] if label else -1
