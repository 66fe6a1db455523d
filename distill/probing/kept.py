"""Parts of an answer on the disk, each sealed with what was asked and what was found."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from distill.files import publish_text


@dataclass(frozen=True)
class Kept:
    folder: Path
    key: str  # of the question

    def read(self, name: str) -> Any:
        """A part as it was left; None where it is not there, answers another question, or has been changed since."""
        try:
            kept = json.loads((self.folder / name).read_text(encoding="utf-8"))
            part, seal = kept["part"], kept["seal"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return part if seal == self._seal(json.dumps(part)) else None

    def write(self, name: str, part: Any) -> None:
        text = json.dumps(part)
        publish_text(self.folder / name, f'{{"seal": "{self._seal(text)}", "part": {text}}}')

    def _seal(self, text: str) -> str:
        return xxh3_128(f"{self.key} {text}".encode()).hexdigest()
