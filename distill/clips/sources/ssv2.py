"""Something-Something v2. A class is a template without its brackets; a mirror turns six of them into another one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from distill.clips import listing
from distill.clips.manifest import Clip, Manifest
from distill.errors import UserError

FILES = {"labels": "labels", "train": "train", "val": "validation", "test": "test"}
MIRRORED = (
    ("Pulling something from left to right", "Pulling something from right to left"),
    ("Pushing something from left to right", "Pushing something from right to left"),
    ("Turning the camera left while filming something", "Turning the camera right while filming something"),
)
ORIGIN = "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"


@dataclass
class Options:
    folder: str = MISSING
    """Where the videos lie, {id}.webm or another format, at any depth."""
    lists: str = MISSING
    """Folder of something-something-v2-labels.json, -train.json, -validation.json, -test.json; short names do too."""
    test: str = "val"
    """The official list to test on: "val", or "test", which has no labels; only then there is a validation split."""


def build(options: Options) -> Manifest:
    folder = listing.the_folder(options.folder, "folder", ORIGIN)
    lists = listing.the_folder(options.lists, "lists", ORIGIN)
    splits = listing.official_splits(options.test)
    paths = {name: _list(lists, FILES[name]) for name in ("labels", *splits)}
    classes = read_classes(paths["labels"])
    number = {name: label for label, name in enumerate(classes)}
    found = listing.find(folder, listing.videos(folder), listing.stem)
    clips = [
        Clip(clip_id, found.get(clip_id, ""), label, split)
        for name, split in splits.items()
        for clip_id, label in read(paths[name], number, labelled=name != "test")
    ]
    return listing.manifest(clips, classes, folder, ".webm (.mp4)", listing.mirror(classes, MIRRORED))


def _list(lists: Path, name: str) -> Path:
    return listing.the_list(lists, f"something-something-v2-{name}.json", f"{name}.json", f"labels/{name}.json")


def _parsed(path: Path) -> Any:
    try:
        return json.loads(listing.text(path))
    except json.JSONDecodeError as error:
        raise listing.wrong(path, error.lineno, f"is not JSON ({error.msg})") from error


def _bare(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def read_classes(path: Path) -> list[str]:
    """The templates in the order of their numbers, which the file gives as text."""
    given = _parsed(path)
    try:
        order = {int(number): _bare(template) for template, number in given.items()}
    except (AttributeError, ValueError, TypeError) as error:
        raise UserError(f"{path} does not give every template its number ({error})") from error
    if sorted(order) != list(range(len(given))):
        raise UserError(f"{path} has {len(given)} templates, but their numbers are not 0 to {len(given) - 1}")
    return [order[label] for label in range(len(order))]


def read(path: Path, number: dict[str, int], labelled: bool) -> Iterator[tuple[str, int]]:
    """(clip, class number) of every entry; the test list has no templates."""
    entries = _parsed(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is no list of clips; see clips.source.lists")
    for place, entry in enumerate(entries, start=1):
        try:
            yield str(entry["id"]), number[_bare(entry["template"])] if labelled else -1
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}, entry {place}: no id, or a template that the labels lack ({error})") from error
