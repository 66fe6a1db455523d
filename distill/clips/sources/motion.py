"""The embedded data set: digits in motion, drawn on first use. See distill/clips/motion.py."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from distill.clips import listing, motion
from distill.clips.facts import Facts
from distill.clips.manifest import Clip, Manifest
from distill.errors import UserError

MIRRORED = (
    ("left", "right"),
    ("down_left", "down_right"),
    ("up_left", "up_right"),
    ("clockwise", "anticlockwise"),
    ("spin_left", "spin_right"),
)


@dataclass
class Options(motion.Drawing):
    folder: str = ""
    """Where the rendered clips are kept; empty = $XDG_CACHE_HOME/distill (or ~/.cache/distill)."""
    label: str = "motion"
    """What a clip is labelled by: its motion, which no single frame shows, or its digit, which every frame does."""


def build(options: Options) -> Manifest:
    drawing = motion.Drawing(**{f.name: getattr(options, f.name) for f in fields(motion.Drawing)})
    motion.check(drawing)
    if options.label not in ("motion", "digit"):
        raise UserError(f"clips.source.label is {options.label!r}; it is motion or digit")
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "distill"
    folder = motion.render(drawing, Path(options.folder) if options.folder else default)
    facts = Facts(frames=drawing.frames, fps=motion.FPS, width=drawing.size, height=drawing.size, container="mp4")
    by_digit = options.label == "digit"
    classes = tuple(map(str, range(10))) if by_digit else tuple(drawing.classes)
    clips = tuple(
        Clip(id=f"{folder.name}/{clip_id}", path=str(folder / f"{clip_id}.mp4"), label=label, split=split, facts=facts)
        for clip_id, name, split in motion.clip_names(drawing)
        for label in [motion.digit(drawing, clip_id, split) if by_digit else drawing.classes.index(name)]
    )
    return Manifest(clips, classes, mirrored=listing.mirror(classes, MIRRORED))
