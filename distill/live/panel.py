"""The panel on the picture: the likeliest classes as bars, and how fast it goes. Readable on any picture: it brings its
own ground, and small pictures are enlarged first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST, LARGEST = 360, 8192  # pixels of the shorter and of the longer side of what is shown
STRIP = SMALLEST // 2  # of the shorter side of what would be too large otherwise
GROUND = (16, 19, 24, 184)
TRACK = (255, 255, 255, 26)
FIRST, OTHERS = (76, 122, 240, 255), (126, 142, 166, 150)
INK, MUTED = (255, 255, 255, 255), (206, 212, 220, 255)
FINE = 4  # shapes are drawn so many times as large, then made smaller: smooth edges

Shape = tuple[tuple[int, int, int, int], float, tuple[int, int, int, int]]  # box, radius, colour
Patch = tuple[int, int, Image.Image]  # left, top, RGBA
Row = tuple[str, float]


def enlarged(picture: np.ndarray) -> np.ndarray:
    """uint8 [H,W,3] as it is shown: neither too small nor too large, and of even sides, as video files want them. A
    strip gets black beside it."""
    height, width = picture.shape[:2]
    times = min(max(1, math.ceil(SMALLEST / min(height, width))), LARGEST / max(height, width))
    if times != 1:
        size = max(1, round(times * width)), max(1, round(times * height))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    lacking = [max(0, STRIP - side) for side in picture.shape[:2]]
    if any(lacking):
        picture = np.pad(picture, [*((part // 2, part - part // 2) for part in lacking), (0, 0)])
    return picture[: picture.shape[0] // 2 * 2, : picture.shape[1] // 2 * 2]


class Panel:
    """Draws rows of (class, probability) and a line of news; drawn anew only when they change."""

    def __init__(self) -> None:
        self.drawn: tuple[object, ...] = ()
        self.patches: list[Patch] = []

    def on(self, picture: np.ndarray, rows: Sequence[Row], news: str) -> np.ndarray:
        """uint8 RGB [H,W,3] with the panel on it; the picture given stays as it is."""
        size = picture.shape[1], picture.shape[0]
        wanted = (size, tuple(rows), news)
        if wanted != self.drawn:
            self.drawn, self.patches = wanted, _patches(size, rows, news)
        shown = np.array(picture)
        for left, top, patch in self.patches:
            _blend(shown[top : top + patch.height, left : left + patch.width], patch)
        return shown


def _blend(ground: np.ndarray, patch: Image.Image) -> None:
    image = Image.fromarray(ground)
    image.paste(patch, (0, 0), patch)
    ground[...] = np.asarray(image)


def _patches(size: tuple[int, int], rows: Sequence[Row], news: str) -> list[Patch]:
    width, height = size
    unit = max(14, round(min(height, 0.85 * width) / 22))  # height of the letters
    margin = round(0.8 * unit)
    room = width - 2 * margin
    line = _news(news, round(0.85 * unit), room)
    patches = [(margin, margin, line)] if news else []
    fitting = int((0.62 * height - 1.2 * unit) / (1.75 * unit))
    if rows:
        bars = _bars(rows[: max(1, fitting)], unit, min(room, max(round(0.34 * width), 19 * unit)))
        patches.append((margin, height - margin - bars.height, bars))
    return patches


def _bars(rows: Sequence[Row], unit: int, width: int) -> Image.Image:
    """One bar for each row, its name on it and its share at the end."""
    pad, step, bar = round(0.6 * unit), round(1.75 * unit), round(1.5 * unit)
    height = 2 * pad + step * (len(rows) - 1) + bar
    length, round_ = width - 2 * pad, 0.3 * unit
    shapes: list[Shape] = [((0, 0, width, height), 0.7 * unit, GROUND)]
    for i, (_, share) in enumerate(rows):
        top = pad + i * step
        shapes.append(((pad, top, pad + length, top + bar), round_, TRACK))
        if (filled := round(share * length)) > 1:
            shapes.append(((pad, top, pad + filled, top + bar), min(round_, filled / 2), FIRST if i == 0 else OTHERS))
    image = _shapes(width, height, shapes)
    draw, font = ImageDraw.Draw(image), _font(unit)
    for i, (name, share) in enumerate(rows):
        middle, colour = pad + i * step + bar / 2, INK if i == 0 else MUTED
        percent = f"{100 * share:.0f} %"
        end = pad + length - 0.5 * unit
        draw.text((end, middle), percent, colour, font, anchor="rm")
        fits = _shortened(name, font, end - draw.textlength("100 %", font) - unit - pad)
        draw.text((pad + 0.5 * unit, middle), fits, colour, font, anchor="lm")
    return image


def _news(text: str, unit: int, room: int) -> Image.Image:
    """A line of text on a ground of its own."""
    font, pad = _font(unit), round(0.7 * unit)
    text = _shortened(text, font, room - 2 * pad)
    width, height = round(font.getlength(text)) + 2 * pad, round(2 * unit)
    image = _shapes(width, height, [((0, 0, width, height), height / 2, GROUND)])
    ImageDraw.Draw(image).text((width / 2, height / 2), text, INK, font, anchor="mm")
    return image


def _shapes(width: int, height: int, shapes: Sequence[Shape]) -> Image.Image:
    """Rounded boxes over each other."""
    image = Image.new("RGBA", (width, height), (*GROUND[:3], 0))
    for (left, top, right, bottom), radius, colour in shapes:
        box = Image.new("RGBA", (right - left, bottom - top), colour)
        box.putalpha(
            _rounded(right - left, bottom - top, radius).point(lambda cover, most=colour[3]: cover * most // 255)
        )
        image.alpha_composite(box, (left, top))
    return image


@lru_cache(maxsize=32)
def _rounded(width: int, height: int, radius: float) -> Image.Image:
    """A box's cover, 0 to 255."""
    cover = Image.new("L", (FINE * width, FINE * height))
    ImageDraw.Draw(cover).rounded_rectangle((0, 0, FINE * width - 1, FINE * height - 1), FINE * radius, 255)
    return cover.resize((width, height), Image.Resampling.BOX)


def _shortened(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """What fits of a text."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip() + "…"


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The one that comes with Pillow."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
