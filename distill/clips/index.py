"""The index: what was found when each file was looked at. One line of JSON per file, appended as the work goes on.

A line belongs to the file as it was (its size and time of change are in it); `distill clips` looks again at files that
changed. A line that was cut off by a kill is not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.clips.facts import Facts

DEFAULTS = asdict(Facts())


@dataclass(frozen=True)
class Entry:
    """What is known of one file. `stamp` tells its state: size and time of change, or the digest of its origin."""

    path: str
    stamp: str
    facts: Facts


def stamp(path: str) -> str:
    """A file's state, empty when it is not there."""
    try:
        state = os.stat(path)  # noqa: PTH116 - 240,000 Path objects cost seconds
    except OSError:
        return ""
    return f"{state.st_size}-{state.st_mtime_ns}"


class Index:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Entry]:
        """Every entry under its key; the newest counts."""
        return dict(self._rows())

    def _rows(self) -> Iterator[tuple[str, Entry]]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    yield row["key"], Entry(row["path"], row["stamp"], Facts(**row["facts"]))
                except (ValueError, TypeError, KeyError):
                    continue

    @contextmanager
    def adding(self) -> Iterator[Callable[[str, Entry], None]]:
        """A function that appends an entry under a key. Several processes may do so at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write("\n")  # an earlier process may have been killed within a line

            def add(key: str, entry: Entry) -> None:
                lines.write(_line(key, entry))
                lines.flush()

            yield add


def _line(key: str, entry: Entry) -> str:
    return json.dumps({"key": key, "path": entry.path, "stamp": entry.stamp, "facts": _told(entry.facts)}) + "\n"


def _told(facts: Facts) -> Mapping[str, Any]:
    """The facts that are not what a file without facts has."""
    return {name: value for name, value in asdict(facts).items() if value != DEFAULTS[name]}
