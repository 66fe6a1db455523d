"""New predictions, as they are stored, to whoever listens: server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.concurrency import run_in_threadpool

from distill.live.cloud.reading import Filter, newest_id, page, spoken

ALIVE_SECONDS = 15.0  # between two signs of life where there is nothing to say
LOOK_SECONDS = 0.5  # between two looks for what other workers have stored
FULL_SECONDS = 10  # after which to come again, where too many listen
AT_ONCE = 500  # predictions of one event


class Hub:
    """Knows the newest id, from this worker at once and from the others soon, while somebody listens."""

    def __init__(self, engine: sa.Engine, most: int) -> None:
        self.engine, self.most, self.newest, self.listeners, self.over = engine, most, 0, 0, False
        self._news = asyncio.Event()  # a new one each time: who waits for the old one has heard
        self._loop = asyncio.get_running_loop()
        self._looking: asyncio.Task[None] | None = None

    @property
    def full(self) -> bool:
        return self.listeners >= self.most

    def tell(self, newest: int) -> None:
        """From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, newest)

    def close(self) -> None:
        self.over = True
        if self._looking:
            self._looking.cancel()
        self._take(self.newest)

    async def events(self, last: int, gone: Callable[[], Awaitable[bool]]) -> AsyncIterator[bytes]:
        """What came after an id, as long as it is listened to."""
        if self.full:  # by others who asked at the same moment
            yield b"retry: %d\n\n" % (1e3 * FULL_SECONDS)
            return
        self.listeners += 1
        try:
            self._look()
            yield b"retry: 1000\n: listening\n\n"
            said = time.monotonic()
            while not self.over and not await gone():
                newest = self.newest
                try:
                    rows = await run_in_threadpool(page, self.engine, Filter(), AT_ONCE, False, last)
                except sa.exc.SQLAlchemyError:
                    return  # the database is away: who listens comes again, and says where it was
                if rows:
                    last, said = rows[-1]["id"], time.monotonic()
                    yield b"event: predictions\nid: %d\ndata: %b\n\n" % (last, msgspec.json.encode(spoken(rows)))
                else:
                    last = max(last, newest)  # what there was up to there has been forgotten
                    if time.monotonic() - said > ALIVE_SECONDS:
                        said = time.monotonic()
                        yield b": alive\n\n"
                if len(rows) < AT_ONCE:
                    await self._wait(last)
        finally:
            self.listeners -= 1

    async def _wait(self, last: int) -> None:
        if self.over or self.newest > last:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALIVE_SECONDS / 5):
                await self._news.wait()

    def _take(self, newest: int) -> None:
        self.newest = max(self.newest, newest)
        self._news.set()
        self._news = asyncio.Event()

    def _look(self) -> None:
        if self._looking is None or self._looking.done():
            self._looking = self._loop.create_task(self._look_around())

    async def _look_around(self) -> None:
        while self.listeners and not self.over:
            try:
                newest = await run_in_threadpool(newest_id, self.engine)
            except sa.exc.SQLAlchemyError:
                newest = 0
            if newest > self.newest:
                self._take(newest)
            await asyncio.sleep(LOOK_SECONDS)


@contextlib.contextmanager
def heeding_signals(act: Callable[[], object]) -> Iterator[None]:
    """Act as soon as the process is told to stop: the server itself waits first until nobody listens any more."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    servers: dict[int, Any] = {number: handler for number, handler in found.items() if callable(handler)}

    def heed(number: int, frame: Any) -> None:
        loop.call_soon_threadsafe(act)
        servers[number](number, frame)

    for number in servers:
        signal.signal(number, heed)
    try:
        yield
    finally:
        for number, handler in servers.items():
            signal.signal(number, handler)
