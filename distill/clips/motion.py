"""The embedded data: handwritten digits that move, drawn once as H.264 files.

A digit has a place, a size and an angle. Each of them lives on a circle (it wraps around) and starts anywhere on it
with equal chance, so at every moment every class has exactly the same distribution of pictures; only the change over
time tells one class from another. The digits come with scikit-learn; no picture is shared between the splits.
"""

from __future__ import annotations

import functools
import json
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import av
import numpy as np
from scipy.ndimage import map_coordinates, zoom
from sklearn.datasets import load_digits

from distill.clips.manifest import SPLITS
from distill.clips.video import SAME
from distill.errors import UserError
from distill.files import publish
from distill.randomness import generator, number
from distill.surroundings import cores

# Speed of (x, y, log size, turn) per clip length, in circumferences; orbits and zig-zags are added on top.
LINES: dict[str, tuple[float, float, float, float]] = {
    "right": (1, 0, 0, 0),
    "left": (-1, 0, 0, 0),
    "down": (0, 1, 0, 0),
    "up": (0, -1, 0, 0),
    "down_right": (0.7, 0.7, 0, 0),
    "up_left": (-0.7, -0.7, 0, 0),
    "down_left": (-0.7, 0.7, 0, 0),
    "up_right": (0.7, -0.7, 0, 0),
    "grow": (0, 0, 0.8, 0),
    "shrink": (0, 0, -0.8, 0),
    "spin_left": (0, 0, 0, -1),
    "spin_right": (0, 0, 0, 1),
}
ORBITS: dict[str, int] = {"clockwise": 1, "anticlockwise": -1}
CLASSES = (*LINES, *ORBITS, "zigzag", "still")
DEFAULT_CLASSES = tuple(name for name in CLASSES if name not in ("down_left", "up_right", "zigzag", "still"))

FPS = 10
RENDERER = 2  # raise when the drawing changes: the rendered files are kept under a name that contains it


@dataclass
class Drawing:
    """How the clips look. Everything here changes the files."""

    classes: list[str] = field(default_factory=lambda: list(DEFAULT_CLASSES))
    """Which motions; known: see distill/clips/motion.py."""
    train: int = 150
    """Training clips per class."""
    val: int = 20
    """Validation clips per class."""
    test: int = 50
    """Test clips per class."""
    size: int = 48
    """Side of the picture in pixels."""
    frames: int = 20
    """Length of a clip in frames, at 10 frames a second."""
    speed: float = 0.6
    """Mean distance covered in a clip, in picture widths (turns, doublings)."""
    contrast: float = 1.0
    """Strength of the digit against the background."""
    texture: float = 0.4
    """Strength of the background's pattern."""
    noise: float = 0.03
    """Standard deviation of the camera's noise, as a share of full scale."""
    drift: float = 0.1
    """How far the background itself moves in a clip, in picture widths, whatever the class."""
    seed: int = 0
    """Draws other clips."""


def check(drawing: Drawing) -> None:
    unknown = [name for name in drawing.classes if name not in CLASSES]
    if unknown:
        raise UserError(f"clips.source.classes: there is no motion {unknown[0]!r}; known: {', '.join(CLASSES)}")
    if len(set(drawing.classes)) != len(drawing.classes) or len(drawing.classes) < 2:
        raise UserError("clips.source.classes: give two or more different motions")
    if drawing.size < 16 or drawing.size % 2 or drawing.frames < 2:
        raise UserError("clips.source: size is even and at least 16, frames at least 2")


def clip_names(drawing: Drawing) -> list[tuple[str, str, str]]:
    """(clip id, class, split) of every clip, in the manifest's order."""
    counts = dict(zip(SPLITS, (drawing.train, drawing.val, drawing.test), strict=True))
    return [
        (f"{split}/{name}/{take:05d}", name, split)
        for split in SPLITS
        for name in drawing.classes
        for take in range(counts[split])
    ]


def _path(drawing: Drawing, motion: str, speed: float, start: np.ndarray) -> np.ndarray:
    """Where the digit is in each frame: [frames, 4] of x, y, log size and turn, each in circumferences."""
    time = np.arange(drawing.frames) / drawing.frames
    path = np.repeat(start[None, :4], drawing.frames, axis=0)
    if motion in LINES:
        path += speed * time[:, None] * np.array(LINES[motion])
    elif motion in ORBITS:
        angle = 2 * np.pi * (start[4] + ORBITS[motion] * 1.6 * speed * time)
        path[:, 0] += 0.22 * np.cos(angle)
        path[:, 1] += 0.22 * np.sin(angle)
    elif motion == "zigzag":
        path[:, 0] += 0.22 * (4 * np.abs((start[4] + 3 * speed * time) % 1 - 0.5) - 1)
    wrapped: np.ndarray = path % 1
    return wrapped


@functools.lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures [N,8,8] in [0,1], and which digit each shows."""
    found = load_digits()
    return np.asarray(found.images, np.float32) / 16.0, np.asarray(found.target)


@functools.lru_cache
def digit_numbers(split: str) -> np.ndarray:
    """Which of scikit-learn's digit pictures a split may use."""
    share = np.array([number("digit", i) / 2**63 for i in range(len(_digits()[0]))])
    low, high = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}[split]
    return np.flatnonzero((share >= low) & (share < high))


def _pick(drawing: Drawing, clip_id: str, split: str) -> tuple[int, np.random.Generator]:
    """The number of the picture that a clip shows, and where the rest of it is drawn from."""
    rng = generator(drawing.seed, "motion", clip_id)
    return int(rng.choice(digit_numbers(split))), rng


def digit(drawing: Drawing, clip_id: str, split: str) -> int:
    """Which digit moves in a clip."""
    return int(_digits()[1][_pick(drawing, clip_id, split)[0]])


def draw(drawing: Drawing, clip_id: str, motion: str, split: str) -> np.ndarray:
    """The frames of one clip, uint8 [frames, size, size, 3]; depends on the arguments alone."""
    picture_number, rng = _pick(drawing, clip_id, split)
    size, digit_picture = drawing.size, _digits()[0][picture_number]
    path = _path(drawing, motion, drawing.speed * rng.uniform(0.7, 1.3), rng.uniform(size=5))
    rows, columns = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")

    # Into the digit's own coordinates: the nearest copy on the torus, turned and scaled.
    half = size / 2
    dx = (columns[None] - size * path[:, 0, None, None] + half) % size - half
    dy = (rows[None] - size * path[:, 1, None, None] + half) % size - half
    turn = 2 * np.pi * path[:, 3, None, None]
    side = size * 0.24 * 2.8 ** path[:, 2, None, None]  # from 24 % to 67 % of the picture
    across = (dx * np.cos(turn) + dy * np.sin(turn)) / side * 8 + 3.5
    along = (-dx * np.sin(turn) + dy * np.cos(turn)) / side * 8 + 3.5
    ink = drawing.contrast * map_coordinates(digit_picture, [along, across], order=1, cval=0.0, prefilter=False)

    background = _background(drawing, rng, rows, columns)
    paint = rng.uniform(0.75, 1.0, 3) if background.mean() < 0.5 else rng.uniform(0.0, 0.25, 3)
    picture = background * (1 - ink[..., None]) + paint * ink[..., None]
    picture += drawing.noise * rng.standard_normal(picture.shape)
    return np.asarray((255 * picture.clip(0, 1)).round(), np.uint8)


def _background(drawing: Drawing, rng: np.random.Generator, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A soft coloured pattern that drifts a little in a direction of its own: [frames, size, size, 3]."""
    coarse = rng.uniform(-1, 1, (6, 6, 3))
    tile = np.pad(coarse, ((0, 1), (0, 1), (0, 0)), mode="wrap")
    pattern = np.stack([zoom(tile[..., c], drawing.size / 6, order=1) for c in range(3)], -1)
    side = pattern.shape[0]
    heading, time = rng.uniform(0, 2 * np.pi), np.arange(drawing.frames)[:, None, None] / drawing.frames
    shift = drawing.drift * drawing.size
    down = np.round(rows[None] + shift * np.sin(heading) * time).astype(int) % side
    right = np.round(columns[None] + shift * np.cos(heading) * time).astype(int) % side
    base = rng.uniform(0.25, 0.4, 3) + (0.35 if rng.random() < 0.5 else 0.0)
    return np.asarray(base + 0.35 * drawing.texture * pattern[down, right])


def encode(frames: np.ndarray, path: Path) -> None:
    """Write frames [n,H,W,3] as an H.264 .mp4."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=SAME | {"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def folder(drawing: Drawing, root: Path) -> Path:
    """Where the clips of this drawing lie."""
    name = json.dumps({"renderer": RENDERER, **asdict(drawing)}, sort_keys=True)
    return root / f"motion-{number(name):016x}"


def _render(drawing: Drawing, into: Path, names: list[tuple[str, str, str]]) -> int:
    for clip_id, motion, split in names:
        path = into / f"{clip_id}.mp4"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            frames = draw(drawing, clip_id, motion, split)
            publish(path, functools.partial(encode, frames))
    return len(names)


def render(drawing: Drawing, root: Path) -> Path:
    """Draw the clips that are not there yet; several processes may do so at once. Returns the folder."""
    into = folder(drawing, root)
    done = into / "drawing.json"
    if not done.exists():
        names = clip_names(drawing)
        parts = [names[start : start + 50] for start in range(0, len(names), 50)]
        with ProcessPoolExecutor(cores()) as pool:
            for _ in pool.map(_render, [drawing] * len(parts), [into] * len(parts), parts):
                pass
        publish(done, lambda part: part.write_text(json.dumps(asdict(drawing), indent=1)))
    return into
