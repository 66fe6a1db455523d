"""The square of a picture that the plain view shows, and its scaling without torch, for boxes that have no room for it.

The pixels are, to the bit, those of torch's resize, which is quicker and serves where torch is: it works in whole
numbers, first along rows, then along columns, and rounds to a byte after each.

Shape legend: H height, W width, S side of what a model sees.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Band = tuple[slice, slice, np.ndarray]  # places of the picture, places of the result, weights of the one for the other

LARGEST = 1 << 15  # what torch keeps a weight's whole number below
FINEST = 22  # bits of a weight at most
ROWS, COLUMNS = 64, 16  # what is worked on at a time, so that it stays in the processor's cache


def box(height: int, width: int, side: float = 1.0, top: float = 0.5, left: float = 0.5) -> tuple[int, int, int]:
    """A square in frames of this size: top, left, side. Its side is a share of the shorter one, its place of the room
    there is: without them the largest one in the centre."""
    length = max(1, round(side * min(height, width)))
    return round(top * (height - length)), round(left * (width - length)), length


def plain(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H,W,3] -> the plain view [S,S,3]."""
    top, left, side = box(*picture.shape[:2])
    square = picture[top : top + side, left : left + side]
    return square.copy() if side == size else scaled(square, size)


def scaled(picture: np.ndarray, size: int) -> np.ndarray:
    """uint8 [H,W,3] -> [S,S,3], as torch's bilinear interpolation with antialiasing does it."""
    height, width, _ = picture.shape
    narrow = np.empty((3, height, size))
    for start in range(0, height, ROWS):
        rows = slice(start, start + ROWS)
        planes = np.ascontiguousarray(picture[rows].transpose(2, 0, 1), np.float64)
        narrow[:, rows] = _resampled(planes, bands(width, size))
    return _resampled(narrow.transpose(0, 2, 1), bands(height, size)).transpose(2, 1, 0).astype(np.uint8, order="C")


def _resampled(planes: np.ndarray, along: tuple[Band, ...]) -> np.ndarray:
    """The last axis of float64 [3,N,M], whose values are whole, to [3,N,S]. No sum is rounded but at its end: 53 bits
    hold all of it, whatever the order."""
    found = np.empty((*planes.shape[:2], along[-1][1].stop))
    for given, wanted, weights in along:
        np.matmul(planes[..., given], weights, out=found[..., wanted])
    return np.minimum(np.floor(found + 0.5), 255)


@lru_cache(maxsize=8)
def bands(given: int, wanted: int) -> tuple[Band, ...]:
    """The weights of `given` places for `wanted` ones, in bands: elsewhere they are zero."""
    scale = given / wanted
    reach = max(scale, 1.0)
    middles = scale * (np.arange(wanted) + 0.5)
    first = np.maximum((middles - reach + 0.5).astype(int), 0)
    end = np.minimum((middles + reach + 0.5).astype(int), given)
    places = np.arange(given)[:, None]
    weights = np.maximum(0, 1 - np.abs((places - middles + 0.5) / reach)) * ((places >= first) & (places < end))
    weights = _whole(weights / weights.sum(0))
    found = list[Band]()
    for at in range(0, wanted, COLUMNS):
        part = slice(at, min(at + COLUMNS, wanted))
        near = slice(first[part][0], end[part][-1])
        found.append((near, part, np.ascontiguousarray(weights[near, part])))
    return tuple(found)


def _whole(weights: np.ndarray) -> np.ndarray:
    """Rounded to as many bits as leave the largest one's whole number small enough."""
    bits = 0
    while bits < FINEST and int(weights.max() * (1 << (bits + 1)) + 0.5) < LARGEST:
        bits += 1
    return np.floor(weights * (1 << bits) + 0.5) / (1 << bits)
