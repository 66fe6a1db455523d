"""Networks of 3-D layers as the same networks of 2-D layers, exactly: what phones and boxes run is made of pictures.

A video is kept as its frames in a row, [T*N,C,H,W], all clips' first frames first. A convolution over time takes the
frames that its kernel spans as channels of one picture; a pooling over time compares or averages them. Layers that
look at each frame alone see a batch of pictures. What is not known here sees the video as it was.

Shape legend: N clips, C channels (O of what comes out), T frames, H height, W width.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

aten = torch.ops.aten
Known = Mapping[Any, Callable[..., Any]]  # what does a video's part instead of an operation


def without_3d(graph: nn.Module) -> nn.Module:
    """The network of a graph that torch.export made, without 3-D layers; tensors go in and out as before."""
    assert isinstance(graph, fx.GraphModule)
    return _Flat(graph, KNOWN)


def with_plain_pools(graph: nn.Module) -> nn.Module:
    """The network of such a graph, with 3-D layers, but for poolings to a number of cells: few exporters know those."""
    assert isinstance(graph, fx.GraphModule)
    return _Flat(graph, {aten.adaptive_avg_pool3d.default: _cells})


class _Flat(nn.Module):
    def __init__(self, graph: fx.GraphModule, known: Known) -> None:
        super().__init__()
        self.network, self.known = graph, known

    def forward(self, *given: Tensor) -> Any:
        return _Walk(self.network, self.known).run(*given)


@dataclass(frozen=True)
class Video:
    """A tensor [N,C,T,H,W] by its frames."""

    frames: Tensor  # [T*N,C,H,W]
    clips: int

    @staticmethod
    def of(whole: Tensor) -> Video:
        return Video.of_frames(whole.transpose(1, 2))

    @staticmethod
    def of_frames(whole: Tensor) -> Video:
        """From [N,T,C,H,W]."""
        return Video(whole.transpose(0, 1).flatten(0, 1), len(whole))

    @property
    def length(self) -> int:
        return len(self.frames) // self.clips

    def by_frame(self) -> Tensor:
        """[N,T,C,H,W]"""
        return self.frames.view(self.length, self.clips, *self.frames.shape[1:]).transpose(0, 1)

    def whole(self) -> Tensor:
        return self.frames.unsqueeze(2) if self.length == 1 else self.by_frame().transpose(1, 2)

    def each(self, change: Callable[[Tensor], Tensor]) -> Video:
        return Video(change(self.frames), self.clips)

    def padded(self, before: int, after: int) -> Video:
        """With frames of zeros around it."""
        if not before and not after:
            return self
        return self.each(lambda frames: F.pad(frames, (0,) * 6 + (before * self.clips, after * self.clips)))

    def pick(self, places: Sequence[int]) -> Tensor:
        """The frames at these places in time, in one row."""
        if list(places) == list(range(self.length)):
            return self.frames
        rows = [self.frames[first * self.clips : (first + count) * self.clips] for first, count in runs(places)]
        return torch.cat(rows) if rows[1:] else rows[0]


def runs(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places that follow each other: (first, how many)."""
    starts = [at for at, place in enumerate(places) if not at or place != places[at - 1] + 1]
    return [(places[start], end - start) for start, end in pairwise([*starts, len(places)])]


class _Walk(fx.Interpreter):
    """Through a graph of what torch.export made, with videos where it has tensors of five dimensions."""

    def __init__(self, graph: fx.GraphModule, known: Known) -> None:
        super().__init__(graph)
        self.known = known

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        known = self.known.get(target)
        found = known(*args, **kwargs) if known else NotImplemented
        if found is NotImplemented:
            found = target(*map(_plain, args), **kwargs)
        return found

    def output(self, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return super().output(target, tuple(map(_plain, args)), dict(kwargs))


def _plain(value: Any) -> Any:
    if isinstance(value, Video):
        return value.whole()
    return type(value)(map(_plain, value)) if isinstance(value, list | tuple) else value


def _video(value: Tensor | Video) -> Video:
    return value if isinstance(value, Video) else Video.of(value)


# ------------------------------------------------------------ layers


def _convolution(
    given: Tensor | Video,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Video:
    video, span = _video(given), weight.shape[2]
    (step, *steps), (around, *pads), (gap, *gaps) = _triple(stride), _triple(padding), _triple(dilation)
    seen = _taps(video.length, span, step, around, gap)
    before, after = -min(min(map(min, seen)), 0), max(max(map(max, seen)) + 1 - video.length, 0)
    around_it = video.padded(before, after)
    taps = [around_it.pick([place + before for place in places]) for places in seen]
    if groups == 1:
        stacked = torch.cat(taps, 1) if span > 1 else taps[0]
        side_by_side = weight.transpose(1, 2).flatten(1, 2)
        frames = F.conv2d(stacked, side_by_side, bias, steps, pads, gaps)
    else:
        parts = (F.conv2d(tap, weight[:, :, at], None, steps, pads, gaps, groups) for at, tap in enumerate(taps))
        frames = reduce(operator.add, parts)
        frames = frames if bias is None else frames + bias.view(-1, 1, 1)
    return Video(frames, video.clips)


def _taps(length: int, span: int, step: int, around: int, gap: int) -> list[list[int]]:
    """For each tap of a kernel over time, the place in time that it sees of every frame that comes out; some lie
    before the first frame or after the last."""
    count = (length + 2 * around - gap * (span - 1) - 1) // step + 1
    return [[out * step - around + tap * gap for out in range(count)] for tap in range(span)]


def _batch_norm(given: Any, *rest: Any, **options: Any) -> Any:
    if not isinstance(given, Video):
        return NotImplemented
    return given.each(lambda frames: aten.batch_norm.default(frames, *rest, **options))


def _largest(
    given: Tensor | Video,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Any:
    if ceil_mode:
        return NotImplemented
    video, (span, *sides), (step, *steps) = _video(given), _triple(kernel), _triple(stride or kernel)
    (around, *pads), (gap, *gaps) = _triple(padding), _triple(dilation)
    small = video.each(lambda frames: F.max_pool2d(frames, sides, steps, pads, gaps)) if _more(sides, steps) else video
    places = _taps(video.length, span, step, around, gap)
    # A frame beside the video is never the largest: one that counts anyway stands in for it.
    inside = range(video.length)
    there = [next(place for place in column if place in inside) for column in zip(*places, strict=True)]
    filled = [[place if place in inside else put for place, put in zip(row, there, strict=True)] for row in places]
    return Video(reduce(torch.maximum, (small.pick(row) for row in filled)), video.clips)


def _average(
    given: Tensor | Video,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    video, (span, *sides), (step, *steps) = _video(given), _triple(kernel), _triple(stride or kernel)
    around, *pads = _triple(padding)
    if ceil_mode or divisor_override or around:
        return NotImplemented
    taps = [video.pick(places) for places in _taps(video.length, span, step, 0, 1)]
    frames = reduce(operator.add, taps) / span if span > 1 else taps[0]
    if _more(sides, steps):
        frames = _means(frames, sides, steps, pads, count_include_pad)
    return Video(frames, video.clips)


def _average_of_pictures(
    given: Any,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Any:
    sides, steps, pads = _pair(kernel), _pair(stride or kernel), _pair(padding)
    spare = any((side - span) % step for side, span, step in zip(given.shape[2:], sides, steps, strict=True))
    if isinstance(given, Video) or divisor_override or (ceil_mode and (spare or any(pads))):
        return NotImplemented
    return _means(given, sides, steps, pads, count_include_pad)


def _means(
    pictures: Tensor, sides: Sequence[int], steps: Sequence[int], pads: Sequence[int], zeros_count: bool
) -> Tensor:
    """An average pooling as a convolution of each channel alone: LiteRT's own cannot be quantised."""
    kernel = torch.full((pictures.shape[1], 1, *sides), 1 / prod(sides), dtype=pictures.dtype)
    means = F.conv2d(pictures, kernel, None, steps, pads, groups=pictures.shape[1])
    if zeros_count or not any(pads):
        return means
    inside = torch.ones((1, 1, *pictures.shape[2:]), dtype=pictures.dtype)
    return means * F.conv2d(inside, kernel[:1], None, steps, pads).reciprocal()  # of windows that lie partly outside


def _cells(given: Tensor | Video, cells: Sequence[int]) -> Video:
    """Averages over windows of all but equal size."""
    video, (times, *sides) = _video(given), _triple(cells)
    spans = windows(video.length, times)
    means = [_mean_of_frames(video, start, end) for start, end in spans]
    return Video(_picture_cells(torch.cat(means) if means[1:] else means[0], sides), video.clips)


def _mean_of_frames(video: Video, start: int, end: int) -> Tensor:
    frames = video.pick(range(start, end))
    if end - start == 1:
        return frames
    return frames.view(end - start, video.clips, *frames.shape[1:]).mean(0)


def _picture_cells(pictures: Tensor, sides: Sequence[int]) -> Tensor:
    """AdaptiveAvgPool2d; where its windows are alike, as a pooling of a fixed kernel, which every runtime has."""
    if list(sides) == [1, 1]:
        return F.adaptive_avg_pool2d(pictures, 1)
    found = [windows(side, cells) for side, cells in zip(pictures.shape[2:], sides, strict=True)]
    kernel = [{end - start for start, end in each} for each in found]
    stride = [{second[0] - first[0] for first, second in pairwise(each)} or {1} for each in found]
    if all(len(each) == 1 and 0 not in each for each in (*kernel, *stride)):
        return _means(pictures, [*map(min, kernel)], [*map(min, stride)], (0, 0), True)
    rows = [
        torch.cat([pictures[:, :, top:bottom, left:right].mean((2, 3), keepdim=True) for left, right in found[1]], 3)
        for top, bottom in found[0]
    ]
    return torch.cat(rows, 2)


def windows(length: int, cells: int) -> list[tuple[int, int]]:
    """Where adaptive pooling starts and ends each window."""
    return [(cell * length // cells, -(-(cell + 1) * length // cells)) for cell in range(cells)]


def _pair(values: Sequence[int]) -> Sequence[int]:
    return tuple(values) * 2 if len(values) == 1 else tuple(values)


def _more(sides: Sequence[int], steps: Sequence[int]) -> bool:
    return any(side != 1 for side in (*sides, *steps))


def _triple(values: Sequence[int]) -> Sequence[int]:
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


# ------------------------------------------------------------ arithmetic and shapes


def _pointwise(operation: Any) -> Callable[..., Any]:
    def known(*args: Any, **kwargs: Any) -> Any:
        videos = [value for value in args if isinstance(value, Video)]
        if not videos:
            return NotImplemented
        length, clips = max(video.length for video in videos), videos[0].clips
        seen = [_beside(value, length, clips) for value in args]
        if any(value is None for value in seen):
            return NotImplemented
        return Video(operation(*seen, **kwargs), clips)

    return known


def _beside(value: Any, length: int, clips: int) -> Any:
    """An operand as it meets frames [T*N,C,H,W]; None if it cannot."""
    if isinstance(value, Video):
        if value.length == length or (value.length == 1 and clips == 1):
            return value.frames
        return value.frames.repeat(length, 1, 1, 1) if value.length == 1 else None
    if isinstance(value, Tensor) and value.dim() == 4 and value.shape[1] == 1:  # [C,1,H,W], the same for every frame
        return value.squeeze(1)
    return value if not isinstance(value, Tensor) or value.dim() == 0 else None


def _transpose(given: Any, first: int, second: int) -> Any:
    """Where frames become the third axis a video begins, where they become the second it ends."""
    dims = 5 if isinstance(given, Video) else given.dim()
    if dims != 5 or {first % 5, second % 5} != {1, 2}:
        return NotImplemented
    return given.by_frame() if isinstance(given, Video) else Video.of_frames(given)


def _flatten(given: Any, start: int = 0, end: int = -1) -> Any:
    if isinstance(given, Video) and given.length == 1 and start == 1 and end == -1:
        return given.frames.flatten(1)
    return NotImplemented


def _cat(parts: Sequence[Any], dim: int = 0) -> Any:
    if not all(isinstance(part, Video) for part in parts):
        return NotImplemented
    if dim % 5 in (1, 2):  # channels, or frames
        return Video(torch.cat([part.frames for part in parts], 1 if dim % 5 == 1 else 0), parts[0].clips)
    return NotImplemented


KNOWN: dict[Any, Callable[..., Any]] = {
    aten.conv3d.default: _convolution,
    aten.batch_norm.default: _batch_norm,
    aten.max_pool3d.default: _largest,
    aten.avg_pool3d.default: _average,
    aten.avg_pool2d.default: _average_of_pictures,
    aten.adaptive_avg_pool3d.default: _cells,
    aten.transpose.int: _transpose,
    aten.flatten.using_ints: _flatten,
    aten.cat.default: _cat,
}
POINTWISE = (
    aten.relu.default,
    aten.relu_.default,
    aten.hardtanh.default,
    aten.hardtanh_.default,
    aten.silu.default,
    aten.silu_.default,
    aten.gelu.default,
    aten.sigmoid.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.hardsigmoid.default,
    aten.tanh.default,
    aten.leaky_relu.default,
    aten.dropout.default,
    aten.to.dtype,
    aten.add.Tensor,
    aten.add_.Tensor,
    aten.sub.Tensor,
    aten.mul.Tensor,
    aten.mul_.Tensor,
    aten.div.Tensor,
)
KNOWN |= {operation: _pointwise(operation) for operation in POINTWISE}
