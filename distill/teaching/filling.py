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
from distill.clips.frames import ClipError, Frames, blank, frame_bytes, unseen
from distill.clips.workers import StuckError, spread
from distill.run_log import Talk, Track
from distill.shards.claims import Claims
from distill.shards.grid import Needs, Shards

PATIENCE = 0.5  # seconds between two looks at what other processes are still doing
NEWS = 5.0  # seconds between two looks at what others have done, while there is work
COSTLY = 20  # a look may take this share of the time between two of them: one in twenty
LONG = 60.0  # seconds of waiting for others after which a person should know
CLIP_BYTES = 64 << 20  # of frames that one clip's views hold at once; more views than that are read in turns
Records = dict[str, np.ndarray]
Make = Callable[[Iterator["Looked"], list[int]], Iterator[tuple[int, Records]]]
ViewsOf = Callable[[list[int]], list[int]]
Unit = tuple[int, list[int], bool]  # shard, views, and whether it is the last turn of the shard


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

    def __init__(self, clips: ClipSet, frames: Frames, stuck: Mapping[int, str]) -> None:
        """`stuck` are clips in which a reader hung, and what was said of them."""
        self.clips, self.frames, self.stuck = clips, frames, dict(stuck)

    def __call__(self, key: tuple[int, list[int]]) -> Looked:
        index, views = key
        why = self.stuck.get(index, "")
        if not self.clips.manifest.clips[index].broken and not why:
            try:
                frames = self.frames.get(index, views)
                seen = self.frames.seen(index, views, frames)
                return Looked(index, torch.from_numpy(frames), torch.from_numpy(seen))
            except ClipError as error:
                why = str(error)
        nothing = torch.from_numpy(blank(len(views), self.clips.spec))
        return Looked(index, nothing, torch.from_numpy(unseen(len(views))), why)


@dataclass
class Filling:
    """What every filling of a store needs to know of its job."""

    clips: ClipSet
    rank: int
    world: int
    talk: Talk
    heed: Callable[[Mapping[int, str]], object]  # is told of clips that failed
    news: Callable[[], str] = str  # what to say beside the progress

    def fill(self, what: str, shards: Shards, needs: Needs, frames: Frames, views_of: ViewsOf, make: Make) -> None:
        """Fill every gap. `views_of` tells which views of a clip to read for the views of a record; `make` makes a
        shard's records of them: (clips, record views) -> a record's view and its fields."""
        pace, stuck, waited = _Pace(shards, needs), dict[int, str](), 0.0
        with self.talk.track(what, pace.left) as track, Claims(shards.folder / "claims") as claims:
            while gaps := pace.look():
                at = len(gaps) * self.rank // self.world  # another place for every process: few try for the same
                units: deque[Unit] = deque()
                keys = self._claimed(shards, claims, gaps[at:] + gaps[:at], units, views_of)
                loaded = self._load(Look(self.clips, frames, stuck), keys, self.workers(frames))
                before = pace.left
                try:
                    for first in loaded:
                        shard, views, last = units.popleft()
                        members = len(shards.members(shard))
                        stream = self._watched(itertools.chain([first], itertools.islice(loaded, members - 1)), track)
                        self._commit(shards, shard, make(stream, views))
                        if last:
                            claims.give_back(shard)
                            pace.finished(shard)
                        track.done = track.total - pace.left
                except StuckError as error:
                    if not error.hung or error.clip < 0 or error.clip in stuck:
                        raise
                    stuck[error.clip] = str(error)
                    claims.give_back_all()
                else:
                    waited = self._wait(pace, before, waited)

    def _load(self, look: Look, keys: Iterator[tuple[int, list[int]]], workers: int) -> Iterator[Looked]:
        seconds, pin = self.clips.options.timeout, torch.cuda.is_available()
        return spread(look, keys, workers, seconds, self.clips.name, pin)

    def _wait(self, pace: _Pace, before: int, waited: float) -> float:
        """If nothing could be claimed, give the others some time; says so once when it gets long."""
        if pace.left < before:
            return 0.0
        time.sleep(PATIENCE)
        if waited < LONG <= waited + PATIENCE:
            self.talk.say(f"waiting for other jobs, which have claimed the {pace.left} clips that are left")
        return waited + PATIENCE

    def workers(self, frames: Frames) -> int:
        """Processes that read; frames that are kept already need none."""
        return replace(self.clips, frames=frames).workers

    def at_once(self, views: list[int]) -> list[list[int]]:
        """The views in turns that fit in memory, clip by clip."""
        most = max(1, CLIP_BYTES // frame_bytes(self.clips.spec))
        return [views[at : at + most] for at in range(0, len(views), most)]

    def _claimed(
        self,
        shards: Shards,
        claims: Claims,
        gaps: list[tuple[int, list[int]]],
        units: deque[Unit],
        views_of: ViewsOf,
    ) -> Iterator[tuple[int, list[int]]]:
        """The clips to read, and in `units` the shards they belong to; claimed when their turn comes."""
        for shard, views in gaps:
            if not claims.take(shard):
                continue
            left = [view for view in views if not shards.is_there(shard, view)]
            if not left:  # somebody finished it since we looked
                claims.give_back(shard)
                continue
            turns = self.at_once(left)
            for number, turn in enumerate(turns, 1):
                units.append((shard, turn, number == len(turns)))
                yield from ((clip, views_of(turn)) for clip in shards.members(shard))

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


class _Pace:
    """How many clips are left, over all jobs; looks at the disk only now and then, since that takes time."""

    def __init__(self, shards: Shards, needs: Needs) -> None:
        self.shards, self.needs, self.next = shards, needs, 0.0
        self.sizes: dict[int, int] = {}
        self.look()

    @property
    def left(self) -> int:
        return sum(self.sizes.values())

    def look(self) -> list[tuple[int, list[int]]]:
        """The gaps that there are now."""
        started = time.monotonic()
        self.shards.refresh()
        gaps = self.shards.gaps(self.needs)
        self.sizes = {shard: len(self.shards.members(shard)) for shard, _ in gaps}
        now = time.monotonic()
        self.next = now + max(NEWS, COSTLY * (now - started))
        return gaps

    def finished(self, shard: int) -> None:
        self.sizes.pop(shard, None)
        if time.monotonic() >= self.next:
            self.look()
