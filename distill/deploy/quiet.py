"""Converters and their C++ parts talk a lot, straight to the console; they are heard only when they fail."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile


@contextmanager
def quiet() -> Iterator[None]:
    """Whatever this process writes on the console meanwhile goes into a file that is thrown away."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    with TemporaryFile() as said, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for stream in (1, 2):
                os.dup2(said.fileno(), stream)
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, stream)
                os.close(copy)
