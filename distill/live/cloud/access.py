"""Who may send and who may read: keys of 256 random bits, of which the database knows only the hashes."""

from __future__ import annotations

import hashlib
import itertools
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

import sqlalchemy as sa

from distill.errors import UserError
from distill.live.cloud.database import writing
from distill.live.cloud.tables import VIEWER, devices, keys

FRESH_SECONDS = 5.0  # that a key is remembered: so soon a revoked one is void in every worker
REMEMBERED = 4096


@dataclass(frozen=True)
class Holder:
    """Of a good key."""

    id: int
    name: str
    role: str


def key_hash(key: str) -> str:
    """A key has more bits than anybody can try: it needs no salt and no slow hash."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def add(engine: sa.Engine, name: str, role: str) -> str:
    """A new device or viewer; its key, which nobody can look up again."""
    try:
        with writing(engine) as connection:
            return _add(connection, name, role)
    except sa.exc.IntegrityError as error:
        raise UserError(f"there is a device or viewer {name!r} already; rotate={name} gives it a new key") from error


def rotate(engine: sa.Engine, name: str, grace_seconds: float) -> str:
    """A new key; the old ones are good for a while longer."""
    with writing(engine) as connection:
        device_id, until = _find(connection, name), time.time() + grace_seconds
        still = keys.c.until.is_(None) | (keys.c.until > until)
        connection.execute(sa.update(keys).where(keys.c.device_id == device_id, still).values(until=until))
        return _new_key(connection, device_id)


def revoke(engine: sa.Engine, name: str) -> None:
    with writing(engine) as connection:
        connection.execute(sa.delete(keys).where(keys.c.device_id == _find(connection, name)))


def _add(connection: sa.Connection, name: str, role: str) -> str:
    made = connection.execute(sa.insert(devices).values(name=name, role=role, created=time.time()))
    device_id = made.inserted_primary_key
    assert device_id is not None
    return _new_key(connection, int(device_id[0]))


def _find(connection: sa.Connection, name: str) -> int:
    found = connection.scalar(sa.select(devices.c.id).where(devices.c.name == name))
    if found is None:
        known = ", ".join(connection.scalars(sa.select(devices.c.name).order_by(devices.c.name))) or "none yet"
        raise UserError(f"there is no device or viewer {name!r}; known: {known}")
    return int(found)


def _new_key(connection: sa.Connection, device_id: int) -> str:
    key = f"dst_{secrets.token_urlsafe(32)}"
    connection.execute(sa.insert(keys).values(hash=key_hash(key), device_id=device_id, created=time.time()))
    return key


def first_viewer(engine: sa.Engine) -> str:
    """The key of a first viewer, if there was none; else nothing, also to a service that starts at the same time."""
    with writing(engine) as connection:
        roles = {row.name: row.role for row in connection.execute(sa.select(devices.c.name, devices.c.role))}
        if VIEWER in roles.values():
            return ""
        names = itertools.chain([VIEWER], (f"{VIEWER} {number}" for number in itertools.count(2)))
        return _add(connection, next(name for name in names if name not in roles), VIEWER)


def holders(engine: sa.Engine) -> list[tuple[str, str, int]]:
    """Name, role, and how many keys are good."""
    good = keys.c.until.is_(None) | (keys.c.until > time.time())
    found = (
        sa.select(devices.c.name, devices.c.role, sa.func.count(keys.c.hash))
        .outerjoin_from(devices, keys, (keys.c.device_id == devices.c.id) & good)
        .group_by(devices.c.id, devices.c.name, devices.c.role)
        .order_by(devices.c.role, devices.c.name)
    )
    with engine.connect() as connection:
        return [(name, role, count) for name, role, count in connection.execute(found)]


class Doorman:
    """Knows keys, and remembers for a moment whom it has seen, strangers too."""

    def __init__(self, engine: sa.Engine) -> None:
        self.engine = engine
        self._seen: OrderedDict[str, tuple[float, Holder | None]] = OrderedDict()
        self._lock = threading.Lock()

    def remembered(self, key: str) -> tuple[bool, Holder | None]:
        """Whether it is known without a look into the database, and whose key it is."""
        until, holder = self._seen.get(key_hash(key), (0.0, None))
        return time.monotonic() < until, holder

    def look_up(self, key: str) -> Holder | None:
        hashed = key_hash(key)
        good = keys.c.until.is_(None) | (keys.c.until > time.time())
        wanted = (
            sa.select(devices.c.id, devices.c.name, devices.c.role)
            .join_from(keys, devices)
            .where(keys.c.hash == hashed, good)
        )
        with self.engine.connect() as connection:
            found = connection.execute(wanted).first()
        holder = Holder(*found) if found else None
        with self._lock:
            self._seen[hashed] = time.monotonic() + FRESH_SECONDS, holder
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        return holder


class Pace:
    """Of one device: so many clips a second, what a minute has room for at once."""

    MINUTE = 60.0

    def __init__(self, rate: float) -> None:
        self.rate, self.room = rate, rate * self.MINUTE
        self.at = time.monotonic()

    def take(self, clips: int) -> float:
        """0, or the seconds after which to come again."""
        now = time.monotonic()
        self.room = min(self.rate * self.MINUTE, self.room + (now - self.at) * self.rate)
        self.at = now
        wanted = min(float(clips), self.rate * self.MINUTE)  # a message that is larger than a minute needs a full one
        if wanted > self.room:
            return (wanted - self.room) / self.rate
        self.room -= clips
        return 0.0
