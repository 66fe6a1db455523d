"""Teacher outputs on disk, and the teacher that answers from them.

A record: logits (all of them, or the largest k with what the others add up to), feature, maps, and `seen`, 20 bytes
that tell which frames the teacher was shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from distill.clips.clipset import ClipSet
from distill.clips.frames import DRAWN, FORMS, Kept, identity
from distill.clips.views import CROPS
from distill.errors import UserError
from distill.outputs import Clips, TeacherOutput, TopK
from distill.shards.grid import MAPS, Needs, Shards
from distill.teaching.teacher import AUTOCAST

PRECISIONS = {"float16": np.float16, "float32": np.float32}
ALL_LOGITS = 1000  # up to this many classes all logits are kept unless told otherwise
LARGEST = 50  # so many of more classes


@dataclass
class CacheOptions:
    folder: str = "cache"
    """Where cached teacher outputs and frames are kept."""
    remote: str = ""
    """URL of a finished cache (s3://, gs://, hf://, ...); what is read of it is copied into the folder."""
    outputs: bool = True
    """Train from cached teacher outputs; false asks the teacher live at every step."""
    frames: bool = False
    """Keep the decoded frames too, and train from them, so that no epoch opens a video."""
    form: str = "raw"
    """How frames are kept: raw, or jpeg (about a twelfth of the size, slower to read, and not quite the same)."""
    precision: str = "float16"
    """How floating point outputs are stored: float16 or float32."""
    top_k: int = 0
    """How many of the largest logits are stored; 0 stores all of up to 1000 classes, and 50 of more."""
    maps: list[str] = field(default_factory=list)
    """The teacher's maps that are stored too, by name, e.g. [attention]."""
    test_clips: int = 0
    """Above 0 the teacher looks at a clip so many times, in other frames, for one soft label that serves all views."""
    test_crops: int = 1
    """With test_clips: how many squares it looks at each time, 1 or 3."""
    autocast: str = "no"
    """The precision that the teacher computes in: no (float32), bf16 or fp16."""
    compile: bool = False
    """Compile the teacher first: minutes at the start, faster on a GPU."""
    rows: int = 100
    """How many records `distill cache verify` makes again and compares."""
    failed: bool = False
    """Whether `distill cache prune` forgets the clips that could not be read, so that they are tried again."""
    others: bool = False
    """Whether `distill cache prune` removes the stores of other recipes too."""
    batch: int = 0
    """Clips that the teacher sees at once; 0 chooses by the size of a clip, and halves it when a GPU's memory ends."""

    @property
    def kept(self) -> Kept | None:
        """Where the frames are, if they are kept."""
        return Kept(Path(self.folder), self.form, self.remote) if self.frames else None

    def largest(self, classes: int) -> int:
        """How many logits are stored; 0: all."""
        wanted = self.top_k or (LARGEST if classes > ALL_LOGITS else 0)
        return 0 if wanted >= classes else wanted


def check(options: CacheOptions) -> None:
    for key, known in (("precision", PRECISIONS), ("autocast", AUTOCAST), ("form", FORMS)):
        if getattr(options, key) not in known:
            raise UserError(f"cache.{key} is {getattr(options, key)!r}; known: {', '.join(known)}")
    for key in ("top_k", "test_clips", "batch", "rows"):
        if getattr(options, key) < 0:
            raise UserError(f"cache.{key} is {getattr(options, key)}; it is at least 0")
    if options.test_crops not in CROPS:
        raise UserError(f"cache.test_crops is {options.test_crops}; it is 1 or 3")
    if options.test_clips and not options.outputs:
        raise UserError("cache.test_clips needs cache.outputs=true: a live teacher sees what the student sees")
    if options.autocast == "fp16" and not torch.cuda.is_available():
        raise UserError("cache.autocast=fp16 needs a GPU; a CPU knows bf16")


def output_shards(options: CacheOptions, clips: ClipSet, teacher: str) -> Shards:
    """`teacher` is its fingerprint."""
    classes = clips.manifest.classes
    about: dict[str, Any] = identity(clips.options.views, clips.spec, clips.options.decoder)
    about |= {
        "teacher": teacher,
        "classes": list(classes),
        "autocast": options.autocast,
        "precision": options.precision,
        "top_k": options.largest(len(classes)),
        "frames": options.form if options.frames else "raw",
        "soft_label": {"clips": options.test_clips, "crops": options.test_crops} if options.test_clips else None,
    }
    return Shards(Path(options.folder), "outputs", about, clips.manifest.keys, maps=options.maps, remote=options.remote)


def needed(options: CacheOptions, clips: ClipSet, training: Sequence[int]) -> Needs:
    """The records that these training clips are distilled from; a soft label stands in view 0."""
    wanted = [0] if options.test_clips else range(1, clips.options.views.count + 1)
    return dict.fromkeys(wanted, np.asarray(training, np.int64))


def pack(answer: TeacherOutput, seen: np.ndarray, precision: str, largest: int) -> dict[str, np.ndarray]:
    """An answer as named arrays."""
    kind = PRECISIONS[precision]

    def stored(value: torch.Tensor) -> np.ndarray:
        with np.errstate(over="ignore"):  # whoever asked looks for infinite numbers
            rows: np.ndarray = value.float().cpu().numpy().astype(kind)
        return rows

    fields = {"seen": seen}
    if largest:
        top = TopK.of(answer.dense.float(), largest)
        fields |= {"values": stored(top.values), "rest": stored(top.rest)}
        fields["indices"] = top.indices.cpu().numpy().astype(np.int32)
    else:
        fields["logits"] = stored(answer.dense)
    if answer.feature is not None:
        fields["feature"] = stored(answer.feature)
    return fields | {MAPS + name: stored(value) for name, value in answer.maps.items()}


class CachedTeacher:
    """Answers as the teacher did when the cache was made; float32 again, whatever was stored."""

    def __init__(self, shards: Shards, name: Callable[[int], str], soft_labels: bool, maps: Sequence[str] = ()) -> None:
        """`name` says of a clip which it is."""
        self.shards, self.name, self.soft_labels, self.maps = shards, name, soft_labels, maps
        self.fields: list[str] = []

    def __call__(self, clips: Clips) -> TeacherOutput:
        index, view = clips.index.cpu().numpy(), clips.view.cpu().numpy()
        if self.soft_labels:
            view = np.zeros_like(view)
        if not self.fields:
            there, _ = self.shards.record("", int(index[0]), int(view[0]))
            self.fields = [name for name in ("seen", "logits", "values", "indices", "rest", "feature") if name in there]
            self.fields += [MAPS + name for name in self.maps]
        found = dict(zip(self.fields, self.shards.read(self.fields, index, view), strict=True))
        self._compare(found.pop("seen"), clips, index)
        kinds = {name: np.int64 if name == "indices" else np.float32 for name in found}
        read = {
            name: torch.from_numpy(rows.astype(kinds[name])).to(clips.frames.device) for name, rows in found.items()
        }
        return TeacherOutput(
            logits=read["logits"] if "logits" in read else TopK(read["values"], read["indices"], read["rest"]),
            feature=read.get("feature"),
            maps={name: read[MAPS + name] for name in self.maps},
        )

    def _compare(self, kept: np.ndarray, clips: Clips, index: np.ndarray) -> None:
        """Whether the student is about to see what the teacher saw."""
        unread = ~kept.any(1)
        if unread.any():
            raise UserError(
                f"{self.name(int(index[unread][0]))} could not be read when the teacher was asked; to try again: "
                "distill cache prune with the same recipe and cache.failed=true, then distill cache"
            )
        if clips.seen is None or self.soft_labels:
            return
        shown = clips.seen.cpu().numpy()
        final = shown[:, DRAWN:].any(1)
        same = (shown[:, :DRAWN] == kept[:, :DRAWN]).all(1)
        same &= ~final | (shown[:, DRAWN:] == kept[:, DRAWN:]).all(1)
        if not same.all():
            at = int(np.flatnonzero(~same)[0])
            what = "view was drawn" if (shown[at, :DRAWN] != kept[at, :DRAWN]).any() else "pixels came out"
            raise UserError(
                f"{self.name(int(index[at]))}: in view {int(clips.view[at])} another {what} than when the teacher saw "
                f"it; {self.shards.folder} was made by another version of distill or of its decoder, so cache again"
            )
