"""Teacher outputs on disk, and the teacher that answers from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.clips.frames import identity
from distill.clips.manifest import Manifest
from distill.clips.views import ViewOptions
from distill.errors import UserError
from distill.outputs import Clips, ClipSpec, TeacherOutput
from distill.shards import Shards

PRECISIONS = {"float16": np.float16, "float32": np.float32}


@dataclass
class CacheOptions:
    folder: str = "cache"
    """Where cached teacher outputs and frames are kept."""
    outputs: bool = True
    """Train from cached teacher outputs; false asks the teacher live at every step."""
    frames: bool = False
    """Keep the decoded frames too, and train from them, so that no epoch opens a video."""
    precision: str = "float16"
    """How floating point outputs are stored: float16 or float32."""


def output_shards(
    options: CacheOptions,
    manifest: Manifest,
    views: ViewOptions,
    spec: ClipSpec,
    teacher: str,
    autocast: str,
    decoder: str,
) -> Shards:
    """`teacher` is its fingerprint, `autocast` the precision it runs in."""
    if options.precision not in PRECISIONS:
        raise UserError(f"cache.precision is {options.precision!r}; known: {', '.join(PRECISIONS)}")
    about = {
        "teacher": teacher,
        "classes": list(manifest.classes),
        "autocast": autocast,
        "precision": options.precision,
    }
    return Shards(
        Path(options.folder), "outputs", identity(manifest, views, spec, decoder) | about, len(manifest.clips)
    )


def pack(answers: list[TeacherOutput], precision: str) -> dict[str, np.ndarray]:
    """The answers about a shard's clips as named arrays."""
    stored = PRECISIONS[precision]
    fields: dict[str, list[Any]] = {}
    for answer in answers:
        for name, value in _named(answer):
            fields.setdefault(name, []).append(value.float().cpu().numpy().astype(stored))
    return {name: np.concatenate(parts) for name, parts in fields.items()}


def _named(answer: TeacherOutput) -> Iterator[tuple[str, torch.Tensor]]:
    yield "logits", answer.logits
    if answer.feature is not None:
        yield "feature", answer.feature
    for name, value in answer.maps.items():
        yield f"maps.{name}", value


class CachedTeacher:
    """Answers as the teacher did when the cache was made; float32 again, whatever was stored."""

    def __init__(self, shards: Shards) -> None:
        self.shards = shards

    def __call__(self, clips: Clips) -> TeacherOutput:
        index, view = clips.index.cpu().numpy(), clips.view.cpu().numpy()

        def read(field: str) -> torch.Tensor:
            return torch.from_numpy(self.shards.read(field, index, view).astype(np.float32)).to(clips.frames.device)

        fields = self.shards.fields(int(index[0]), int(view[0]))
        return TeacherOutput(
            logits=read("logits"),
            feature=read("feature") if "feature" in fields else None,
            maps={name.removeprefix("maps."): read(name) for name in sorted(fields) if name.startswith("maps.")},
        )
