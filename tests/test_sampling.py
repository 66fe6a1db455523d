"""Which frames: index arithmetic, compared with frame numbers that the original projects' code gave.

golden_sampling.json has {sampler: {"frames wanted/frames there": numbers}}; entries named `ran_` are lists of
[arguments, numbers].
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.clips import sampling
from distill.clips.sampling import uniform

GOLDEN = json.loads((Path(__file__).parent / "golden_sampling.json").read_text(encoding="utf-8"))

LENGTHS, COUNTS = st.integers(1, 3000), st.integers(1, 64)
SHARES = st.floats(0, 1, allow_nan=False)
DRAWS = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=64)
DRAW = st.floats(0, 1, exclude_max=True)


def mmaction_test(clips: int, count: int, stride: int, available: int) -> np.ndarray:
    starts = sampling.mmaction_test_starts(clips, (count - 1) * stride + 1, available)
    return sampling.strided(starts, count, stride)


def mmaction_train(draws: list[float], count: int, stride: int, available: int) -> np.ndarray:
    return sampling.strided(sampling.mmaction_train_starts(draws, count * stride, available), count, stride)


def slowfast(count: int, rate: int, fps: float, clip: int, clips: int, use_offset: bool, available: int) -> np.ndarray:
    span = sampling.slowfast_span(count, rate, fps)
    start = sampling.slowfast_start(clip, clips, span, available, use_offset)
    return sampling.slowfast_clip(start, span, count, available)


def randint(first: int, last: int, draw: Callable[[int, int], int]) -> float:
    """The number in [0, 1) that stands for what a generator of the original draws from first..last."""
    return (draw(first, last) - first + 0.5) / (last - first + 1)


def ila_train(count: int, available: int) -> np.ndarray:
    random.seed(0)
    ends = zip(*sampling.piece_ends(count, available), strict=True)
    return sampling.pieces([randint(int(a), int(b), random.randint) for a, b in ends], available)


def ila_multiview(count: int, available: int) -> np.ndarray:
    """Four clips, each drawn as mmaction2 draws one-frame clips in training, though it is a test."""
    chance, size = np.random.RandomState(0), available // count
    drawn = [(chance.randint(size, size=count) + 0.5) / size if size else [0.5] * count for _ in range(4)]
    return np.concatenate([sampling.loop(mmaction_train(list(draws), 1, 1, available), available) for draws in drawn])


BY_COUNT: list[tuple[str, Callable[[int, int], np.ndarray]]] = [
    ("tsn_center", lambda k, n: uniform(0, n, k, n)),
    ("tsn_center", sampling.segment_middles),
    ("tsn_val", sampling.tsn_val_or_zeros),
    ("mma_test_clip", lambda k, n: sampling.loop(mmaction_test(1, k, 2, n), n)),
    ("mma_uniform_test", sampling.mmaction_uniform_test),
    ("slowfast_ssv2_test", sampling.piece_middles),
    ("videomae_ssv2_test", sampling.videomae_ssv2_test),
    ("videomae_kinetics_test_c0of5", lambda k, n: sampling.videomae_chunk_or_last(0, 5, k, 4, n)),
    ("ila_uniform_test", sampling.piece_middles),
    ("ila_uniform_train", ila_train),
    ("ila_multiview_test", ila_multiview),
    ("ila_tsn_test_mode", sampling.segment_middles),
]
BY_CALL: list[tuple[str, Callable[..., np.ndarray]]] = [
    ("ran_tsn_train", sampling.segments),
    ("ran_tsm_dense", sampling.tsm_dense_loop),
    ("ran_tsm_dense_test", sampling.tsm_dense_test_loop),
    ("ran_mma_train_loop", lambda *call: sampling.loop(mmaction_train(*call), call[-1])),
    ("ran_mma_train_repeat_last", lambda *call: sampling.repeat_last(mmaction_train(*call), call[-1])),
    ("ran_mma_test_loop", lambda *call: sampling.loop(mmaction_test(*call), call[-1])),
    ("ran_mma_test_repeat_last", lambda *call: sampling.repeat_last(mmaction_test(*call), call[-1])),
    ("ran_mma_uniform_test_clips", sampling.mmaction_uniform_test),
    ("ran_slowfast", slowfast),
    ("ran_videomae_window", sampling.videomae_window_or_last),
    ("ran_videomae_chunk", sampling.videomae_chunk_or_last),
]


@pytest.mark.parametrize(("name", "sampler"), BY_COUNT)
def test_golden(name: str, sampler: Callable[[int, int], np.ndarray]) -> None:
    for wanted, frames in GOLDEN[name].items():
        count, available = map(int, wanted.split("/"))
        assert sampler(count, available).ravel().tolist() == frames, wanted


@pytest.mark.parametrize(("name", "sampler"), BY_CALL)
def test_golden_calls(name: str, sampler: Callable[..., np.ndarray]) -> None:
    for call, frames in GOLDEN[name]:
        assert sampler(*call).ravel().tolist() == frames, call


def test_all_that_is_golden_is_tested() -> None:
    assert set(GOLDEN) == {name for name, _ in BY_COUNT + BY_CALL} | {
        "ila_three_crop_bbox_xyxy",  # in test_views.py
        "ila_center_crop_bbox_xyxy",
    }


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


def repeats(frames: np.ndarray, available: int) -> np.ndarray:
    return np.bincount(frames, minlength=available)


@given(st.integers(1, 64), st.integers(0, 64))
def test_short_clips_repeat_every_frame_evenly(frames: int, more: int) -> None:
    times = repeats(uniform(0, frames, frames + more, frames), frames)
    assert times.min() >= 1
    assert times.max() - times.min() <= 1


@given(DRAWS, LENGTHS)
def test_segments_show_one_frame_of_each_equal_segment(draws: list[float], available: int) -> None:
    chosen, count = sampling.segments(draws, available), len(draws)
    if available < count:
        assert chosen.tolist() == uniform(0, available, count, available).tolist()
    else:
        assert (chosen // (available // count)).tolist() == list(range(count))
    assert chosen.dtype == np.int64


@given(DRAWS, LENGTHS)
def test_pieces_show_one_frame_of_each_and_meet_at_their_ends(draws: list[float], available: int) -> None:
    first, last = sampling.piece_ends(len(draws), available)
    assert first[0] == 0
    assert last[-1] == available - 1
    assert first[1:].tolist() == last[:-1].tolist()
    chosen = sampling.pieces(draws, available)
    assert ((first <= chosen) & (chosen <= last)).all()


def test_both_ends_of_a_piece_can_be_drawn() -> None:
    """Unlike NumPy's randint, the originals' includes the last frame."""
    assert sampling.pieces([0.0, 0.0], 9).tolist() == [0, 4]
    assert sampling.pieces([0.999, 0.999], 9).tolist() == [4, 8]


@pytest.mark.parametrize("count", [8, 16, 32])
def test_segment_middles_are_uniform(count: int) -> None:
    for available in range(1, 600):
        assert sampling.segment_middles(count, available).tolist() == uniform(0, available, count, available).tolist()


ORDERED: list[Callable[[list[float], int], np.ndarray]] = [
    lambda draws, n: uniform(0, n, len(draws), n),
    sampling.segments,
    lambda draws, n: sampling.segment_middles(len(draws), n),
    lambda draws, n: sampling.tsn_val_or_zeros(len(draws), n),
    sampling.pieces,
    lambda draws, n: sampling.piece_middles(len(draws), n),
    lambda draws, n: sampling.piece_middles(len(draws), n, draws[0]),
    lambda draws, n: sampling.mmaction_uniform_test(len(draws), n)[0],
    lambda draws, n: sampling.mmaction_test_starts(len(draws), 1, n),
    lambda draws, n: sampling.repeat_last(mmaction_train(draws[:1], len(draws), 3, n), n)[0],
    lambda draws, n: sampling.videomae_window_or_last(draws[0], len(draws), 4, n),
    lambda draws, n: sampling.videomae_chunk_or_last(1, 3, len(draws), 4, n),
    lambda draws, n: sampling.videomae_ssv2_test(len(draws), n),
    lambda draws, n: slowfast(len(draws), 4, 25, 1, 3, False, n),
    lambda draws, n: slowfast(len(draws), 4, 25, 1, 3, True, n),
]
LOOPED: list[Callable[[list[float], int], np.ndarray]] = [
    lambda draws, n: sampling.tsm_dense_loop(draws[0], len(draws), n),
    lambda draws, n: sampling.tsm_dense_test_loop(len(draws), n),
    lambda draws, n: sampling.loop(mmaction_train(draws, 1, 1, n), n),
    lambda draws, n: sampling.loop(mmaction_train(draws, 4, 3, n), n),
    lambda draws, n: sampling.loop(mmaction_test(3, len(draws), 2, n), n),
]
EVERY = ORDERED + LOOPED


@pytest.mark.parametrize("sampler", EVERY)
@settings(max_examples=60)
@given(draws=DRAWS, available=st.integers(1, 400))
def test_every_sampler_stays_in_the_clip_and_goes_forward_unless_it_loops(
    sampler: Callable[[list[float], int], np.ndarray], draws: list[float], available: int
) -> None:
    chosen = sampler(draws, available)
    assert chosen.dtype == np.int64
    assert chosen.min() >= 0
    assert chosen.max() < available
    assert sampler in LOOPED or (np.diff(chosen) >= 0).all()
    assert np.array_equal(chosen, sampler(draws, available))


@pytest.mark.parametrize("sampler", EVERY)
def test_a_clip_without_frames_is_refused(sampler: Callable[[list[float], int], np.ndarray]) -> None:
    with pytest.raises(ValueError, match="without frames"):
        sampler([0.5], 0)


@given(st.integers(0, 100), st.integers(1, 16), st.integers(1, 9))
def test_a_window_has_the_same_frames_at_any_rate(start: int, count: int, stride: int) -> None:
    assert sampling.window(start, count * stride, count).tolist() == [start + i * stride for i in range(count)]
    whole = sampling.window(start, 2 * count * stride, 2 * count)
    assert sampling.window(start, 2 * count * stride, count).tolist() == whole[::2].tolist()


@given(DRAW, st.integers(1, 8), st.integers(1, 4), LENGTHS)
def test_mmaction_windows_that_fit_do_not_leave_the_clip(draw: float, count: int, stride: int, available: int) -> None:
    chosen = mmaction_train([draw], count, stride, available)[0]
    if available >= count * stride:
        assert chosen[-1] < available
        assert np.array_equal(chosen, sampling.loop(chosen, available))
