"""What is too old goes: predictions after `keep_days`, latents after `latent_days`, a few thousand at a time."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import sqlalchemy as sa

from distill.live.cloud.database import writing
from distill.live.cloud.request import Options
from distill.live.cloud.tables import cameras, predictions

CHUNK = 5000
DAY = 86400.0
EVERY_SECONDS = 3600.0


def forget_old(engine: sa.Engine, options: Options) -> dict[str, int]:
    """By the service's own clock: when they came. Says how many went."""
    now, table = time.time(), predictions.c
    old = table.received < now - options.keep_days * DAY
    stale = (table.received < now - options.latent_days * DAY) & table.latent.is_not(None)
    found = {"predictions": 0, "latents": 0}
    if options.keep_days:
        _forget_cameras(engine, now - options.keep_days * DAY)
    while options.keep_days and (count := _chunk(engine, old, sa.delete(predictions))):
        found["predictions"] += count
    while options.latent_days and (count := _chunk(engine, stale, sa.update(predictions).values(latent=None))):
        found["latents"] += count
    return found


def _forget_cameras(engine: sa.Engine, before: float) -> None:
    """What they saw last; and those of which nothing else is known."""
    table, nothing = cameras.c, dict.fromkeys(("seen", "captured", "label", "confidence"))
    with writing(engine) as connection:
        connection.execute(sa.update(cameras).where(table.seen < before).values(nothing))
        connection.execute(sa.delete(cameras).where(table.seen.is_(None), table.status.is_(None)))


def _chunk(engine: sa.Engine, which: sa.ColumnElement[bool], change: sa.Delete | sa.Update) -> int:
    """Writers wait for each other: nobody waits long for this one."""
    few = sa.select(predictions.c.id).where(which).limit(CHUNK).scalar_subquery()
    with writing(engine) as connection:
        return connection.execute(change.where(predictions.c.id.in_(few))).rowcount


class Forgetting:
    """Once an hour, while it is entered."""

    def __init__(self, engine: sa.Engine, options: Options) -> None:
        self.engine, self.options = engine, options
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True, name="distill cloud: forgetting")

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _work(self) -> None:
        while True:
            with suppress(sa.exc.SQLAlchemyError):  # the database is away: the next time will do
                forget_old(self.engine, self.options)
            if self._stop.wait(EVERY_SECONDS):
                return
