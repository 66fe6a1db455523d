"""Between a thread that makes things and one that uses them: little room, and the latest counts."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Buffer(Generic[Item]):
    """Full, it drops the oldest; or, if it `waits`, it lets the maker wait until there is room."""

    def __init__(self, room: int, waits: bool = False) -> None:
        self.room, self.waits = room, waits
        self.dropped = 0
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Item) -> None:
        """Into a closed buffer nothing goes."""
        with self._changed:
            if self.waits:
                self._changed.wait_for(lambda: self._closed or len(self._items) < self.room)
            if self._closed:
                return
            if len(self._items) == self.room:
                self._items.popleft()
                self.dropped += 1
            self._items.append(item)
            self._changed.notify_all()

    def get(self, timeout: float | None = None) -> Item | None:
        """The oldest; None if none came in this many seconds, or none will."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or bool(self._items), timeout)
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """Nothing more comes; what is in here can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def over(self) -> bool:
        with self._changed:
            return self._closed and not self._items
