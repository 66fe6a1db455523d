"""What became of a message's clips: classified and stored in batches by one thread, and answered once they are stored.

Shape legend: N clips, L latent width, K classes.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import sqlalchemy as sa

from distill.live.cloud.access import Holder
from distill.live.cloud.classifying import Classifier
from distill.live.cloud.database import insert, upsert, writing
from distill.live.cloud.meters import Meters
from distill.live.cloud.request import Options
from distill.live.cloud.tables import cameras, predictions
from distill.live.wire import Post, Verdict

PATIENCE = 10.0  # seconds that the thread is given to store what it has taken
KEY = ("device_id", "camera", "boot", "seq")
AT_ONCE = 1000  # clips that one question is about
ROUND = 6  # places that a share is kept to


class FullError(RuntimeError):
    """There is no room for more clips now."""


class LatentError(ValueError):
    """The classifier makes nothing of a latent, for instance because its numbers are too large to be squared."""


@dataclass(frozen=True)
class Arrival:
    """A checked message of a device."""

    device: Holder
    post: Post
    latents: np.ndarray  # float32 [N,L]
    received: float
    stored: Future[list[Verdict]] = field(default_factory=Future)


class Intake:
    """Takes messages while it is entered. `told` hears of the newest id after each batch."""

    def __init__(
        self, engine: sa.Engine, classifier: Classifier, options: Options, meters: Meters, told: Callable[[int], object]
    ) -> None:
        self.engine, self.classifier, self.options, self.meters, self.told = engine, classifier, options, meters, told
        self.waiting = 0
        self._inbox: queue.SimpleQueue[Arrival | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, daemon=True, name="distill cloud: intake")
        self._insert = (
            insert(engine, predictions)
            .on_conflict_do_nothing(index_elements=KEY)
            .returning(predictions.c.id, *(predictions.c[name] for name in KEY))
        )
        self._see = upsert(engine, cameras, ("seen", "captured", "label", "confidence"))

    def __enter__(self) -> Intake:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._inbox.put(None)
        self._thread.join(PATIENCE)

    @property
    def well(self) -> bool:
        return self._thread.is_alive()

    def put(self, arrival: Arrival) -> Future[list[Verdict]]:
        clips = len(arrival.post.clips)
        with self._lock:
            if self.waiting + clips > self.options.queue:
                raise FullError
            self.waiting += clips
            self.meters.queue.set(self.waiting)
        arrival.stored.set_running_or_notify_cancel()  # who no longer waits for the answer does not call it off
        self._inbox.put(arrival)
        return arrival.stored

    def _work(self) -> None:
        more = True
        while more:
            first = self._inbox.get()
            if first is None:
                return
            batch, more = self._gather(first)
            self._settle(batch)
            with self._lock:
                self.waiting -= sum(len(arrival.post.clips) for arrival in batch)
                self.meters.queue.set(self.waiting)

    def _gather(self, first: Arrival) -> tuple[list[Arrival], bool]:
        """What came with it or soon after; and whether there may be more."""
        batch, clips = [first], len(first.post.clips)
        due = time.monotonic() + self.options.wait_ms / 1000
        while clips < self.options.batch:
            try:
                arrival = self._inbox.get(timeout=max(0.0, due - time.monotonic()))
            except queue.Empty:
                break
            if arrival is None:
                return batch, False
            batch.append(arrival)
            clips += len(arrival.post.clips)
        return batch, True

    def _settle(self, batch: Sequence[Arrival]) -> None:
        """Each message gets its answer; one that cannot be stored keeps no other from it."""
        try:
            answers = self._store(batch)
        except sa.exc.OperationalError as error:  # the database is away or busy, for all of them
            for arrival in batch:
                arrival.stored.set_exception(error)
        except Exception as error:
            if len(batch) == 1:
                batch[0].stored.set_exception(error)
                return
            for arrival in batch:
                self._settle([arrival])
        else:
            for arrival, answer in zip(batch, answers, strict=True):
                arrival.stored.set_result(answer)

    def _store(self, batch: Sequence[Arrival]) -> list[list[Verdict]]:
        with self.meters.classify.time():
            said = self._classify(np.concatenate([arrival.latents for arrival in batch]))
        now = time.time()
        clips = [(arrival, place) for arrival in batch for place in range(len(arrival.post.clips))]
        rows = [self._row(*clip, now) | verdict for clip, verdict in zip(clips, said, strict=True)]
        keys = [_key(row) for row in rows]
        with self.meters.database.time(), writing(self.engine) as connection:
            new = connection.execute(self._insert, rows).all()
            first = {key: place for place, key in reversed([*enumerate(keys)])}  # the same clip may come twice at once
            fresh = {first[tuple(row[1:])] for row in new}
            stored = _stored(connection, [key for place, key in enumerate(keys) if place not in fresh])
            if fresh:
                connection.execute(self._see, _latest([row for place, row in enumerate(rows) if place in fresh]))
        if new:
            self.told(max(row[0] for row in new))
        self._count(batch, len(rows), len(new))
        verdicts = iter([_verdict(row, stored.get(keys[place]), place in fresh) for place, row in enumerate(rows)])
        return [[next(verdicts) for _ in arrival.post.clips] for arrival in batch]

    def _classify(self, latents: np.ndarray) -> list[dict[str, Any]]:
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                shares = self.classifier.shares(latents)
        except ValueError as error:
            raise LatentError from error
        if not np.isfinite(shares).all():
            raise LatentError
        order = _largest(shares, self.options.top)
        best = np.round(np.take_along_axis(shares, order, 1), ROUND).tolist()
        names = self.classifier.classes
        found = []
        for places, values in zip(order.tolist(), best, strict=True):
            top = [(names[place], value) for place, value in zip(places, values, strict=True)]
            label, confidence = top[0]
            found.append({"label": label, "confidence": confidence, "top": msgspec.json.encode(top).decode()})
        return found

    def _row(self, arrival: Arrival, place: int, now: float) -> dict[str, Any]:
        clip = arrival.post.clips[place]
        return {
            "device_id": arrival.device.id,
            "camera": clip.camera,
            "boot": clip.boot,
            "seq": clip.seq,
            "captured": clip.captured,
            "received": arrival.received,
            "encode_ms": clip.encode_ms,
            "edge_ms": max(0.0, 1e3 * (arrival.post.sent - clip.captured)),
            "network_ms": arrival.post.network_ms,
            "cloud_ms": max(0.0, 1e3 * (now - arrival.received)),
            "latent": arrival.latents[place].astype(np.float16).tobytes() if self.options.latents else None,
        }

    def _count(self, batch: Sequence[Arrival], clips: int, new: int) -> None:
        self.meters.batch.observe(clips)
        self.meters.clips.labels("stored").inc(new)
        self.meters.clips.labels("known").inc(clips - new)
        for device, camera in {(arrival.device.name, clip.camera) for arrival in batch for clip in arrival.post.clips}:
            self.meters.seen.labels(device, camera).set(batch[-1].received)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def _verdict(row: Mapping[str, Any], stored: tuple[str, float] | None, fresh: bool) -> Verdict:
    label, confidence = stored or (row["label"], row["confidence"])
    return Verdict(row["camera"], row["boot"], row["seq"], label, confidence, known=not fresh)


def _largest(shares: np.ndarray, most: int) -> np.ndarray:
    """Places of each row's largest shares, the first of equals first: a few of hundreds, so nothing else is sorted."""
    left, rows, found = shares.copy(), np.arange(len(shares)), []
    for _ in range(min(most, shares.shape[1])):
        found.append(left.argmax(1))
        left[rows, found[-1]] = -np.inf
    return np.stack(found, 1)


def _stored(connection: sa.Connection, keys: Sequence[tuple[Any, ...]]) -> dict[tuple[Any, ...], tuple[str, float]]:
    """What was said of clips that are there already, whatever is sent with their keys now."""
    columns = [predictions.c[name] for name in KEY]
    found = dict[tuple[Any, ...], tuple[str, float]]()
    for at in range(0, len(keys), AT_ONCE):
        some = keys[at : at + AT_ONCE]
        asked = sa.select(*columns, predictions.c.label, predictions.c.confidence).where(sa.tuple_(*columns).in_(some))
        found |= {tuple(row[:-2]): (row.label, row.confidence) for row in connection.execute(asked)}
    return found


def _latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last row of each camera, always in the same order."""
    last = {(row["device_id"], row["camera"]): row for row in rows}
    return [
        {
            "device_id": device_id, "name": name, "seen": row["received"], "captured": row["captured"],
            "label": row["label"], "confidence": row["confidence"],
        }
        for (device_id, name), row in sorted(last.items())
    ]  # fmt: skip
