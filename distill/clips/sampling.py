"""Which frames: pure index arithmetic, no video in sight."""

from __future__ import annotations

import numpy as np


def uniform(start: float, length: float, count: int, available: int) -> np.ndarray:
    """`count` frame numbers at the middles of equal parts of the span [start, start + length) of a clip.

    Short clips repeat frames evenly; the numbers never leave [0, available).
    """
    if available < 1:
        raise ValueError("a clip without frames cannot be sampled")
    # The half part is rounded in whole numbers where the span is whole: floor((i + 0.5) * n / k) == (2i + 1) * n // 2k.
    middles = np.floor(start + (2 * np.arange(count) + 1) * length / (2 * count))
    return np.clip(middles, 0, available - 1).astype(np.int64)
