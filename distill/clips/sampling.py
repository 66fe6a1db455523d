"""Which frames: pure index arithmetic, no video in sight.

Randomness comes in as `draws`, numbers in [0, 1), one for each frame or window. Samplers of our own repeat the frames
of short clips evenly. Where an original does something else there, its name here says so: `_or_zeros`, `_or_last`,
`_loop`. The originals' code was read at TSM 1f6a834 (TSN's too), mmaction2 4d6c9347, SlowFast 287ec00 (X-CLIP and ILA
share its uniform one) and VideoMAE 14ef8d8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Draws = Sequence[float] | np.ndarray
Indices = NDArray[np.int64]

TSM_RANGE = 64  # frames that TSM's dense sampling spreads over


def _refuse_empty(available: int) -> None:
    if available < 1:
        raise ValueError("a clip without frames cannot be sampled")


def _below(limits: int | Indices, draws: Draws) -> Indices:
    """Whole numbers in [0, limit) from numbers in [0, 1)."""
    return np.floor(np.asarray(draws, np.float64) * limits).astype(np.int64)


def uniform(start: float, length: float, count: int, available: int) -> Indices:
    """`count` frame numbers at the middles of equal parts of the span [start, start + length) of a clip.

    Short clips repeat frames evenly; the numbers never leave [0, available).
    """
    _refuse_empty(available)
    # The half part is rounded in whole numbers where the span is whole: floor((i + 0.5) * n / k) == (2i + 1) * n // 2k.
    middles = np.floor(start + (2 * np.arange(count) + 1) * length / (2 * count))
    return np.clip(middles, 0, available - 1).astype(np.int64)


def window(start: int, length: int, count: int) -> Indices:
    """`count` frame numbers at the beginnings of equal parts of the `length` frames from `start` on."""
    return start + np.arange(count) * length // count


# TSN: equal segments of n // k frames.


def segments(draws: Draws, available: int) -> Indices:
    """TSN, training: i * s + randint(s) with s = n // k. Clips of less than k frames repeat them evenly."""
    _refuse_empty(available)
    count = len(draws)
    size = available // count
    if size == 0:
        return uniform(0, available, count, available)
    return np.arange(count) * size + _below(size, draws)


def segment_middles(count: int, available: int) -> Indices:
    """TSN, test (also mmaction2 with clips of one frame): int(n / k / 2 + n / k * i)."""
    _refuse_empty(available)
    size = available / count
    return (size / 2 + size * np.arange(count)).astype(np.int64)


def tsn_val_or_zeros(count: int, available: int) -> Indices:
    """TSN, validation while training: the test formula, but all zeros up to n = k."""
    middles = segment_middles(count, available)
    return middles if available > count else np.zeros_like(middles)


# SlowFast on Something-Something, X-CLIP, ILA: pieces of (n - 1) / k whose rounded ends belong to both neighbours.


def piece_ends(count: int, available: int) -> tuple[Indices, Indices]:
    """First and last frame of every piece: round((n - 1) / k * i), half to even, and the same of i + 1."""
    _refuse_empty(available)
    cuts = np.round((available - 1) / count * np.arange(count + 1)).astype(np.int64)
    return cuts[:-1], cuts[1:]


def pieces(draws: Draws, available: int) -> Indices:
    """SlowFast/X-CLIP/ILA, training: randint(first, last), both included, so neighbours may show the same frame."""
    first, last = piece_ends(len(draws), available)
    return first + _below(last - first + 1, draws)


def piece_middles(count: int, available: int, place: float = 0.5) -> Indices:
    """SlowFast/X-CLIP/ILA, test: (first + last) // 2. Other places in [0, 1) move all frames within their pieces."""
    first, last = piece_ends(count, available)
    return first + _below(last - first, np.full(count, place))


def mmaction_uniform_test(count: int, available: int, clips: int = 1) -> Indices:
    """mmaction2's UniformSample, test: round((n - 1) / k * i) + int((n - 1) / k * (c + 1) / (clips + 1)); [clips,k]."""
    first, _ = piece_ends(count, available)
    shift = (available - 1) / count / (clips + 1) * np.arange(1, clips + 1)
    return first + shift.astype(np.int64)[:, None]


# mmaction2's SampleFrames: where clips start, their frames, and what is done about frames behind the end.


def mmaction_train_starts(draws: Draws, span: int, available: int) -> Indices:
    """mmaction2, training, one start per draw: as TSN with s = (n - span + 1) // clips; span is count * stride.

    With s = 0 they are sorted draws if there are more frames than clips and than the span, else as even as rounding
    has them (up to n, which is no frame: `loop` follows), which is all zeros for clips shorter than the span.
    """
    _refuse_empty(available)
    clips, room = len(draws), available - span + 1
    if room >= clips:
        return np.arange(clips) * (room // clips) + _below(room // clips, draws)
    if available > max(clips, span):
        return np.sort(_below(room, draws))
    return np.round(np.arange(clips) * (max(room, 0) / clips)).astype(np.int64)


def mmaction_test_starts(clips: int, span: int, available: int) -> Indices:
    """mmaction2, test: max(n - span, 0) // 2, or clips evenly over that room; span is (count - 1) * stride + 1."""
    _refuse_empty(available)
    room = max(available - span, 0)
    if clips == 1:
        return np.array([room // 2])
    return np.round(np.arange(clips) * (room / (clips - 1))).astype(np.int64)


def strided(starts: Indices, count: int, stride: int) -> Indices:
    """Every stride-th frame from each start, wherever that leads: [clips,count]."""
    return starts[:, None] + np.arange(count) * stride


def loop(frames: Indices, available: int) -> Indices:
    """mmaction2's `loop`: behind its end a clip starts again."""
    _refuse_empty(available)
    return frames % available


def repeat_last(frames: Indices, available: int) -> Indices:
    """mmaction2's `repeat_last`: behind its end a row of frames stays at the last one that it reached."""
    _refuse_empty(available)
    inside = frames < available
    return np.where(inside, frames, np.where(inside, frames, 0).max(-1, keepdims=True))


# TSM, dense: every (64 // k)-th frame of 64.


def tsm_dense_loop(draw: float, count: int, available: int) -> Indices:
    """TSM, dense, training and validation: from randint(0, p - 1) with p = max(1, n - 63), modulo n."""
    _refuse_empty(available)
    start = _below(max(available - TSM_RANGE, 0), [draw])
    return loop(strided(start, count, TSM_RANGE // count)[0], available)


def tsm_dense_test_loop(count: int, available: int, starts: int = 10) -> Indices:
    """TSM, dense, test: from linspace(0, p - 1, 10), modulo n; [starts,k]."""
    _refuse_empty(available)
    places = np.linspace(0, max(available - TSM_RANGE, 0), starts, dtype=np.int64)
    return loop(strided(places, count, TSM_RANGE // count), available)


# VideoMAE.


def videomae_window_or_last(draw: float, count: int, rate: int, available: int) -> Indices:
    """VideoMAE, Kinetics, training and validation: linspace(end - k * rate, end, k), cut to whole numbers.

    The stride is not constant. Clips of up to k * rate frames show n // rate of them and stay at their last one.
    """
    _refuse_empty(available)
    length = count * rate
    if available > length:
        start = int(_below(available - length, [draw])[0])
        places, end = np.linspace(start, start + length, count), start + length
    else:
        shown = available // rate
        places, end = np.append(np.linspace(0, available, shown), np.full(count - shown, available)), available
    return np.minimum(places, end - 1).astype(np.int64)


def videomae_chunk_or_last(chunk: int, chunks: int, count: int, rate: int, available: int) -> Indices:
    """VideoMAE, Kinetics, test: of every rate-th frame, k from int(chunk * (m - k) / (chunks - 1)) on.

    Too few of them stay at the last one.
    """
    _refuse_empty(available)
    frames = np.arange(0, available, rate)
    room = max(len(frames) - count, 0)
    start = int(chunk * (room / max(chunks - 1, 1)))
    return frames[np.minimum(start + np.arange(count), len(frames) - 1)]


def videomae_ssv2_test(count: int, available: int) -> Indices:
    """VideoMAE, Something-Something, test: middles and beginnings of TSN's segments in order, 2 k frames.

    Its first clip is every other one of them, its second clip the rest; in training it is TSN.
    """
    _refuse_empty(available)
    size = available / count
    starts = (size * np.arange(count)).astype(np.int64)
    return np.sort(np.concatenate([segment_middles(count, available), starts]))


# SlowFast on Kinetics: one window of a multi-view test, in frames that need not be whole.


def slowfast_span(count: int, rate: int, fps: float = 30, target_fps: float = 30) -> float:
    """Length of SlowFast's window: rate * k * fps / target_fps frames, at least one."""
    return max(1.0, rate * count / target_fps * fps)


def slowfast_start(clip: int, clips: int, span: float, available: int, use_offset: bool = False) -> float:
    """Where SlowFast's window begins: room * clip / clips, so that the last one never reaches the end.

    With `use_offset` it is clip * floor(room / (clips - 1)), or the middle for one clip. In training: draw * room.
    """
    room = max(available - span, 0)
    if not use_offset:
        return room * clip / clips
    return float(clip * math.floor(room / (clips - 1)) if clips > 1 else math.floor(room / 2))


def slowfast_clip(start: float, span: float, count: int, available: int) -> Indices:
    """SlowFast: linspace(start, start + span - 1, k), clamped and cut to whole numbers.

    It is torch's, in float32: where a frame number is all but whole, its rounding decides.
    """
    _refuse_empty(available)
    places = torch.linspace(start, start + span - 1, count)
    return places.clamp(0, available - 1).long().numpy()
