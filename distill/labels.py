"""Class names: read from files, and matched between a teacher and a data set."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path


def read_labels(path: Path) -> list[str]:
    """Names in the order of the logits: one a line, or JSON (a list, or number -> name as transformers has it)."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; it should list the class names in the order of the logits")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        found = json.loads(text)
        found = [found[key] for key in sorted(found, key=int)] if isinstance(found, dict) else found
    except ValueError as error:
        raise ValueError(f"{path} is not a list of class names ({error})") from error
    return [str(name) for name in found]


def columns(theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Which of their classes each of ours is, by name; capitals and punctuation count only where names need them."""
    exact = {name: place for place, name in enumerate(theirs)}
    loose: dict[str, int] = {}
    for place, name in enumerate(theirs):
        loose[_plain(name)] = -1 if _plain(name) in loose else place
    found = [exact.get(name, loose.get(_plain(name), -1)) for name in ours]
    unmatched = [name for name, place in zip(ours, found, strict=True) if place < 0]
    if unmatched:
        some = ", ".join(repr(name) for name in unmatched[:10]) + (", ..." if len(unmatched) > 10 else "")
        example = ", ".join(repr(name) for name in theirs[:3])
        raise ValueError(
            f"does not know {len(unmatched)} of the data set's {len(ours)} classes: {some}; its own {len(theirs)} are "
            f"{example}, ..."
        )
    if len(set(found)) < len(found):
        seen: dict[int, str] = {}
        one, other = next((seen[p], n) for n, p in zip(ours, found, strict=True) if seen.setdefault(p, n) != n)
        raise ValueError(f"has one class for two of the data set's: {one!r} and {other!r}")
    return found


def _plain(name: str) -> str:
    return " ".join(re.findall(r"\w+", name.casefold().replace("_", " ")))
