"""What `distill cloud devices` is asked for."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import UserError
from distill.live import wire
from distill.live.cloud import request

ASKED = ("add", "viewer", "rotate", "revoke")


@dataclass
class Options(request.Options):
    add: str = ""
    """Name of a device that may send from now on; its key is printed once."""
    viewer: str = ""
    """Name of somebody who may read from now on; the key is printed once."""
    rotate: str = ""
    """Name of a device or viewer that gets a new key."""
    grace_hours: float = 24.0
    """How long a rotated key's predecessor is good."""
    revoke: str = ""
    """Name of a device or viewer whose keys are void from now on."""


def read(arguments: Sequence[str]) -> Options:
    """`recipe=NAME add=DEVICE key=value ...`."""
    options = request.read_as(Options, arguments)
    asked = [key for key in ASKED if getattr(options, key)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} at once; one thing at a time")
    for key in asked:
        if not re.search(wire.NAME, name := getattr(options, key)):
            raise UserError(f"{key}={name!r} is no name; it has letters, digits, blanks and .:-_ only, 64 at most")
    if not 0 <= options.grace_hours < math.inf:
        raise UserError(f"grace_hours is {options.grace_hours}; it is at least 0")
    return options
