"""The clips of a run: from a recipe's options to a manifest, and to the frames behind it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from distill import plugins
from distill.clips import decoders, views
from distill.clips.facts import Facts
from distill.clips.frames import DecodedFrames, Frames, Kept, StoredFrames, frame_shards
from distill.clips.index import Index
from distill.clips.manifest import SPLITS, Clip, Manifest
from distill.clips.prepare import Copies
from distill.errors import UserError
from distill.outputs import ClipSpec


@dataclass
class PerClass:
    train: int = 0
    """Training clips of each class; 0 = all there are."""
    val: int = 0
    """Validation clips of each class; 0 = all there are."""
    test: int = 0
    """Test clips of each class; 0 = all there are."""


@dataclass
class ClipOptions:
    source: Any = field(default_factory=lambda: {"name": "motion"})
    """The data set: name of a file in distill/clips/sources/, and its options."""
    missing: float = 0.1
    """Largest share of the listed clips that may have no file."""
    per_class: PerClass = field(default_factory=PerClass)
    validation: float = 0.0
    """Share of the training clips, in whole recordings, that becomes the validation split."""
    labelled: float = 1.0
    """Share of each class's training clips whose label training may use; the other labels are hidden."""
    unlabelled: bool = True
    """Whether training also sees the clips without a label."""
    views: views.ViewOptions = field(default_factory=views.ViewOptions)
    prepare: bool = False
    """Read small copies that decode quickly instead of the files; `distill clips prepare=true` makes them."""
    frames: str = "video"
    """What copies hold: video (H.264), jpeg or raw (a picture for each frame)."""
    short_side: int = 256
    """Short side of copies in pixels; smaller clips keep their size."""
    decoder: str = "pyav"
    """Reads videos: pyav, decord or torchcodec; PyAV steps in for files that the other is known to read wrongly."""
    workers: int = 2
    """Processes that decode; not used when frames come from the cache."""
    timeout: int = 300
    """Seconds after which a worker that is stuck in a file is killed; the clip is named."""
    failing: float = 0.01
    """Largest share of the training clips that may turn out unreadable; others take their place."""


@dataclass(frozen=True)
class ClipSet:
    """A manifest that can be looked at: the clips as one run sees them."""

    manifest: Manifest
    spec: ClipSpec
    options: ClipOptions
    frames: Frames

    def training(self) -> list[int]:
        """The clips to train on: those that can be read, and have a label where one is needed."""
        clips, train = self.manifest.clips, self.manifest.of("train")
        broken = sum(clips[i].broken for i in train)
        if train and broken > self.options.failing * len(train):
            raise UserError(
                f"{broken} of {len(train)} training clips cannot be read; run distill clips to see which, "
                "or allow more with clips.failing"
            )
        chosen = [i for i in train if not clips[i].broken and (self.options.unlabelled or clips[i].label >= 0)]
        if not chosen:
            hidden = "clips.labelled hides every label and clips.unlabelled is false"
            raise UserError(f"no training clips: {hidden if train else 'the data source has none'}")
        return chosen

    def for_tests(self) -> ClipSet:
        """The same clips for evaluation; only training views and the plain one are ever stored."""
        if views.test_views(self.options.views) == [0] or isinstance(self.frames, DecodedFrames):
            return self
        return self._decoding(self.options)

    def seen_once(self) -> ClipSet:
        """The same clips for evaluation by one look at each, as they are seen live."""
        options = replace(self.options, views=views.plain(self.options.views))
        return self._decoding(options) if isinstance(self.frames, DecodedFrames) else replace(self, options=options)

    def uncoloured(self) -> ClipSet:
        """The same clips, with changes of colour left to the device that trains; stored frames have theirs already."""
        return self._decoding(self.options, coloured=False) if isinstance(self.frames, DecodedFrames) else self

    def _decoding(self, options: ClipOptions, coloured: bool = True) -> ClipSet:
        """The same clips with these options, from their files."""
        frames = DecodedFrames(self.manifest, options.views, self.spec, options.decoder, coloured=coloured)
        return replace(self, options=options, frames=frames)

    def with_trouble(self, indices: Collection[int], trouble: str) -> ClipSet:
        """The same clips, these of them broken."""
        clips = [
            replace(clip, facts=replace(clip.facts, trouble=trouble)) if i in indices and clip.facts else clip
            for i, clip in enumerate(self.manifest.clips)
        ]
        return replace(self, manifest=self.manifest.with_clips(clips))

    @property
    def seconds(self) -> float | None:
        """Of video that a clip's frames are spread over, as training sees it; None where nothing tells."""
        clips = ((clip, clip.facts) for clip in self.manifest.clips if not clip.broken)
        known = [(clip, facts.fps) for clip, facts in clips if facts and facts.fps]
        if not known:
            return None
        if self.options.views.sampler == "dense":
            return self.spec.frames * self.options.views.stride / median(fps for _, fps in known)
        return median(len(clip.span) / fps for clip, fps in known)

    @property
    def workers(self) -> int:
        return self.options.workers if isinstance(self.frames, DecodedFrames) else 0

    @property
    def lacking(self) -> str:
        """What a person should know of the clips that are not there; empty when all are."""
        parts = []
        for split in SPLITS:
            chosen, missing = self.manifest.of(split), self.manifest.missing.get(split, 0)
            broken = sum(self.manifest.clips[index].broken for index in chosen)
            for count, what in ((missing, "have no file"), (broken, "cannot be read")):
                if count:
                    parts.append(f"{count} of {len(chosen) + missing} {split} clips {what}")
        return "; ".join(parts)

    def name(self, index: int) -> str:
        clip = self.manifest.clips[index]
        return f"clip {clip.id} ({clip.path})"


def check(options: ClipOptions) -> None:
    views.check(options.views)
    decoders.check(options.decoder)
    for name, least in (("workers", 0), ("timeout", 1)):
        if getattr(options, name) < least:
            raise UserError(f"clips.{name} is {getattr(options, name)}; it is at least {least}")
    for name in ("missing", "failing"):
        if not 0 <= getattr(options, name) <= 1:
            raise UserError(f"clips.{name} is {getattr(options, name)}; it is a share between 0 and 1")


def list_clips(options: ClipOptions) -> Manifest:
    """The data source's clips, before anything is known of their files."""
    check(options)
    manifest: Manifest = plugins.build("source", options.source)
    for split, missing in manifest.missing.items():
        listed = len(manifest.of(split)) + missing
        if missing > options.missing * listed:
            raise UserError(
                f"{missing} of the {listed} {split} clips that {options.source.name} lists have no file; "
                "get them, or allow it with clips.missing"
            )
    return manifest


def file_index(cache: Path, options: ClipOptions) -> Index:
    """What is known of the data source's files."""
    return Index(cache / "index" / f"{options.source.name}.jsonl")


def with_facts(manifest: Manifest, index: Index) -> Manifest:
    """The same clips with what the index knows of their files."""
    known = index.read()
    return manifest.with_clips(
        replace(clip, facts=_of_span(clip, known[clip.path])) if clip.facts is None and clip.path in known else clip
        for clip in manifest.clips
    )


def _of_span(clip: Clip, facts: Facts) -> Facts:
    """The file's facts; a clip whose seconds are not in the file is broken."""
    if facts.trouble or (not clip.start and clip.end is None):
        return facts
    if not facts.fps:
        return replace(facts, trouble="does not say how long a frame lasts, so seconds of it mean nothing")
    if clip.start * facts.fps >= facts.frames:
        return replace(facts, trouble=f"ends before second {clip.start:g}, where the clip starts")
    return facts


def open_manifest(options: ClipOptions, cache: Path, seed: int) -> Manifest:
    """The clips of a run: those that the recipe chooses, with the labels hidden that the recipe hides."""
    manifest = with_facts(list_clips(options), file_index(cache, options))
    unknown = sum(clip.facts is None for clip in manifest.clips)
    if unknown:
        raise UserError(
            f"{unknown} of {len(manifest.clips)} clips have not been looked at yet; "
            "run: distill clips with the same recipe and keys"
        )
    _check_sides(manifest, options)
    if options.prepare:
        manifest = Copies(cache, options.frames, options.short_side).instead_of(manifest)
    for split in SPLITS:
        wanted = getattr(options.per_class, split)
        manifest = manifest.balance(split, wanted) if wanted else manifest
    manifest = manifest.hold_out(options.validation) if options.validation else manifest
    return manifest.hide_labels(options.labelled, seed) if options.labelled != 1 else manifest


def _check_sides(manifest: Manifest, options: ClipOptions) -> None:
    for label, other in manifest.mirrored.items():
        if options.views.flip and other < 0:
            raise UserError(
                f"clips.views.flip would turn class {manifest.classes[label]!r} into one that the data set has not; "
                "set it to false"
            )


def open_clips(manifest: Manifest, options: ClipOptions, spec: ClipSpec, kept: Kept | None) -> ClipSet:
    """The clips at one size; `kept` says where their frames are when those are to be used."""
    frames: Frames = (
        StoredFrames(frame_shards(kept, manifest, options.views, spec, options.decoder), kept.form)
        if kept
        else DecodedFrames(manifest, options.views, spec, options.decoder)
    )
    return ClipSet(manifest, spec, options, frames)
