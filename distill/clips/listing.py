"""What the data sources share: reading their lists, finding the files, and making a manifest of the two.

A file that a list names and that is not there is counted, since every large data set has lost some. A list or a folder
that is not there, and a line that cannot be read, is an error.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from distill.clips.manifest import Clip, Manifest
from distill.clips.pictures import ENDINGS as PICTURES
from distill.errors import UserError

VIDEOS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv")
MEDIA = (*VIDEOS, *PICTURES)


# ---------------------------------------------------------------- lists


def wrong(path: Path, line: int, what: str) -> UserError:
    return UserError(f"{path}, line {line}: {what}")


def the_folder(path: str, option: str, origin: str = "") -> Path:
    """The folder that an option names, as an absolute path; `origin` is where people get what belongs there."""
    found = Path(os.path.normpath(Path(path).expanduser().absolute()))  # the index knows files by their path
    get = f"get it from {origin} and put it there, or say where it lies" if origin else ""
    if not path or not found.is_dir():
        raise UserError(f"clips.source.{option} names {found}, which is no folder; {get or 'say where it lies'}")
    return found


def the_list(folder: Path, *names: str) -> Path:
    """The first of these files that the folder has."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has no {' or '.join(names)}; set clips.source.lists to the folder of the official lists")


def text(path: Path) -> str:
    """A file's text, its lines ending in a line feed, whoever wrote it."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, each with its number, without the spaces around it."""
    for number, line in enumerate(text(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def table(path: Path, needed: Sequence[str], delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its line number; names of columns are in lower case."""
    reader = csv.reader(io.StringIO(text(path)), delimiter=delimiter)
    columns: list[str] = []
    try:
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if not any(values):
                continue
            if not columns:
                columns = [name.lower() for name in values]
                lacking = [name for name in needed if name not in columns]
                if lacking:
                    raise wrong(path, reader.line_num, f"the header has no {lacking[0]!r}, only {', '.join(columns)}")
            elif len(values) != len(columns):
                hint = "; a text with a comma in it needs quotes" if len(values) > len(columns) else ""
                raise wrong(path, reader.line_num, f"has {len(values)} cells, the header has {len(columns)}{hint}")
            else:
                yield reader.line_num, dict(zip(columns, values, strict=True))
    except csv.Error as error:
        raise wrong(path, reader.line_num, f"is not CSV ({error})") from error
    if not columns:
        raise UserError(f"{path} is empty; its first line names the columns {', '.join(needed)}")


def official_splits(test: str) -> dict[str, str]:
    """Which official lists are used, and the split that each of them is here."""
    if test == "val":
        return {"train": "train", "val": "test"}
    if test == "test":
        return {"train": "train", "val": "val", "test": "test"}
    raise UserError(f"clips.source.test is {test!r}; it is val or test, the official list to test on")


def mirror(classes: Sequence[str], pairs: Iterable[tuple[str, str]]) -> dict[int, int]:
    """Class number to class number; to -1 where the mirror image is of a class that is not there."""
    number = {name: place for place, name in enumerate(classes)}
    both = [pair for a, b in pairs for pair in ((a, b), (b, a))]
    return {number[name]: number.get(other, -1) for name, other in both if name in number}


# ---------------------------------------------------------------- files


def entries(folder: str) -> list[os.DirEntry[str]]:
    """What a folder holds, hidden files aside, in the order of the names."""
    try:
        with os.scandir(folder) as found:
            return sorted((entry for entry in found if entry.name[0] != "."), key=lambda entry: entry.name)
    except PermissionError as error:
        raise UserError(f"{folder} may not be read; change its permissions or move it out of the data") from error


def walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder at and below this one, as "" or "a/b/", with the names of its videos and pictures.

    A name is enough to tell a file: asking the disk about each of 240,000 files takes minutes on a network.
    """
    yield from _walk(folder, "", frozenset())


def _walk(folder: Path, relative: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, list[str]]]:
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return  # a link that leads back up
    files, folders = list[str](), list[str]()
    for entry in entries(str(folder)):
        if entry.name.lower().endswith(MEDIA):
            files.append(entry.name)
        elif entry.is_dir():
            folders.append(entry.name)
    try:
        "".join(files + folders).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{folder} holds a name that is not UTF-8; rename what is in there") from error
    yield relative, files
    for name in folders:
        yield from _walk(folder / name, f"{relative}{name}/", above | {here})


def videos(folder: Path) -> list[str]:
    """Every video at and below a folder, as a path relative to it."""
    return [base + name for base, files in walk(folder) for name in files if name.lower().endswith(VIDEOS)]


def stem(path: str) -> str:
    """A file's name without its folder and its ending; the name itself may have dots."""
    return path.rpartition("/")[2].rpartition(".")[0]


def find(folder: Path, files: Iterable[str], key: Callable[[str], str]) -> dict[str, str]:
    """For each key the first of the files that has it, as an absolute path."""
    found: dict[str, str] = {}
    for path in files:
        found.setdefault(key(path), f"{folder}/{path}")
    return found


def manifest(
    clips: Sequence[Clip], classes: Sequence[str], folder: Path, ending: str, mirrored: Mapping[int, int] | None = None
) -> Manifest:
    """The clips that have a path; the others, whose file was not found, are counted.

    A clip's id with this ending, below this folder, is an example of what was looked for.
    """
    there = tuple(clip for clip in clips if clip.path)
    if not clips:
        raise UserError("the lists of clips.source name no clip at all")
    if not there:
        raise UserError(
            f"none of the {len(clips)} clips that the lists name was found, e.g. no {clips[0].id}{ending} "
            f"below {folder}; set clips.source.folder to where they lie"
        )
    missing = Counter(clip.split for clip in clips if not clip.path)
    return Manifest(there, tuple(classes), dict(missing), mirrored or {})
