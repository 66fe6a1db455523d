"""What `distill demo-aiot` is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distill.errors import UserError
from distill.keys import pair, read_group

LEAST = {"cameras": 1, "every": 0.1, "most_seconds": 0}
MOST_CAMERAS = 64


@dataclass
class Options:
    model: str = ""
    """Run folder of the student that encodes on the edge and whose classifier works in the cloud. Empty: the
    quickstart's, or where that was not run, one that is trained first (a minute)."""
    cameras: int = 5
    """How many cameras are simulated: videos of moving digits, generated and played for ever."""
    every: float = 2.0
    """Seconds from one clip of a camera to its next."""
    port: int = 8000
    """Of the cloud's page; the edge's own is at the next one."""
    most_seconds: float = 0.0
    """Stop after so many seconds; 0: at Ctrl-C."""
    out: str = "runs/aiot"
    """Folder of the videos, the edge's spool and the cloud's database."""


def read(arguments: Sequence[str]) -> Options:
    """`key=value ...`; nothing is needed."""
    for argument in arguments:
        pair(argument, "example: cameras=5 port=8000")
    options = read_group(Options, arguments)
    for key, least in LEAST.items():
        if not least <= getattr(options, key) < math.inf:
            raise UserError(f"{key} is {getattr(options, key)}; it is at least {least}")
    if options.cameras > MOST_CAMERAS:
        raise UserError(f"cameras is {options.cameras}; this demo has {MOST_CAMERAS} at most")
    if not 0 < options.port < (1 << 16) - 1:
        raise UserError(f"port is {options.port}; it is from 1 to 65534")
    return options
