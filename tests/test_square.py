"""The plain view's square without torch, against torch's own resize: no pixel may differ."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from distill.clips import square
from distill.clips.views import PLAIN, cut

SIDES = st.integers(1, 300)


def picture(height: int, width: int, levels: int, seed: int) -> np.ndarray:
    """Noise: of two levels, the hardest there is, or of many."""
    drawn = np.random.default_rng(seed).integers(0, levels, (height, width, 3))
    return (drawn * (255 // (levels - 1))).astype(np.uint8)


def resized(given: np.ndarray, size: int) -> np.ndarray:
    pixels = torch.from_numpy(given.copy())[None].permute(0, 3, 1, 2)
    found = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return found[0].permute(1, 2, 0).numpy()


@settings(max_examples=150)
@given(SIDES, SIDES, st.integers(1, 240), st.sampled_from([2, 256]), st.integers(0, 99))
@example(1, 1, 5, 256, 0)
@example(300, 7, 7, 256, 0)
@example(480, 640, 224, 256, 0)
@example(720, 1280, 112, 2, 0)
@example(1080, 1080, 224, 256, 0)
@example(2160, 2160, 32, 2, 0)
def test_scaling_is_torchs(height: int, width: int, size: int, levels: int, seed: int) -> None:
    given = picture(height, width, levels, seed)
    assert np.array_equal(square.scaled(given, size), resized(given, size))


@settings(max_examples=60)
@given(SIDES, SIDES, st.integers(1, 120), st.integers(0, 99))
@example(32, 48, 32, 0)
@example(32, 32, 32, 0)
def test_it_is_the_plain_view(height: int, width: int, size: int, seed: int) -> None:
    given = picture(height, width, 256, seed)
    found = square.plain(given, size)
    assert np.array_equal(found, cut(PLAIN, [given], size)[0].transpose(1, 2, 0))
    assert found.flags.c_contiguous
    assert not np.shares_memory(found, given)  # whose buffer may be a camera's
