"""The temporal shift (Lin, Gan and Han, arXiv 1811.08383): an eighth of the channels comes from the next frame and an
eighth from the one before; online, an eighth from the one before, and nothing from the future.

It stands before what the residual branch of a block computes, in every block that has one, and leaves what goes
around the branch alone. It hangs on the network as a hook, so that no weight changes its name: files of weights of the
plain network still fit.

A stream of frames, one at a time, goes through the same network: inside `streaming` each shift takes the channels of
the frame before from a list, in the order in which the shifts are met, and leaves its own there for the next frame.

Shape legend: B clips, T frames, N = B*T pictures, C channels, n = C/8 of them, h and w the sides of a map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from students._blocks import blocks

DIRECTIONS = ("none", "bidirectional", "online")
SHARE = 8  # one channel in so many goes each way


class Stream:
    """The channels that shifts had from the frame before [B,n,h,w], and those of this one; None: it is the first."""

    def __init__(self, before: Sequence[Tensor] | None) -> None:
        self.before = None if before is None else iter(before)
        self.now: list[Tensor] = []

    def exchange(self, channels: Tensor) -> Tensor:
        before = torch.zeros_like(channels) if self.before is None else next(self.before)
        self.now.append(channels.to(before.dtype))  # so that a state keeps its type under autocast
        return before


_STREAM: ContextVar[Stream | None] = ContextVar("stream", default=None)


@contextmanager
def streaming(before: Sequence[Tensor] | None) -> Iterator[list[Tensor]]:
    """Pictures are the next frames of B streams, not clips; gives the list of what the frame after them needs."""
    stream = Stream(before)
    token = _STREAM.set(stream)
    try:
        yield stream.now
    finally:
        _STREAM.reset(token)


@dataclass(frozen=True)
class Shift:
    """A hook before a part of a network whose pictures [N,C,h,w] are `frames` of each clip in a row."""

    frames: int
    online: bool

    def __call__(self, part: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        maps, *rest = given
        stream = _STREAM.get()
        return (self._whole_clips(maps) if stream is None else self._next_frames(maps, stream), *rest)

    def _whole_clips(self, maps: Tensor) -> Tensor:
        # Slices and cat alone: every exporter knows them, and some make chains of slow steps of anything else.
        clips, n = maps.view(-1, self.frames, *maps.shape[1:]), maps.shape[1] // SHARE
        blank = torch.zeros_like(clips[:, :1, :n])
        if self.online:
            parts = [torch.cat([blank, clips[:, :-1, :n]], 1), clips[:, :, n:]]
        else:
            ahead = torch.cat([clips[:, 1:, :n], blank], 1)
            behind = torch.cat([blank, clips[:, :-1, n : 2 * n]], 1)
            parts = [ahead, behind, clips[:, :, 2 * n :]]
        return torch.cat(parts, 2).flatten(0, 1)

    def _next_frames(self, maps: Tensor, stream: Stream) -> Tensor:
        n = maps.shape[1] // SHARE
        return torch.cat([stream.exchange(maps[:, :n]), maps[:, n:]], 1)


def insert_shift(network: nn.Module, frames: int, online: bool) -> int:
    """Shift in every residual branch; says how many there are."""
    branches = [block.enter for block in blocks(network) if block.residual]
    for branch in branches:
        branch.register_forward_pre_hook(Shift(frames, online))
    return len(branches)
