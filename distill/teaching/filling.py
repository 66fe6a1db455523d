"""Fills the gaps of a store, with whoever else is at it.

A unit of work is a shard with its missing views. Each process claims one after the other, so any number of processes of
any number of jobs share the work, and one that dies leaves its unit to the others.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from distill.clips.clipset import ClipSet
from distill.clips.frames import ClipError, Frames, StoredFrames, blank
from distill.clips.workers import spread
from distill.run_log import Talk, Track
from distill.shards.claims import Claims
from distill.shards.grid import Needs, Shards

PATIENCE = 0.5  # seconds between two looks at what other processes are still doing
Records = dict[str, np.ndarray]
Make = Callable[[Iterator["Looked"], list[int]], Iterator[tuple[int, Records]]]


@dataclass(frozen=True)
class Looked:
    """One clip in the views that are wanted of it."""

    index: int
    frames: torch.Tensor  # uint8 [V,T,3,H,W]; blank for a clip that gives none
    seen: torch.Tensor  # uint8 [V,20]; zeros for a clip that gives none
    failure: str = ""  # why it gives none, if nobody knew before

    def pin_memory(self) -> Looked:
        return replace(self, frames=self.frames.pin_memory())


class Look:
    """Reads the views of a clip; one that cannot be read is blank, and its record says so."""

    def __init__(self, clips: ClipSet, frames: Frames) -> None:
        self.clips, self.frames = clips, frames

    def __call__(self, key: tuple[int, list[int]]) -> Looked:
        index, views = key
        why = ""
        if not self.clips.manifest.clips[index].broken:
            try:
                frames = self.frames.get(index, views)
                seen = self.frames.seen(index, views, frames)
                return Looked(index, torch.from_numpy(frames), torch.from_numpy(seen))
            except ClipError as error:
                why = str(error)
        nothing = np.zeros((len(views), 20), np.uint8)
        return Looked(index, torch.from_numpy(blank(len(views), self.clips.spec)), torch.from_numpy(nothing), why)


@dataclass
class Filling:
    """What every filling of a store needs to know of its job."""

    clips: ClipSet
    rank: int
    world: int
    talk: Talk
    heed: Callable[[Mapping[int, str]], object]  # is told of clips that failed
    news: Callable[[], str] = str  # what to say beside the progress

    def fill(
        self,
        what: str,
        shards: Shards,
        needs: Needs,
        frames: Frames,
        views_of: Callable[[list[int]], list[int]],
        make: Make,
    ) -> None:
        """Fill every gap. `views_of` tells which views of a clip to read for the views of a record; `make` makes a
        shard's records of them: (clips, record views) -> a record's view and its fields."""
        total = self._left(shards, needs)
        workers = self.workers(frames)
        with self.talk.track(what, total) as track, Claims(shards.folder / "claims") as claims:
            while gaps := self._gaps(shards, needs):
                units: deque[tuple[int, list[int]]] = deque()
                keys = self._claimed(shards, claims, gaps, units, views_of)
                options = self.clips.options
                loader = spread(
                    Look(self.clips, frames), keys, workers, options.timeout, self.clips.name, torch.cuda.is_available()
                )
                done = False
                for first in loader:
                    shard, views = units.popleft()
                    members = len(shards.members(shard))
                    stream = self._watched(itertools.chain([first], itertools.islice(loader, members - 1)), track)
                    self._commit(shards, shard, make(stream, views))
                    claims.give_back(shard)
                    done = True
                    track.done = total - self._left(shards, needs)
                if not done:  # others have claimed all that is left
                    time.sleep(PATIENCE)
                    track.done = total - self._left(shards, needs)

    def workers(self, frames: Frames) -> int:
        """Processes that read; frames that are kept already need none."""
        return 0 if isinstance(frames, StoredFrames) else self.clips.options.workers

    def _gaps(self, shards: Shards, needs: Needs) -> list[tuple[int, list[int]]]:
        """What is left, from another place on for every process, so that few try for the same."""
        shards.refresh()
        gaps = shards.gaps(needs)
        at = len(gaps) * self.rank // self.world
        return gaps[at:] + gaps[:at]

    @staticmethod
    def _left(shards: Shards, needs: Needs) -> int:
        shards.refresh()
        return sum(len(shards.members(shard)) for shard, _ in shards.gaps(needs))

    @staticmethod
    def _claimed(
        shards: Shards,
        claims: Claims,
        gaps: list[tuple[int, list[int]]],
        units: deque[tuple[int, list[int]]],
        views_of: Callable[[list[int]], list[int]],
    ) -> Iterator[tuple[int, list[int]]]:
        """The clips to read, and in `units` the shards they belong to; claimed when their turn comes."""
        for shard, views in gaps:
            if not claims.take(shard):
                continue
            left = [view for view in views if not shards.is_there(shard, view)]
            if not left:  # somebody finished it since we looked
                claims.give_back(shard)
                continue
            units.append((shard, left))
            yield from ((clip, views_of(left)) for clip in shards.members(shard))

    def _watched(self, stream: Iterator[Looked], track: Track) -> Iterator[Looked]:
        for looked in stream:
            if looked.failure:
                self.heed({looked.index: looked.failure})
            yield looked
            track.advance(1, self.news())

    @staticmethod
    def _commit(shards: Shards, shard: int, made: Iterator[tuple[int, Records]]) -> None:
        for view, records in made:
            shards.commit(shard, view, records, np.flatnonzero(~records["seen"].any(1)).tolist())
