"""What `distill edge` is asked for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from distill.errors import UserError
from distill.keys import RECIPES, find_recipe, named_recipe, read_group
from distill.live import wire

FOLDER = RECIPES / "live"
DROPS = ("oldest", "newest", "adaptive", "wait")
KEY = "DISTILL_KEY"  # the environment variable that holds the device's key, which belongs into no recipe
DAY = 86_400  # seconds
LEAST = {"every": 0, "seconds": 0, "threads": 1, "batch": 1, "most_clips": 0, "status_every": 1}
ABOVE = ("silence", "spool_mb", "spool_hours", "timeout")


@dataclass
class Options:
    model: str = ""
    """Who encodes: a run folder, whose student runs in torch, or an exported encoder (distill export form=encoder)."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Name -> what is looked at: the number of a webcam, a URL (rtsp://, http:// and the like), a video, a folder of
    videos or pictures, or demo."""
    repeat: bool = False
    """Whether videos and folders begin again when they end, as a camera that never ends."""
    every: float = 10.0
    """Seconds from one clip of a camera to its next: all cameras' fresh clips are encoded in one call. 0: as soon as
    the model is free."""
    seconds: float = 0.0
    """Of video that a clip spans; 0: as the model says."""
    drop: str = "oldest"
    """What gives way when a camera is faster than the model: oldest (its latest clip counts), newest (what waits comes
    first), adaptive (as oldest, and frames that no clip will hold are not even coloured and scaled), wait (nothing: the
    camera waits; for files)."""
    silence: float = 20.0
    """Seconds without a frame after which a camera's reader is killed and started anew."""
    threads: int = 1
    """Of the processor, for the model."""
    cloud: str = ""
    """URL of the cloud service, https://cloud.example; empty: clips are kept in the spool and sent nowhere."""
    key: str = ""
    """The device's key; better in the environment, as DISTILL_KEY, where `ps` does not show it."""
    media: str = "msgpack"
    """How messages are written: msgpack or json."""
    encoding: str = "float16"
    """How latents travel: float16, int8, float32, or list (numbers that people can read)."""
    batch: int = 32
    """Most clips of one message."""
    timeout: float = 10.0
    """Seconds that the cloud is given to answer."""
    status_every: float = 5.0
    """Seconds between two reports of the cameras' health to the cloud."""
    spool_mb: float = 256.0
    """Room for clips that wait for the cloud; the oldest are given up first, and counted."""
    spool_hours: float = 72.0
    """How old a clip may become that waits."""
    host: str = "127.0.0.1"
    """Where the edge's own page is served."""
    port: int = 8001
    """The page's port; 0: no page."""
    most_clips: int = 0
    """Stop after so many clips of each camera; 0: go on."""
    out: str = "runs/edge"
    """Folder of the spool."""

    @property
    def secret(self) -> str:
        return self.key or os.environ.get(KEY, "")


def read(arguments: Sequence[str]) -> Options:
    """`recipe=NAME key=value ...`; the recipe may be left away."""
    name, changes = named_recipe(arguments)
    for key in (change.partition("=")[0] for change in changes):
        if key.startswith("cameras.") and key.count(".") > 1:
            raise UserError(f"{key}: a camera's name has no dots on the command line; a recipe may have any name")
    options = read_group(Options, changes, find_recipe(name, FOLDER) if name else None)
    check(options)
    return options


def check(options: Options) -> None:
    if not options.model:
        raise UserError("model= is missing; say model=RUN, or an exported encoder")
    if not options.cameras:
        raise UserError("there is no camera; say cameras.NAME=SOURCE, as in cameras.door=rtsp://camera/1")
    for name in options.cameras:
        if not re.search(wire.NAME, name):
            raise UserError(f"cameras: {name!r} is no name for a camera; it has letters, digits, blanks and .:-_ only")
    if len(options.cameras) > wire.MOST_CAMERAS:
        raise UserError(f"there are {len(options.cameras)} cameras; one edge has {wire.MOST_CAMERAS} at most")
    for key, known in (("drop", DROPS), ("encoding", wire.ENCODINGS), ("media", ("msgpack", "json"))):
        if getattr(options, key) not in known:
            raise UserError(f"there is no {key}={getattr(options, key)}; known: {', '.join(known)}")
    for key, least in LEAST.items():
        if not least <= getattr(options, key) < math.inf:
            raise UserError(f"{key} is {getattr(options, key)}; it is at least {least}")
    for key in ABOVE:
        if not 0 < getattr(options, key) < math.inf:
            raise UserError(f"{key} is {getattr(options, key)}; it is above 0")
    for key in ("timeout", "status_every"):
        if getattr(options, key) > DAY:
            raise UserError(f"{key} is {getattr(options, key)}; it is {DAY} at most")
    if options.batch > wire.MOST_CLIPS:
        raise UserError(f"batch is {options.batch}; a message holds {wire.MOST_CLIPS} clips at most")
    if not 0 <= options.port < 1 << 16:
        raise UserError(f"port is {options.port}; it is from 0 to 65535")
    _check_cloud(options)


def _check_cloud(options: Options) -> None:
    if not options.cloud:
        return
    if not re.match(r"https?://[^/]", options.cloud):
        raise UserError(f"cloud={options.cloud} is no address; say cloud=https://HOST, or http://HOST:PORT")
    try:
        url = httpx2.URL(options.cloud)
        port, _ = url.port or 0, url.host.encode("idna")
    except (httpx2.InvalidURL, UnicodeError) as error:
        raise UserError(f"cloud={options.cloud} is no address ({error})") from error
    if url.query or url.fragment:
        where = re.split("[?#]", options.cloud)[0]
        raise UserError(f"cloud={where}... is the address of a page; leave away what follows ? or #")
    if port >= 1 << 16:
        raise UserError(f"cloud={options.cloud} is no address; a port is from 1 to 65535")
    if "@" in options.cloud.partition("//")[2].partition("/")[0]:
        raise UserError(f"cloud= holds a password, which the cloud service knows nothing of; the key goes into {KEY}")
    if not options.secret:
        raise UserError(f"the cloud asks who sends; put the device's key into {KEY} (distill cloud devices add=NAME)")
    if not re.fullmatch(r"[!-~]+", options.secret):
        raise UserError(f"the device's key, from {KEY} or key=, is no key: it has letters, digits and signs only")


def spool_path(options: Options) -> Path:
    return Path(options.out, "spool.sqlite")
