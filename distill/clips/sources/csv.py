"""Lists of paths and labels, as mmaction2, VideoMAE, SlowFast and pytorchvideo write them, or a CSV with a header.

Without a header a line is read from its right end, so that paths may hold spaces and commas:

    path label                 a video, or anything else that is one clip
    folder count label         a folder of pictures (mmaction2's and VideoMAE's raw frames)
    folder offset count label  the same; the offset has to be 0, since a clip is a whole folder

A header names the columns path and label (a name or a number), and, if there are, start and end (seconds), split and
group. Spaces, tabs and commas separate.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.clips import listing
from distill.clips.manifest import SPLITS, Clip, Manifest
from distill.errors import UserError

NUMBERS = {"video": 1, "rawframes": 2, "offset": 3}  # at a line's end, by layout
WORDS = dict.fromkeys(("train", "training"), "train") | dict.fromkeys(("test", "testing"), "test")
WORDS |= dict.fromkeys(("val", "valid", "validate", "validation"), "val")
LAST = re.compile(r"(.*[^\s,])\s*[\s,]\s*(-?\d+)")
WHOLE = re.compile(r"-?\d+|")


@dataclass
class Options:
    list: str = ""
    """One list for everything; its column split divides it, and without one all clips are training clips."""
    train: str = ""
    """The list of the training clips."""
    val: str = ""
    """The list of the validation clips."""
    test: str = ""
    """The list of the test clips."""
    folder: str = ""
    """Where the paths start, and what absolute ones are below; empty = each list's own folder."""
    classes: str = ""
    """A file with the name of one class on each line, in the order of their numbers; empty = as the labels say."""
    layout: str = "auto"
    """How a line reads: "header", "video", "rawframes", "offset" (see the top of the file), or "auto": by looking."""


@dataclass(frozen=True)
class Row:
    """One line of a list."""

    file: Path
    line: int
    path: str
    label: str
    split: str
    start: float = 0.0
    end: float | None = None
    group: str = ""


def build(options: Options) -> Manifest:
    lists = the_lists(options)
    rows = [row for split, path in lists.items() for row in read(path, split, options.layout)]
    classes = read_classes(options.classes) if options.classes else implied_classes(rows)
    number = {name: label for label, name in enumerate(classes)}
    by_number = all(WHOLE.fullmatch(row.label) for row in rows)
    folder = listing.the_folder(options.folder, "folder") if options.folder else None
    home = os.path.normpath(folder or os.path.commonpath([path.parent for path in lists.values()]))
    lister, named, clips = Lister(), dict[str, Row](), list[Clip]()
    for row in rows:
        path, clip_id = place(row, folder or row.file.parent, home)
        if clip_id in named:
            other = f"line {named[clip_id].line} of {named[clip_id].file}"
            raise listing.wrong(row.file, row.line, f"{row.path} is in {other} too; a clip has one line and one split")
        named[clip_id] = row
        label = int(row.label or -1) if by_number else number.get(row.label, -2 if row.label else -1)
        if not -1 <= label < len(classes):
            raise listing.wrong(row.file, row.line, f"there is no class {row.label} among {len(classes)} classes")
        found = path if lister.has(path) else ""
        clips.append(Clip(clip_id, found, label, row.split, row.start, row.end, row.group))
    return listing.manifest(clips, classes, Path(home), "")


def the_lists(options: Options) -> dict[str, Path]:
    """The list files by split; "" is the one that has a column for it."""
    given = {"": options.list} | {split: getattr(options, split) for split in SPLITS}
    paths = {split: Path(path).expanduser().absolute() for split, path in given.items() if path}
    if not paths or ("" in paths and len(paths) > 1):
        raise UserError("clips.source needs either list, or train, val and test; each names a list file")
    if options.layout not in ("auto", "header", *NUMBERS):
        raise UserError(f"clips.source.layout is {options.layout!r}; it is auto, header, {', '.join(NUMBERS)}")
    for split, path in paths.items():
        if not path.is_file():
            raise UserError(f"clips.source.{split or 'list'} names {path}, which is no file; say where the list lies")
    return paths


def place(row: Row, base: Path, home: str) -> tuple[str, str]:
    """A clip's path, and its id: the path below `home`, which is the same on every machine, and the time span."""
    path = os.path.normpath(row.path if row.path[0] == "/" else f"{base}/{row.path}")
    within = path.removeprefix(f"{home.rstrip('/')}/")
    if within == path:
        if row.path[0] == "/":
            what = f"{path} is not below {home}; set clips.source.folder to a folder that all paths are below"
            raise listing.wrong(row.file, row.line, what)
        within = os.path.relpath(path, home)
    if row.start == 0 and row.end is None:
        return path, within
    return path, f"{within}@{row.start:.12g}-" + ("" if row.end is None else f"{row.end:.12g}")


class Lister:
    """Says whether paths are there, asking the disk once for each folder."""

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        if folder not in self.names:
            try:
                self.names[folder] = {entry.name for entry in listing.entries(folder or "/")}
            except (FileNotFoundError, NotADirectoryError):
                self.names[folder] = set()
        return name in self.names[folder]


# ---------------------------------------------------------------- classes


def read_classes(path: str) -> list[str]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"clips.source.classes names {file}, which is no file; say where the names of the classes lie")
    names: dict[str, int] = {}
    for line, name in listing.lines(file):
        if name in names:
            raise listing.wrong(file, line, f"the class {name!r} is in line {names[name]} too")
        names[name] = line
    return list(names)


def implied_classes(rows: Sequence[Row]) -> list[str]:
    """The classes that the labels themselves imply: numbers from 0 on, or names in the order of the alphabet."""
    labels = {row.label: row for row in rows if row.label}
    names = [label for label in labels if not WHOLE.fullmatch(label)]
    if names and len(names) < len(labels):
        row = labels[names[0]]
        raise listing.wrong(row.file, row.line, f"the label {row.label!r} is a name, others are numbers; use one sort")
    return sorted(names) if names else [str(label) for label in range(max(map(int, labels), default=-1) + 1)]


# ---------------------------------------------------------------- lines


def read(path: Path, split: str, layout: str) -> list[Row]:
    """The rows of a list file."""
    lines = list(listing.lines(path))
    if not lines:
        raise UserError(f"{path} is empty; a line of it is a path and a label")
    head = [cell.strip('" ').lower() for cell in re.split(r"[\s,]", lines[0][1])]
    if layout == "header" or (layout == "auto" and {"path", "label"} <= set(head)):
        return list(with_header(path, split, lines[0][1]))
    count = NUMBERS.get(layout) or look([text for _, text in lines])
    return [Row(path, line, *cut(path, line, text, count), split or "train") for line, text in lines]


def with_header(path: Path, split: str, header: str) -> Iterator[Row]:
    delimiter = next((mark for mark in ",\t" if mark in header), " ")
    for line, cells in listing.table(path, ("path", "label"), delimiter):
        if not cells["path"]:
            raise listing.wrong(path, line, "has no path")
        own = cells.get("split") or "train"
        if not split and own.lower() not in WORDS:
            raise listing.wrong(path, line, f"the split is {own!r}; it is {', '.join(SPLITS)}")
        start, end = (seconds(path, line, cells.get(column, "")) for column in ("start", "end"))
        if end is not None and end <= (start or 0.0):
            raise listing.wrong(path, line, f"the clip ends at {end:g} s, before it starts")
        yield Row(
            path, line, cells["path"], cells["label"], split or WORDS[own.lower()], start or 0.0, end,
            cells.get("group", ""),
        )  # fmt: skip


def seconds(path: Path, line: int, text: str) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not 0 <= value < math.inf:
        raise listing.wrong(path, line, f"{text!r} is no time in seconds")
    return value


def peel(text: str) -> tuple[str, list[str]]:
    """Whole numbers off the right end of a line, down to the name of a video or to where there are no more."""
    numbers: list[str] = []
    while not text.lower().endswith(listing.VIDEOS) and (match := LAST.fullmatch(text)):
        text = match[1]
        numbers.insert(0, match[2])
    return text, numbers


def look(lines: Sequence[str]) -> int:
    """How many of the numbers at the end of a line are not part of its path."""
    peeled = [peel(text) for text in lines]
    if any(path.lower().endswith(listing.VIDEOS) for path, _ in peeled):
        return NUMBERS["video"]
    return max(1, min(3, *(len(numbers) for _, numbers in peeled)))


def cut(file: Path, line: int, text: str, count: int) -> tuple[str, str]:
    """The path and the label of a line that ends in so many numbers."""
    path, numbers = text, list[str]()
    while len(numbers) < count:
        match = LAST.fullmatch(path)
        if not match:
            needed = ("a label number", "a number of pictures and a label number", "an offset and two numbers")[
                count - 1
            ]
            raise listing.wrong(file, line, f"{text!r} is not a path and {needed}")
        path = match[1]
        numbers.insert(0, match[2])
    bare, more = peel(path)
    if more and bare.lower().endswith(listing.VIDEOS):
        raise listing.wrong(file, line, f"{text!r} has several labels; a clip has one here")
    if count == NUMBERS["offset"] and int(numbers[0]):
        raise listing.wrong(file, line, f"starts at picture {numbers[0]}; a clip is a whole folder of pictures")
    path = path.strip('"')
    if not path:
        raise listing.wrong(file, line, "has no path")
    return path, numbers[-1]
