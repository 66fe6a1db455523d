"""A view is what a model gets to see of a clip: a time span, a crop box, a flip, a change of light.

It is a pure function of (options, clip id, view number), so teacher, student, cache and every later epoch agree on it.
View 0 is the plain one: the whole clip, the centre square. Its numbers know no pixels: a 112-pixel student and a
224-pixel teacher share a view.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from distill.clips.sampling import uniform
from distill.errors import UserError
from distill.outputs import ClipSpec
from distill.randomness import uniforms

VERSION = 1  # raise when the same options give other pixels: caches are kept under a name that contains it


@dataclass
class ViewOptions:
    count: int = 4
    """How many augmented views each training clip has; epoch e shows view 1 + e modulo count."""
    seed: int = 0
    """Draws other views."""
    span: float = 0.8
    """Shortest time span of a view, as a share of the clip."""
    area: float = 0.6
    """Smallest crop of a view, as a share of the largest centre square."""
    flip: bool = False
    """Mirror half of the views left to right. Off by default: it swaps classes such as 'move left'."""
    light: float = 0.2
    """Largest relative change of brightness and contrast."""


@dataclass(frozen=True)
class View:
    """Everything that was drawn. Shares of the clip's length and of its shorter side."""

    start: float  # of the time span, share of the clip
    span: float
    left: float  # of the crop, share of the room there is
    top: float
    side: float  # share of the shorter side
    flip: bool
    brightness: float
    contrast: float


PLAIN = View(0.0, 1.0, 0.5, 0.5, 1.0, False, 1.0, 1.0)


def draw(options: ViewOptions, clip_id: str, number: int) -> View:
    """The view with this number of this clip."""
    if number == 0:
        return PLAIN
    time, start, area, left, top, mirror, brightness, contrast = uniforms(options.seed, "view", clip_id, number)
    span = options.span + (1 - options.span) * time
    return View(
        start=(1 - span) * start,
        span=span,
        left=left,
        top=top,
        side=(options.area + (1 - options.area) * area) ** 0.5,
        flip=options.flip and mirror < 0.5,
        brightness=1 + options.light * (2 * brightness - 1),
        contrast=1 + options.light * (2 * contrast - 1),
    )


def check(options: ViewOptions) -> None:
    for name, value in (("span", options.span), ("area", options.area)):
        if not 0 < value <= 1:
            raise UserError(f"clips.views.{name} is {value}; it is a share above 0 and at most 1")
    if not 0 <= options.light < 1:
        raise UserError(f"clips.views.light is {options.light}; it is at least 0 and below 1")
    if options.count < 1:
        raise UserError(f"clips.views.count is {options.count}; there is at least one view")


def apply(view: View, video: np.ndarray, spec: ClipSpec) -> np.ndarray:
    """Cut a view out of a decoded clip: uint8 [N,H,W,3] -> uint8 [T,3,size,size]."""
    total, height, width = video.shape[:3]
    chosen = video[uniform(view.start * total, view.span * total, spec.frames, total)]
    side = max(1, round(view.side * min(height, width)))
    top, left = round(view.top * (height - side)), round(view.left * (width - side))
    frames = torch.from_numpy(chosen[:, top : top + side, left : left + side]).permute(0, 3, 1, 2)
    if side != spec.size:
        frames = F.interpolate(frames, (spec.size, spec.size), mode="bilinear", antialias=True)
    if view.flip:
        frames = frames.flip(-1)
    if (view.brightness, view.contrast) != (1.0, 1.0):
        gain = view.brightness * view.contrast
        offset = 128 * view.brightness * (1 - view.contrast)
        frames = frames.float().mul_(gain).add_(offset).round_().clamp_(0, 255).to(torch.uint8)
    return frames.contiguous().numpy()
