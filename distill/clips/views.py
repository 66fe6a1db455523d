"""A view is what a model gets to see of a clip: a time span, a crop box, a flip, a change of colour.

It is a pure function of (options, clip id, view number), so teacher, student, cache and every later epoch agree on it.
Training views are numbered from 1. View 0 is the plain one: the whole clip, the centre square. Negative numbers are the
views of a multi-view test, in order of their clips, and of their crops within a clip. A view's numbers know no pixels
and no frames: a student of 8 frames of 112 pixels and a teacher of 16 of 224 share a view.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.clips import sampling, square
from distill.errors import UserError
from distill.randomness import number as whole_number
from distill.randomness import uniforms

VERSION = 1  # raise when the same options give other pixels: caches are kept under a name that contains it

SAMPLERS = ("uniform", "segments", "dense", "pieces")
CROPS = {1: (0.5,), 3: (0.0, 0.5, 1.0)}  # places along the longer side

# RGB to brightness and the two colour axes of YIQ; a quarter turn in their plane, back in RGB: from red towards green.
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
GREY = np.ones((3, 1)) @ YIQ[:1]
QUARTER = np.linalg.inv(YIQ) @ np.array([[0, 0, 0], [0, 0, 1], [0, -1, 0]]) @ YIQ


@dataclass
class ViewOptions:
    count: int = 4
    """How many augmented views each training clip has; epoch e shows view 1 + e modulo count."""
    seed: int = 0
    """Draws other views."""
    span: float = 0.8
    """Shortest time span of a view, as a share of the clip. The dense sampler has a span of its own."""
    area: float = 0.6
    """Smallest crop of a view, as a share of the largest centre square."""
    flip: bool = False
    """Mirror half of the views left to right, and swap labels that have a side where the data source knows them."""
    light: float = 0.2
    """Largest relative change of brightness and contrast."""
    sampler: str = "uniform"
    """Frames of the span: uniform, segments (TSN), pieces (SlowFast, X-CLIP, ILA); or dense, a window of the clip."""
    stride: int = 2
    """Frames from one frame of a dense window to the next."""
    saturation: float = 0.0
    """Largest relative change of saturation."""
    hue: float = 0.0
    """Largest turn of the hues, as a share of the full circle."""
    test_clips: int = 1
    """How many times a test looks at each clip, in other frames. Its answers are averaged."""
    test_crops: int = 1
    """How many squares a test cuts from them: 1, the centre; 3, both ends of the longer side too."""


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
    saturation: float = 1.0
    hue: float = 0.0  # share of the full circle
    seed: int | None = None  # of the draws that move single frames; a view without it is a test's and draws none
    clip: int = 0  # which of a test's clips
    clips: int = 1


PLAIN = View(0.0, 1.0, 0.5, 0.5, 1.0, False, 1.0, 1.0)


def draw(options: ViewOptions, clip_id: str, number: int) -> View:
    """The view with this number of this clip."""
    if number <= 0:
        return _test_view(options, number)
    time, start, area, left, top, mirror, brightness, contrast = uniforms(options.seed, "view", clip_id, number)
    saturation, hue, *_ = uniforms(options.seed, "colour", clip_id, number)
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
        saturation=1 + options.saturation * (2 * saturation - 1),
        hue=options.hue * (2 * hue - 1),
        seed=whole_number(options.seed, "frames", clip_id, number),
    )


def _test_view(options: ViewOptions, number: int) -> View:
    if number == 0:
        return PLAIN
    clip, crop = divmod(-number - 1, options.test_crops)
    assert clip < options.test_clips, f"there is no test view {number}"
    place = CROPS[options.test_crops][crop]
    return View(0.0, 1.0, place, place, 1.0, False, 1.0, 1.0, clip=clip, clips=options.test_clips)


def test_views(options: ViewOptions) -> list[int]:
    """The numbers of the views that a test averages over."""
    count = options.test_clips * options.test_crops
    return [0] if count == 1 else [-1 - i for i in range(count)]


def plain(options: ViewOptions) -> ViewOptions:
    """One look at each clip, as it is seen live."""
    return replace(options, test_clips=1, test_crops=1)


def check(options: ViewOptions) -> None:
    for name, value in (("span", options.span), ("area", options.area)):
        if not 0 < value <= 1:
            raise UserError(f"clips.views.{name} is {value}; it is a share above 0 and at most 1")
    if not 0 <= options.light < 1:
        raise UserError(f"clips.views.light is {options.light}; it is at least 0 and below 1")
    for name, value, most in (("saturation", options.saturation, 1), ("hue", options.hue, 0.5)):
        if not 0 <= value <= most:
            raise UserError(f"clips.views.{name} is {value}; it is at least 0 and at most {most}")
    if options.count < 1:
        raise UserError(f"clips.views.count is {options.count}; there is at least one view")
    if options.sampler not in SAMPLERS:
        raise UserError(f"clips.views.sampler is {options.sampler!r}; it is one of {', '.join(SAMPLERS)}")
    for name, whole in (("stride", options.stride), ("test_clips", options.test_clips)):
        if whole < 1:
            raise UserError(f"clips.views.{name} is {whole}; it is at least 1")
    if options.test_crops not in CROPS:
        raise UserError(f"clips.views.test_crops is {options.test_crops}; it is 1 or 3")


def indices(view: View, options: ViewOptions, total: int, count: int, window: int | None = None) -> np.ndarray:
    """Which `count` frames of a clip of `total` frames the view shows, in their order.

    `window` is the length of a dense window, count * stride if not given: a student of fewer frames than its teacher
    is given its teacher's, and the two see the same span. A test of several clips moves every frame within its part
    of the clip, and the dense window from the beginning of the clip to its end.
    """
    if options.sampler == "dense":
        return _dense(view, options, total, count, window or count * options.stride)
    start, length = view.start * total, view.span * total
    place = (view.clip + 0.5) / view.clips
    if options.sampler == "uniform" or (options.sampler == "segments" and view.seed is None):
        return sampling.uniform(start + (place - 0.5) * length / count, length, count, total)
    within = max(1, round(length))
    first = min(int(start), total - within)
    if view.seed is None:
        return first + sampling.piece_middles(count, within, place)
    sampler = sampling.segments if options.sampler == "segments" else sampling.pieces
    return first + sampler(_draws(view.seed, count), within)


def _dense(view: View, options: ViewOptions, total: int, count: int, window: int) -> np.ndarray:
    """As mmaction2 places its windows; clips that are shorter than the window show all of themselves evenly."""
    span = window - options.stride + 1  # the frames behind the last that is shown do not have to be there
    if total < span:
        return sampling.uniform(0, total, count, total)
    if view.seed is None:
        start = sampling.mmaction_test_starts(view.clips, span, total)[view.clip]
    else:
        start = sampling.mmaction_train_starts(_draws(view.seed, 1), window, total)[0]
    return np.minimum(sampling.window(int(start), window, count), total - 1)


def _draws(seed: int, count: int) -> np.ndarray:
    blocks = [uniforms(seed, block) for block in range(-(-count // 8))]
    return np.concatenate(blocks)[:count]


def box(view: View, height: int, width: int) -> tuple[int, int, int]:
    """The view's square in frames of this size: top, left, side."""
    return square.box(height, width, view.side, view.top, view.left)


def cut(view: View, chosen: Sequence[np.ndarray] | np.ndarray, size: int) -> np.ndarray:
    """The view of the T frames that `indices` chose: uint8 [H,W,3] each -> uint8 [T,3,size,size]."""
    top, left, side = box(view, *chosen[0].shape[:2])
    square = np.stack([frame[top : top + side, left : left + side] for frame in chosen])
    if side != size:
        pixels = torch.from_numpy(square).permute(0, 3, 1, 2)  # channels last in memory, the fast way to resize
        resized = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
        square = resized.permute(0, 2, 3, 1).numpy()
    if view.flip:
        square = square[:, :, ::-1]
    planes = np.empty((len(chosen), 3, size, size), np.uint8)
    for channel in range(3):  # three strided copies take half the time of one transposition
        planes[:, channel] = square[..., channel]
    return recolour(torch.from_numpy(planes), colour(view)).numpy()


def pack(view: View) -> np.ndarray:
    """What was drawn, in 16 bytes that a cache keeps beside what it saw: whoever draws otherwise is found out."""
    shares = (view.start, view.span, view.left, view.top, view.side)
    colours = (view.brightness / 2, view.contrast / 2, view.saturation / 2, view.hue + 0.5)
    last = view.clip if view.seed is None else view.seed
    words = np.array([round(65535 * share) for share in shares], "<u2").view(np.uint8)
    return np.array([*words, view.flip, *(round(255 * share) for share in colours), last % 256], np.uint8)


def uncoloured(view: View) -> View:
    """The same view without its change of colour."""
    return replace(view, brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0)


def colour(view: View) -> np.ndarray:
    """The view's change of colour as one matrix [3,4]: R, G, B and 1 to R, G, B, in 0..255.

    Contrast is about 128. Saturation scales, and hue turns, the colour plane of YIQ, which leaves greys and YIQ's
    brightness as they are. It is not the hue of HSV, whose turn depends on the pixel and is no matrix.
    """
    gain = view.brightness * view.contrast
    offset = 128 * view.brightness * (1 - view.contrast)
    angle = 2 * math.pi * view.hue
    along, across = view.saturation * math.cos(angle), view.saturation * math.sin(angle)
    turn = np.eye(3) + (along - 1) * (np.eye(3) - GREY) + across * QUARTER
    return np.concatenate([gain * turn, np.full((3, 1), offset)], 1).astype(np.float32)


def recolour(frames: Tensor, matrix: np.ndarray) -> Tensor:
    """Colours of uint8 [...,3,H,W] through a matrix [3,4], rounded once, half to even; may return `frames` itself."""
    gain, offset = matrix[0, 0], matrix[0, 3]
    grey = np.array_equal(matrix, np.array([[gain, 0, 0, offset], [0, gain, 0, offset], [0, 0, gain, offset]]))
    if grey and (gain, offset) == (1, 0):
        return frames
    if frames.device.type != "cpu":
        return _recolour_planes(frames, matrix)
    return _recolour_values(frames, gain, offset) if grey else _recolour_pictures(frames, matrix)


def _recolour_planes(frames: Tensor, matrix: np.ndarray) -> Tensor:
    """Plane by plane, without a matrix product: those of a GPU may be less exact than float32."""
    red, green, blue = frames.float().unbind(-3)
    rows = [red * r + green * g + blue * b + offset for r, g, b, offset in matrix.tolist()]
    return torch.stack(rows, -3).round_().clamp_(0, 255).to(torch.uint8)


def _recolour_values(frames: Tensor, gain: float, offset: float) -> Tensor:
    """The same change for each of the 256 values: looked up."""
    values = np.arange(256, dtype=np.float32) * np.float32(gain) + np.float32(offset)
    table = np.rint(values).clip(0, 255).astype(np.uint8).tobytes()
    changed = bytearray(frames.contiguous().numpy()).translate(table)  # the fastest look-up there is in Python
    return torch.frombuffer(changed, dtype=torch.uint8).view(frames.shape)


def _recolour_pictures(frames: Tensor, matrix: np.ndarray) -> Tensor:
    """Picture by picture, so that the float numbers stay in the processor's cache; NumPy narrows them the fastest."""
    turn, offset = torch.tensor(matrix[:, :3]), torch.tensor(matrix[:, 3:])
    pictures = frames.reshape(-1, 3, frames.shape[-2] * frames.shape[-1])
    changed = np.empty(pictures.shape, np.uint8)
    for picture, target in zip(pictures, changed, strict=True):
        target[...] = torch.addmm(offset, turn, picture.float()).round_().clamp_(0, 255).numpy()
    return torch.from_numpy(changed).view(frames.shape)
