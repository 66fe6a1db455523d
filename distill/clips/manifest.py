"""The typed table of clips that every job works from."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from xxhash import xxh3_64_intdigest

from distill.clips.facts import Facts
from distill.errors import UserError
from distill.randomness import number

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip. `id` names it for ever, on every machine: the views that are drawn of it hang on it."""

    id: str
    path: str  # a video, a folder of pictures, or a prepared file
    label: int  # class number, -1 = unlabelled
    split: str
    start: float = 0.0  # seconds into the file
    end: float | None = None  # None: the file's end
    group: str = ""  # clips of one group were cut from one recording: they stay on one side of a split
    facts: Facts | None = None  # None: the file has not been looked at yet

    @property
    def broken(self) -> bool:
        return self.facts is not None and bool(self.facts.trouble)

    @property
    def span(self) -> range:
        """The numbers of the clip's frames in its file."""
        assert self.facts is not None
        return self.facts.span(self.start, self.end)


@dataclass(frozen=True)
class Manifest:
    """Clips in a fixed order (a clip's place is its `index` in a batch) and the names of the classes."""

    clips: tuple[Clip, ...]
    classes: tuple[str, ...]
    missing: Mapping[str, int] = field(
        default_factory=dict
    )  # by split, clips that the lists name and that have no file
    # The classes that a mirror turns into another one; into -1: one that is not there, so these must not be mirrored.
    mirrored: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = set[str]()
        for clip in self.clips:
            if clip.id in ids:
                raise UserError(f"two clips of the data source have the id {clip.id}")
            ids.add(clip.id)
            if clip.split not in SPLITS:
                raise UserError(f"clip {clip.id} is in split {clip.split!r}; splits are {', '.join(SPLITS)}")
            if not -1 <= clip.label < len(self.classes):
                raise UserError(f"clip {clip.id} has label {clip.label}, but there are {len(self.classes)} classes")

    def of(self, split: str) -> list[int]:
        """The indices of a split's clips."""
        return [index for index, clip in enumerate(self.clips) if clip.split == split]

    @functools.cached_property
    def keys(self) -> np.ndarray:
        """uint64: what a cache knows each clip by. Another content is another clip; labels do not count, since no
        cache depends on them."""
        lines = (f"{clip.id}\t{clip.start}\t{clip.end}\t{clip.facts and clip.facts.digest}" for clip in self.clips)
        return np.fromiter((xxh3_64_intdigest(line.encode()) for line in lines), np.uint64, len(self.clips))

    def with_clips(self, clips: Iterable[Clip]) -> Manifest:
        return replace(self, clips=tuple(clips))

    def balance(self, split: str, per_class: int) -> Manifest:
        """Keep the same number of clips of every class in a split; which ones depends on their ids alone."""
        kept: set[str] = set()
        for label, members in self._by_class(split).items():
            if len(members) < per_class:
                raise UserError(
                    f"clips.per_class.{split} is {per_class}, but class {self.classes[label]!r} has only "
                    f"{len(members)} clips in {split}"
                )
            kept.update(clip.id for clip in _shuffled(members, "balance")[:per_class])
        return self.with_clips(clip for clip in self.clips if clip.split != split or clip.id in kept)

    def hold_out(self, share: float) -> Manifest:
        """Make a share of the training clips the validation split: whole groups, so that none is on both sides."""
        if not 0 <= share < 1:
            raise UserError(f"clips.validation is {share}; it is a share from 0 to below 1")
        groups: dict[str, list[Clip]] = defaultdict(list)
        for clip in self.clips:
            if clip.split == "train":
                groups[clip.group or clip.id].append(clip)
        by_class: dict[int, list[str]] = defaultdict(list)
        for name, members in groups.items():
            by_class[members[0].label].append(name)
        moved: set[str] = set()
        for names in by_class.values():
            names.sort(key=lambda name: number("hold out", name))
            moved.update(clip.id for name in names[: round(share * len(names))] for clip in groups[name])
        return self.with_clips(replace(clip, split="val") if clip.id in moved else clip for clip in self.clips)

    def hide_labels(self, keep: float, seed: int) -> Manifest:
        """Keep the labels of a share of each class's training clips and hide the others (label -1)."""
        if not 0 <= keep <= 1:
            raise UserError(f"clips.labelled is {keep}; it is a share between 0 and 1")
        hidden: set[str] = set()
        for members in self._by_class("train").values():
            shuffled = _shuffled(members, seed, "labelled")
            hidden.update(clip.id for clip in shuffled[round(keep * len(members)) :])
        return self.with_clips(replace(clip, label=-1) if clip.id in hidden else clip for clip in self.clips)

    def _by_class(self, split: str) -> dict[int, list[Clip]]:
        """A split's labelled clips that can be read."""
        found: dict[int, list[Clip]] = defaultdict(list)
        for clip in self.clips:
            if clip.split == split and clip.label >= 0 and not clip.broken:
                found[clip.label].append(clip)
        return found


def _shuffled(clips: Iterable[Clip], *key: object) -> list[Clip]:
    """In an order that depends on the key and each clip's id alone."""
    return sorted(clips, key=lambda clip: number(*key, clip.id))
