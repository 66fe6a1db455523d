"""A view is a pure function of (options, clip id, view number)."""

from __future__ import annotations

import random
from dataclasses import astuple, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.clips.sampling import uniform
from distill.clips.views import PLAIN, View, ViewOptions, apply, check, draw
from distill.errors import UserError
from distill.outputs import ClipSpec

SHARES = st.floats(0.05, 1)
OPTIONS = st.builds(
    ViewOptions, seed=st.integers(0, 5), span=SHARES, area=SHARES, flip=st.booleans(), light=st.floats(0, 0.5)
)
IDS, NUMBERS = st.text(max_size=20), st.integers(1, 50)


def video(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def test_pinned_draw() -> None:
    """A change here shows other views to every student and makes every cache stale."""
    drawn = draw(ViewOptions(flip=True), "train/right/00003", 2)
    assert drawn.flip is True
    assert astuple(drawn) == pytest.approx(
        [
            *(0.030731628299562, 0.919839997347682, 0.340412597073918, 0.659651660857769, 0.974161744217758),
            *(True, 1.002608415575318, 1.054000270938964),
        ],
        abs=1e-12,
    )


@settings(deadline=None)
@given(OPTIONS, IDS, NUMBERS)
def test_every_draw_is_inside_the_clip_and_the_options(options: ViewOptions, clip: str, number: int) -> None:
    view = draw(options, clip, number)
    assert options.span <= view.span <= 1
    assert 0 <= view.start <= view.start + view.span <= 1 + 1e-9
    assert options.area - 1e-9 <= view.side**2 <= 1
    assert 0 <= view.left <= 1
    assert 0 <= view.top <= 1
    assert abs(view.brightness - 1) <= options.light + 1e-9
    assert abs(view.contrast - 1) <= options.light + 1e-9
    assert options.flip or not view.flip


@settings(deadline=None)
@given(OPTIONS, st.lists(st.tuples(IDS, st.integers(0, 9)), max_size=12), st.randoms())
def test_draws_do_not_depend_on_their_order(
    options: ViewOptions, keys: list[tuple[str, int]], chance: random.Random
) -> None:
    first = {key: draw(options, *key) for key in keys}
    shuffled = chance.sample(keys, len(keys))
    assert {key: draw(options, *key) for key in shuffled} == first


@given(OPTIONS, IDS)
def test_view_0_is_plain_whatever_the_options(options: ViewOptions, clip: str) -> None:
    assert draw(options, clip, 0) == PLAIN


def test_seed_clip_and_number_each_draw_another_view_but_the_count_does_not() -> None:
    options = ViewOptions()
    views = {
        draw(options, "a", 1),
        draw(options, "a", 2),
        draw(options, "b", 1),
        draw(replace(options, seed=1), "a", 1),
    }
    assert len(views) == 4
    assert draw(replace(options, count=9), "a", 1) == draw(options, "a", 1)


def test_half_of_the_views_are_mirrored() -> None:
    flips = [draw(ViewOptions(flip=True), "clip", number).flip for number in range(1, 401)]
    assert 0.4 < np.mean(flips) < 0.6


def test_the_plain_view_of_a_square_clip_is_the_clip() -> None:
    clip = video(6, 16, 16)
    assert np.array_equal(apply(PLAIN, clip, ClipSpec(6, 16)), clip.transpose(0, 3, 1, 2))


def test_the_plain_view_is_the_centre_square() -> None:
    clip = video(3, 8, 20)
    assert np.array_equal(apply(PLAIN, clip, ClipSpec(3, 8)), clip[:, :, 6:14].transpose(0, 3, 1, 2))


@settings(max_examples=40, deadline=None)
@given(
    OPTIONS,
    NUMBERS,
    st.integers(1, 12),
    st.integers(1, 24),
    st.integers(1, 24),
    st.builds(ClipSpec, st.integers(1, 8), st.integers(1, 24)),
)
def test_every_clip_gives_the_right_shape(
    options: ViewOptions, number: int, frames: int, height: int, width: int, spec: ClipSpec
) -> None:
    given_ = np.full((frames, height, width, 3), 128, np.uint8)
    seen = apply(draw(replace(options, light=0), "clip", number), given_, spec)
    assert seen.shape == (spec.frames, 3, spec.size, spec.size)
    assert seen.dtype == np.uint8
    assert (seen == 128).all()  # a crop that left the frame would bring in something else


@settings(max_examples=40, deadline=None)
@given(OPTIONS, NUMBERS, st.integers(1, 100), st.integers(1, 16))
def test_frames_come_from_the_view_s_span(options: ViewOptions, number: int, frames: int, count: int) -> None:
    clip = np.broadcast_to(np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 4, 4, 3))
    view = draw(replace(options, light=0), "clip", number)
    expected = uniform(view.start * frames, view.span * frames, count, frames)
    assert apply(view, clip, ClipSpec(count, 4))[:, 0, 0, 0].tolist() == expected.tolist()


@pytest.mark.parametrize("size", [8, 13])
def test_flip_mirrors_left_to_right(size: int) -> None:
    clip, spec = video(4, 13, 17), ClipSpec(4, size)
    view = replace(draw(ViewOptions(), "clip", 1), flip=False)
    assert np.array_equal(apply(replace(view, flip=True), clip, spec), apply(view, clip, spec)[..., ::-1])


@pytest.mark.parametrize(
    ("change", "given_", "expected"),
    [
        ({"brightness": 1.2}, 100, 120),
        ({"brightness": 0.5}, 101, 50),  # 50.5 rounds to even
        ({"contrast": 0.5}, 128, 128),
        ({"contrast": 0.5}, 28, 78),
        ({"contrast": 1.2, "brightness": 1.2}, 250, 255),
        ({"contrast": 1.5}, 10, 0),
    ],
)
def test_light(change: dict[str, Any], given_: int, expected: int) -> None:
    clip = np.full((2, 4, 4, 3), given_, np.uint8)
    seen = apply(replace(PLAIN, **change), clip, ClipSpec(2, 4))
    assert np.unique(seen).tolist() == [expected]


def test_applying_leaves_the_clip_alone() -> None:
    clip = video(4, 8, 8)
    before = clip.copy()
    apply(replace(PLAIN, brightness=1.2, flip=True), clip, ClipSpec(2, 8))
    assert np.array_equal(clip, before)


def test_students_and_teachers_of_other_sizes_see_the_same_part() -> None:
    rows = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[None, :, None, None], (4, 64, 64, 3))
    view: View = replace(draw(ViewOptions(area=0.3), "clip", 3), brightness=1.0, contrast=1.0)
    small, large = (apply(view, rows, ClipSpec(4, size)).astype(float) for size in (16, 48))
    assert abs(small.mean() - large.mean()) < 1.5


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (ViewOptions(span=0), "clips.views.span"),
        (ViewOptions(span=1.01), "clips.views.span"),
        (ViewOptions(area=-1), "clips.views.area"),
        (ViewOptions(area=float("nan")), "clips.views.area"),
        (ViewOptions(count=0), "clips.views.count"),
    ],
)
def test_impossible_options_are_refused(options: ViewOptions, key: str) -> None:
    with pytest.raises(UserError, match=key):
        check(options)
