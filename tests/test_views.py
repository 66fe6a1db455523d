"""A view is a pure function of (options, clip id, view number)."""

from __future__ import annotations

import json
import random
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.clips import views
from distill.clips.sampling import uniform
from distill.clips.views import CROPS, PLAIN, SAMPLERS, View, ViewOptions, box, check, colour, cut, draw, recolour
from distill.errors import UserError
from distill.outputs import ClipSpec

SHARES = st.floats(0.05, 1)
OPTIONS = st.builds(
    ViewOptions,
    seed=st.integers(0, 5),
    span=SHARES,
    area=SHARES,
    flip=st.booleans(),
    light=st.floats(0, 0.5),
    sampler=st.sampled_from(SAMPLERS),
    stride=st.integers(1, 4),
    saturation=st.floats(0, 1),
    hue=st.floats(0, 0.5),
    test_clips=st.integers(1, 10),
    test_crops=st.sampled_from(list(CROPS)),
)
IDS, NUMBERS = st.text(max_size=20), st.integers(1, 50)
GOLDEN = json.loads((Path(__file__).parent / "golden_sampling.json").read_text(encoding="utf-8"))


def video(frames: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def apply(view: View, clip: np.ndarray, spec: ClipSpec, options: ViewOptions | None = None) -> np.ndarray:
    """A view of a whole decoded clip."""
    chosen = views.indices(view, options or ViewOptions(), len(clip), spec.frames)
    return cut(view, clip[chosen], spec.size)


def test_pinned_draw() -> None:
    """A change here shows other views to every student and makes every cache stale."""
    drawn = draw(ViewOptions(flip=True), "train/right/00003", 2)
    assert drawn.flip is True
    assert astuple(drawn) == pytest.approx(
        [
            *(0.030731628299562, 0.919839997347682, 0.340412597073918, 0.659651660857769, 0.974161744217758),
            *(True, 1.002608415575318, 1.054000270938964),
            *(1.0, 0.0, 2586315150856093911, 0, 1),  # no change of colour; draws of frames; not a test's
        ],
        abs=1e-12,
    )
    coloured = draw(ViewOptions(flip=True, saturation=0.5, hue=0.1), "train/right/00003", 2)
    assert replace(coloured, saturation=1.0, hue=0.0) == drawn
    assert (coloured.saturation, coloured.hue) == pytest.approx((0.6667091069196545, 0.04915878866963411), abs=1e-12)


@given(OPTIONS, IDS, NUMBERS)
def test_every_draw_is_inside_the_clip_and_the_options(options: ViewOptions, clip: str, number: int) -> None:
    check(options)
    view = draw(options, clip, number)
    assert options.span <= view.span <= 1
    assert 0 <= view.start <= view.start + view.span <= 1 + 1e-9
    assert options.area - 1e-9 <= view.side**2 <= 1
    assert 0 <= view.left <= 1
    assert 0 <= view.top <= 1
    assert abs(view.brightness - 1) <= options.light + 1e-9
    assert abs(view.contrast - 1) <= options.light + 1e-9
    assert abs(view.saturation - 1) <= options.saturation + 1e-9
    assert abs(view.hue) <= options.hue + 1e-9
    assert options.flip or not view.flip


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
    drawn = {
        draw(options, "a", 1),
        draw(options, "a", 2),
        draw(options, "b", 1),
        draw(replace(options, seed=1), "a", 1),
    }
    assert len(drawn) == 4
    assert draw(replace(options, count=9), "a", 1) == draw(options, "a", 1)


def test_half_of_the_views_are_mirrored() -> None:
    flips = [draw(ViewOptions(flip=True), "clip", number).flip for number in range(1, 401)]
    assert 0.4 < np.mean(flips) < 0.6


def test_the_plain_view_is_the_centre_square() -> None:
    clip = video(6, 16, 16)
    assert np.array_equal(apply(PLAIN, clip, ClipSpec(6, 16)), clip.transpose(0, 3, 1, 2))
    clip = video(3, 8, 20)
    assert np.array_equal(apply(PLAIN, clip, ClipSpec(3, 8)), clip[:, :, 6:14].transpose(0, 3, 1, 2))


@settings(max_examples=40)
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
    seen = apply(draw(replace(options, light=0), "clip", number), given_, spec, options)
    assert seen.shape == (spec.frames, 3, spec.size, spec.size)
    assert seen.dtype == np.uint8
    assert seen.flags.carray  # contiguous and writable
    assert (seen == 128).all()  # a crop that left the frame would bring in something else


@settings(max_examples=40)
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


# Which frames


@settings(max_examples=200)
@given(OPTIONS, st.integers(-30, 50), st.integers(1, 400), st.integers(1, 40))
def test_every_sampler_goes_forward_inside_the_clip(options: ViewOptions, number: int, total: int, count: int) -> None:
    view = draw(options, "clip", max(number, -options.test_clips * options.test_crops))
    chosen = views.indices(view, options, total, count)
    assert chosen.shape == (count,)
    assert chosen.dtype == np.int64
    assert chosen.min() >= 0
    assert chosen.max() < total
    assert (np.diff(chosen) >= 0).all()
    if options.sampler != "dense":
        assert chosen[0] >= np.floor(view.start * total)
        assert chosen[-1] <= np.ceil((view.start + view.span) * total)


@pytest.mark.parametrize("total", [1, 5, 16, 31, 117, 300])
@pytest.mark.parametrize("count", [8, 16])
def test_the_plain_view_shows_the_frames_of_the_official_test(total: int, count: int) -> None:
    seen = {name: views.indices(PLAIN, ViewOptions(sampler=name), total, count).tolist() for name in SAMPLERS}
    key = f"{count}/{total}"
    assert seen["uniform"] == seen["segments"] == GOLDEN["tsn_center"][key]
    assert seen["pieces"] == GOLDEN["slowfast_ssv2_test"][key]
    fits = total > (count - 1) * 2  # the official one loops clips that are shorter than its window
    assert seen["dense"] == GOLDEN["mma_test_clip" if fits else "tsn_center"][key]


def test_training_draws_as_the_originals_do_when_the_span_is_the_whole_clip() -> None:
    options = ViewOptions(span=1)
    seen = {name: set[tuple[int, ...]]() for name in SAMPLERS}
    for number in range(1, 200):
        for name, chosen in seen.items():
            options.sampler = name
            chosen.add(tuple(views.indices(draw(options, "clip", number), options, 40, 8).tolist()))
    assert len(seen["uniform"]) == 1
    assert {tuple(i // 5 for i in chosen) for chosen in seen["segments"]} == {tuple(range(8))}
    assert {chosen[0] for chosen in seen["segments"]} == set(range(5))
    assert {chosen[0] for chosen in seen["pieces"]} == set(range(6))  # both ends: round(39 / 8) is 5
    assert seen["dense"] == {tuple(range(start, start + 16, 2)) for start in range(25)}


@settings(max_examples=50)
@given(OPTIONS, st.integers(-1, 50), st.integers(1, 200))
def test_a_student_of_half_the_frames_sees_its_teacher_s_window(options: ViewOptions, number: int, total: int) -> None:
    options = replace(options, sampler="dense")
    view, window = draw(options, "clip", number), 16 * options.stride
    large = views.indices(view, options, total, 16, window)
    assert large.tolist() == views.indices(view, options, total, 16).tolist()
    if total > window - options.stride:
        assert views.indices(view, options, total, 8, window).tolist() == large[::2].tolist()
    span = window - options.stride + 1  # up to the last frame that the teacher sees
    assert views.indices(view, options, span, 64, window).max() == span - 1


def test_frames_are_drawn_one_by_one_within_the_span() -> None:
    view = replace(PLAIN, start=0.25, span=0.5, seed=1)
    segment, place = np.divmod(views.indices(view, ViewOptions(sampler="segments"), 128, 16) - 32, 4)
    assert segment.tolist() == list(range(16))
    assert place[:8].tolist() != place[8:].tolist()
    assert views.indices(view, ViewOptions(sampler="dense", stride=3), 22, 8).tolist() == list(range(0, 22, 3))


# Tests of several views


def test_the_numbers_of_test_views() -> None:
    assert views.test_views(ViewOptions()) == [0]
    assert views.test_views(ViewOptions(test_crops=3)) == [-1, -2, -3]
    assert views.test_views(ViewOptions(test_clips=10, test_crops=3)) == [-1 - i for i in range(30)]
    assert draw(ViewOptions(flip=True, light=0.5), "clip", -1) == PLAIN
    with pytest.raises(AssertionError, match="no test view -4"):
        draw(ViewOptions(test_crops=3), "clip", -4)


@given(st.integers(1, 10), st.sampled_from(list(CROPS)))
def test_test_views_are_all_pairs_of_clips_and_crops(clips: int, crops: int) -> None:
    options = ViewOptions(test_clips=clips, test_crops=crops, flip=True, light=0.5, hue=0.5)
    drawn = [draw(options, "clip", number) for number in views.test_views(options)]
    assert [(view.clip, view.left, view.top) for view in drawn] == [
        (clip, place, place) for clip in range(clips) for place in CROPS[crops]
    ]
    assert {replace(view, clip=0, clips=1, left=0.5, top=0.5) for view in drawn} == {PLAIN}


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [  # 4 clips of 4 frames of 32
        ("uniform", [[1, 9, 17, 25], [3, 11, 19, 27], [5, 13, 21, 29], [7, 15, 23, 31]]),
        ("segments", [[1, 9, 17, 25], [3, 11, 19, 27], [5, 13, 21, 29], [7, 15, 23, 31]]),
        ("pieces", [[1, 9, 16, 24], [3, 11, 18, 26], [5, 13, 20, 28], [7, 15, 22, 30]]),
        ("dense", [[0, 2, 4, 6], [8, 10, 12, 14], [17, 19, 21, 23], [25, 27, 29, 31]]),
    ],
)
def test_a_test_s_clips_share_the_frames_out(sampler: str, expected: list[list[int]]) -> None:
    options = ViewOptions(sampler=sampler, test_clips=4)
    drawn = [draw(options, "clip", number) for number in views.test_views(options)]
    assert [views.indices(view, options, 32, 4).tolist() for view in drawn] == expected


@pytest.mark.parametrize("sizes", list(GOLDEN["ila_three_crop_bbox_xyxy"]))
def test_crops_are_the_official_ones(sizes: str) -> None:
    """To the pixel where the room is even. The official code stops a pixel short of the end where it is odd."""
    height, width = map(int, sizes.split("x"))
    options = ViewOptions(test_crops=3)
    boxes = [box(draw(options, "clip", number), height, width) for number in views.test_views(options)]
    ours = np.array([(left, top, left + side, top + side) for top, left, side in boxes])
    official = np.array(GOLDEN["ila_three_crop_bbox_xyxy"][sizes])[[0, 2, 1]]  # it names the middle last
    assert abs(ours - official).max() <= (height - width) % 2
    assert ours.max() == max(height, width)


@pytest.mark.parametrize("sizes", list(GOLDEN["ila_center_crop_bbox_xyxy"]))
def test_the_centre_is_the_official_one(sizes: str) -> None:
    """Of 224 pixels, to the pixel, or to the next one where the room is odd: halves are rounded to even."""
    height, width = map(int, sizes.split("x"))
    top, left, side = box(replace(PLAIN, side=224 / min(height, width)), height, width)
    x, y, right, _ = GOLDEN["ila_center_crop_bbox_xyxy"][sizes]
    assert side == right - x
    assert 0 <= left - x <= (width - side) % 2
    assert 0 <= top - y <= (height - side) % 2


# Colour


def exactly(frames: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Before rounding, in float64: [...,3,H,W]."""
    return np.einsum("ij,...jhw->...ihw", matrix[:, :3].astype(float), frames) + matrix[:, 3:, None]


COLOURS = st.builds(
    lambda *drawn: replace(PLAIN, **dict(zip(("brightness", "contrast", "saturation", "hue"), drawn, strict=True))),
    *(st.floats(0.5, 1.5), st.floats(0.5, 1.5), st.floats(0, 2), st.floats(-0.5, 0.5)),
)


@given(COLOURS)
def test_greys_and_brightness_stay_what_they_are_but_for_light(view: View) -> None:
    matrix, light = colour(view), colour(replace(view, saturation=1.0, hue=0.0))
    assert matrix.shape == (3, 4)
    assert matrix.dtype == np.float32
    assert light[:, :3].tolist() == (light[0, 0] * np.eye(3, dtype=np.float32)).tolist()
    assert matrix[:, :3].sum(1) == pytest.approx(light[:, :3].sum(1), abs=1e-5)
    assert matrix[:, 3].tolist() == light[:, 3].tolist()
    assert views.YIQ[0] @ matrix == pytest.approx(views.YIQ[0] @ light, abs=1e-4)


def test_saturation_and_hue_by_known_cases() -> None:
    assert colour(PLAIN).tolist() == np.eye(3, 4).tolist()
    red = np.array([255, 0, 0, 1])
    assert colour(replace(PLAIN, saturation=0.0)) @ red == pytest.approx([76.245] * 3, abs=1e-3)
    assert colour(replace(PLAIN, hue=0.5)) @ red == pytest.approx([-102.51, 152.49, 152.49], abs=1e-3)
    assert colour(replace(PLAIN, hue=-0.5)) == pytest.approx(colour(replace(PLAIN, hue=0.5)), abs=1e-6)
    eighth, quarter = (colour(replace(PLAIN, hue=turn))[:, :3] for turn in (0.125, 0.25))
    assert eighth @ eighth == pytest.approx(quarter, abs=1e-5)
    _, green, blue, *_ = colour(replace(PLAIN, hue=0.2)) @ red
    assert green > 50 > -50 > blue  # a turn goes from red by green to blue


@settings(max_examples=60)
@given(COLOURS, st.integers(0, 2**32 - 1))
def test_recolouring_rounds_once_and_leaves_its_frames_alone(view: View, seed: int) -> None:
    frames = np.random.default_rng(seed).integers(0, 256, (2, 2, 3, 5, 7), np.uint8)
    before, exact = frames.copy(), exactly(frames, colour(view)).clip(0, 255)
    seen = recolour(torch.from_numpy(frames), colour(view))
    assert seen.dtype == torch.uint8
    for way in (seen, views._recolour_planes(torch.from_numpy(frames), colour(view))):  # the latter is a GPU's
        assert abs(way.numpy() - exact).max() <= 0.5 + 1e-3
    assert torch.equal(recolour(torch.from_numpy(frames)[1, 0], colour(view)), seen[1, 0])
    assert np.array_equal(frames, before)


@settings(max_examples=60)
@given(st.floats(0.5, 1.5), st.floats(0.5, 1.5))
def test_light_is_the_rounded_float_of_every_value(brightness: float, contrast: float) -> None:
    matrix = colour(replace(PLAIN, brightness=brightness, contrast=contrast))
    values = torch.arange(256, dtype=torch.uint8).expand(3, 2, 256)
    gain, offset = brightness * contrast, 128 * brightness * (1 - contrast)
    expected = values.float().mul(gain).add(offset).round().clamp(0, 255).to(torch.uint8)
    assert torch.equal(recolour(values, matrix), expected)
    assert torch.equal(views._recolour_planes(values, matrix), expected)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (ViewOptions(span=0), "clips.views.span"),
        (ViewOptions(span=1.01), "clips.views.span"),
        (ViewOptions(area=-1), "clips.views.area"),
        (ViewOptions(area=float("nan")), "clips.views.area"),
        (ViewOptions(count=0), "clips.views.count"),
        (ViewOptions(light=1), "clips.views.light"),
        (ViewOptions(sampler="tsn"), "clips.views.sampler is 'tsn'; it is one of uniform, segments"),
        (ViewOptions(stride=0), "clips.views.stride"),
        (ViewOptions(saturation=1.1), "clips.views.saturation"),
        (ViewOptions(hue=0.6), "clips.views.hue"),
        (ViewOptions(hue=float("nan")), "clips.views.hue"),
        (ViewOptions(test_clips=0), "clips.views.test_clips"),
        (ViewOptions(test_crops=2), "clips.views.test_crops is 2; it is 1 or 3"),
    ],
)
def test_impossible_options_are_refused(options: ViewOptions, key: str) -> None:
    with pytest.raises(UserError, match=key):
        check(options)
