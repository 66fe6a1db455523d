"""The typed table of clips that every job works from."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, replace

from distill.errors import UserError
from distill.randomness import number

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Clip:
    """One clip. `id` names it for ever: views and caches hang on it, so another video needs another id."""

    id: str
    path: str
    label: int  # class number, -1 = unlabelled
    split: str


@dataclass(frozen=True)
class Manifest:
    """Clips in a fixed order (a clip's place is its `index` in a batch) and the names of the classes."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len({clip.id for clip in self.clips}) != len(self.clips):
            raise UserError("two clips of the data source have the same id")
        for clip in self.clips:
            if clip.split not in SPLITS:
                raise UserError(f"clip {clip.id} is in split {clip.split!r}; splits are {', '.join(SPLITS)}")
            if not -1 <= clip.label < len(self.classes):
                raise UserError(f"clip {clip.id} has label {clip.label}, but there are {len(self.classes)} classes")

    def of(self, split: str) -> list[int]:
        """The indices of a split's clips."""
        return [index for index, clip in enumerate(self.clips) if clip.split == split]

    @property
    def digest(self) -> str:
        """Changes when a clip joins, leaves or moves; labels do not count, since no cache depends on them."""
        return hashlib.blake2b("\n".join(clip.id for clip in self.clips).encode(), digest_size=8).hexdigest()

    def hide_labels(self, keep: float, seed: int) -> Manifest:
        """Keep the labels of a share of each class's training clips and hide the others (label -1)."""
        if not 0 <= keep <= 1:
            raise UserError(f"clips.labelled is {keep}; it is a share between 0 and 1")
        by_class: dict[int, list[Clip]] = defaultdict(list)
        for clip in self.clips:
            if clip.split == "train" and clip.label >= 0:
                by_class[clip.label].append(clip)
        hidden: set[str] = set()
        for members in by_class.values():
            shuffled = sorted(members, key=lambda clip: number(seed, "labelled", clip.id))
            hidden.update(clip.id for clip in shuffled[round(keep * len(members)) :])
        clips = (replace(clip, label=-1) if clip.id in hidden else clip for clip in self.clips)
        return replace(self, clips=tuple(clips))
