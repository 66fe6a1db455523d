"""Random numbers as pure functions of what they are for.

A draw depends on its key alone, e.g. (seed, clip id, view): not on call order, worker count, batch size or the version
of a library. The generator is BLAKE2b over the key's text, so there is no state to save, restore or share.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np


def _digest(key: tuple[object, ...]) -> bytes:
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return hashlib.blake2b(text.encode(), digest_size=64).digest()


def number(*key: object) -> int:
    """A whole number in [0, 2**63)."""
    return int.from_bytes(_digest(key)[:8], "little") >> 1


def uniforms(*key: object) -> tuple[float, ...]:
    """Eight independent numbers in [0, 1)."""
    return tuple((word >> 11) * 2.0**-53 for word in struct.unpack("<8Q", _digest(key)))


def generator(*key: object) -> np.random.Generator:
    """A NumPy generator for draws that are many and need not survive a NumPy upgrade."""
    return np.random.Generator(np.random.Philox(key=number(*key)))
