"""One field of many mapped files, read as if it were one array.

Copying a batch row by row costs a Python call for each; NumPy's fancy indexing does all of them in one call, but wants
one array. So the address of every file's rows is kept, and memory itself serves as that array.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np


class Column:
    """Rows of one type and shape that lie in many arrays; whoever holds the column keeps the arrays alive."""

    def __init__(self, like: np.ndarray, count: int) -> None:
        """For `count` arrays like this one."""
        self.kind, self.shape = like.dtype, like.shape[1:]
        self.bytes = self.kind.itemsize * prod(self.shape)
        self.starts = np.zeros(count, np.int64)  # addresses; 0 for an array that has not been put yet
        self.lengths = np.zeros(count, np.int64)

    def put(self, place: int, rows: np.ndarray) -> None:
        assert (rows.dtype, rows.shape[1:]) == (self.kind, self.shape), "fields are alike in all shards"
        assert rows.flags.c_contiguous
        self.starts[place], self.lengths[place] = rows.__array_interface__["data"][0], len(rows)

    def take(self, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """A copy of row rows[i] of array places[i], for every i."""
        assert (rows < self.lengths[places]).all()
        address = self.starts[places] + rows * self.bytes
        lowest = int(address.min())
        memory = np.asarray(_Memory(lowest, int(address.max()) - lowest + 1, self.bytes))
        copied: np.ndarray = memory[address - lowest].view(self.kind).reshape(len(rows), *self.shape)
        return copied


class _Memory:
    """`count` rows of `size` bytes, one starting at each address from `start` on."""

    def __init__(self, start: int, count: int, size: int) -> None:
        self.__array_interface__: dict[str, Any] = {
            "data": (start, True),
            "shape": (count,),
            "strides": (1,),
            "typestr": f"|V{size}",
            "version": 3,
        }
