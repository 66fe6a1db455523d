"""What `distill cloud` is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distill.errors import UserError
from distill.keys import RECIPES, find_recipe, named_recipe, read_group
from distill.live import wire

FOLDER = RECIPES / "live"
READERS = ("key", "anyone")
MOST_WAIT_MS = 10_000
LEAST = {
    "workers": 1,
    "queue": 1,
    "batch": 1,
    "wait_ms": 0,
    "clips_per_message": 1,
    "rate": 0,
    "keep_days": 0,
    "latent_days": 0,
    "top": 1,
    "streams": 0,
}


@dataclass
class Options:
    classifier: str = ""
    """Who says what a latent shows: a fitted probe (RUN/probe/....safetensors), or a run folder, whose student's own
    classifier runs in torch."""
    encoder: str = ""
    """Id of the encoder whose latents are taken; empty: as the classifier says. Latents of another are refused."""
    database: str = ""
    """sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/NAME, which several workers and machines may share. Empty:
    cloud.sqlite in `out`."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0: everywhere. For the world, put a proxy that speaks TLS in front."""
    port: int = 8000
    """The page's and everything else's."""
    workers: int = 1
    """Processes that answer; each classifies for itself."""
    readers: str = "key"
    """Who may read predictions: key (who has a viewer's key), or anyone."""
    queue: int = 2048
    """Clips that may wait in a worker; beyond that messages are refused for now (503)."""
    rate: float = 0.0
    """Clips a second that a device may send to a worker, for a minute's average; beyond that it is told to wait (429).
    0: any."""
    clips_per_message: int = 256
    """Clips of one message, at most."""
    body_mb: float = 8.0
    """Size of one message, at most."""
    batch: int = 256
    """Clips that are classified and stored in one go, at most."""
    wait_ms: float = 2.0
    """How long a clip waits for others to be stored with."""
    top: int = 5
    """How many of the likeliest classes are stored."""
    latents: bool = False
    """Whether latents are stored, too (float16). Read the README on what they reveal."""
    keep_days: float = 30.0
    """After so many days a prediction is forgotten; 0: never."""
    latent_days: float = 7.0
    """After so many days its latent is; 0: with the prediction."""
    streams: int = 64
    """Pages that may listen to a worker at the same time."""
    out: str = "runs/cloud"
    """Folder of the database, where it is a file."""

    @property
    def url(self) -> str:
        return self.database or f"sqlite:///{Path(self.out, 'cloud.sqlite')}"


Asked = TypeVar("Asked", bound=Options)


def read(arguments: Sequence[str]) -> Options:
    """`recipe=NAME key=value ...`; the recipe may be left away."""
    return read_as(Options, arguments)


def read_as(kind: type[Asked], arguments: Sequence[str]) -> Asked:
    name, changes = named_recipe(arguments)
    options = read_group(kind, changes, find_recipe(name, FOLDER) if name else None)
    check(options)
    return options


def check(options: Options) -> None:
    for key, least in LEAST.items():
        if not least <= getattr(options, key) < math.inf:
            raise UserError(f"{key} is {getattr(options, key)}; it is at least {least}")
    if options.wait_ms > MOST_WAIT_MS:
        raise UserError(f"wait_ms is {options.wait_ms}; it is {MOST_WAIT_MS} at most, and every clip waits so long")
    if not 0 < options.body_mb < math.inf:
        raise UserError(f"body_mb is {options.body_mb}; it is above 0")
    if options.readers not in READERS:
        raise UserError(f"there is no readers={options.readers}; known: {', '.join(READERS)}")
    if not 0 <= options.port < 1 << 16:
        raise UserError(f"port is {options.port}; it is from 0 to 65535")
    if options.clips_per_message > wire.MOST_CLIPS:
        raise UserError(f"clips_per_message is {options.clips_per_message}; it is {wire.MOST_CLIPS} at most")
    if options.clips_per_message > options.queue:
        raise UserError(f"queue is {options.queue}, less than one message's clips ({options.clips_per_message})")
