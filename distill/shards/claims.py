"""Who works on which shard: byte n of one file, locked by the process that does shard n.

The kernel gives a lock back when its process ends, however it ends, so there is nothing to expire or to steal. Claims
only save work: that a shard is right never hangs on them, and where there are no locks everyone does everything.
"""

from __future__ import annotations

import errno
import fcntl
from contextlib import suppress
from pathlib import Path
from typing import Self

HELD = (errno.EACCES, errno.EAGAIN)  # anything else means that this file system has no locks


class Claims:
    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("ab")

    def take(self, shard: int) -> bool:
        """Whether the shard is ours to do."""
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, shard)
        except OSError as error:
            return error.errno not in HELD
        return True

    def give_back(self, shard: int) -> None:
        with suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN, 1, shard)

    def give_back_all(self) -> None:
        with suppress(OSError):
            fcntl.lockf(self.file, fcntl.LOCK_UN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
