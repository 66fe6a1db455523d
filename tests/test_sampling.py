"""Which frames: index arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.clips.sampling import uniform

LENGTHS, COUNTS = st.integers(1, 3000), st.integers(1, 64)
SHARES = st.floats(0, 1, allow_nan=False)


@pytest.mark.parametrize(
    ("frames", "count", "expected"),
    [  # golden vectors of the original samplers' common formula
        (1, 8, [0] * 8),
        (5, 16, [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 4, 4, 4]),
        (10, 8, [0, 1, 3, 4, 5, 6, 8, 9]),
        (10, 16, [0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 9]),
        (16, 8, [1, 3, 5, 7, 9, 11, 13, 15]),
        (16, 16, list(range(16))),
        (300, 8, [18, 56, 93, 131, 168, 206, 243, 281]),
    ],
)
def test_golden(frames: int, count: int, expected: list[int]) -> None:
    assert uniform(0, frames, count, frames).tolist() == expected


@given(LENGTHS, COUNTS)
def test_whole_clips_give_the_middles_of_equal_parts(frames: int, count: int) -> None:
    """floor((i + 0.5) n / k), in whole numbers so that no rounding of floats can move a frame."""
    expected = [(2 * i + 1) * frames // (2 * count) for i in range(count)]
    assert uniform(0, frames, count, frames).tolist() == expected
    assert uniform(0.0, 1.0 * frames, count, frames).tolist() == expected


@given(LENGTHS, COUNTS, SHARES, SHARES)
def test_any_span_stays_in_the_clip_and_in_itself(frames: int, count: int, start: float, share: float) -> None:
    length = share * frames
    begin = start * (frames - length)
    chosen = uniform(begin, length, count, frames)
    assert chosen.dtype == np.int64
    assert (np.diff(chosen) >= 0).all()
    assert chosen[0] >= max(0, math.floor(begin - 1e-6))
    assert chosen[-1] <= min(frames - 1, math.ceil(begin + length + 1e-6))


@given(st.integers(1, 64), st.integers(0, 64))
def test_short_clips_repeat_every_frame_evenly(frames: int, more: int) -> None:
    times = np.bincount(uniform(0, frames, frames + more, frames), minlength=frames)
    assert times.min() >= 1
    assert times.max() - times.min() <= 1


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="without frames"):
        uniform(0, 0, 8, 0)
