"""The index: what was found when each file was looked at. One line of JSON per file, appended as the work goes on.

A line belongs to the file as it was (Facts.stamp); `distill clips` looks again at files that changed. A line that was
cut off by a kill is not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.clips.facts import Facts

DEFAULTS = asdict(Facts())


class Index:
    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Facts]:
        """What is known of each file, by its path; the newest line counts."""
        return dict(self._rows())

    def _rows(self) -> Iterator[tuple[str, Facts]]:
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    row = json.loads(line)
                    facts = {**row["facts"], "times": tuple(row["facts"].get("times", ()))}
                    yield str(row["path"]), Facts(**facts)
                except (ValueError, TypeError, KeyError):
                    continue

    @contextmanager
    def adding(self) -> Iterator[Callable[[str, Facts], None]]:
        """A function that appends what was found of a file. Several processes may do so at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as lines:
            if lines.tell():
                lines.write("\n")  # an earlier process may have been killed within a line

            def add(path: str, facts: Facts) -> None:
                lines.write(json.dumps({"path": path, "facts": _told(facts)}) + "\n")
                lines.flush()

            yield add


def _told(facts: Facts) -> Mapping[str, Any]:
    """The facts that are not what a file without facts has."""
    return {name: value for name, value in asdict(facts).items() if value != DEFAULTS[name]}
