"""The database: opened, brought up to date, and written to by one transaction at a time.

One after the other they write, whoever they are: so ids rise in the order in which rows can be seen, and who reads on
from the last id that it saw misses none. SQLite has room for one writer anyway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from distill.errors import UserError
from distill.files import make_folder, make_private

SQLITE, POSTGRES = "sqlite", "postgresql"
DRIVERS = {SQLITE: "sqlite+pysqlite", POSTGRES: "postgresql+psycopg", "postgres": "postgresql+psycopg"}
BUSY_SECONDS = 5.0  # that a writer waits for another
LOCK = 0x64697374  # PostgreSQL's number for "I write"; any that nobody else takes


def open_database(url: str) -> sa.Engine:
    """Connected, and with today's tables."""
    try:
        parsed = sa.make_url(url)
        kind = parsed.drivername.partition("+")[0]
        parsed = parsed.set(drivername=DRIVERS[kind])
        if kind == SQLITE and (parsed.database in (None, "", ":memory:") or parsed.query):
            raise ValueError("what is in memory cannot be shared, and there is nothing else to choose")
    except (sa.exc.ArgumentError, KeyError, ValueError) as error:
        raise UserError(
            f"database={shown(url)} is no sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
        ) from error
    if kind == SQLITE and parsed.database:
        make_folder(Path(parsed.database).parent)
        make_private(Path(parsed.database))
    try:
        with _told_plainly(url):
            engine = _engine(parsed)
            _migrate(engine)
    except ImportError as error:
        raise UserError("PostgreSQL needs psycopg: pip install 'distill[postgres]'") from error
    except CommandError as error:
        raise UserError(f"database={shown(url)} was made by another version of distill ({error})") from error
    return engine


@contextmanager
def using(url: str) -> Iterator[sa.Engine]:
    """As a job does that is over soon, and of which somebody waits to hear."""
    engine = open_database(url)
    try:
        with _told_plainly(url):
            yield engine
    finally:
        engine.dispose()


@contextmanager
def _told_plainly(url: str) -> Iterator[None]:
    """In one line: that the database cannot be used, and why."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        why = str(error.orig).strip().splitlines()[0]
        raise UserError(f"database={shown(url)} cannot be used: {why}") from error


def shown(url: str) -> str:
    """Without its password, wherever that is."""
    try:
        return sa.make_url(url).set(query={}).render_as_string(hide_password=True)
    except (sa.exc.ArgumentError, ValueError):
        return "..."


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != SQLITE:
        return sa.create_engine(url, pool_pre_ping=True, pool_size=8, max_overflow=8)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS}, pool_size=8, max_overflow=8)

    @sa.event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: object) -> None:
        connection.isolation_level = None  # transactions begin when they are told to, below
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    assert url.database is not None
    path = Path(url.database)
    opened = _identity(path)

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        if _identity(path) != opened:  # SQLite would go on, in a file that goes with the last process that has it open
            raise sa.exc.OperationalError("BEGIN", None, FileNotFoundError(f"{path} was removed or replaced"))
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _identity(path: Path) -> int:
    """Of the file that is there now; 0 if there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that no other writer is beside."""
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == POSTGRES:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        yield connection


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    logging.getLogger("alembic").setLevel(logging.WARNING)
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def insert(engine: sa.Engine, table: sa.Table) -> Any:
    """An insert that knows what to do about conflicts, which each database says in words of its own."""
    if engine.dialect.name == POSTGRES:
        from sqlalchemy.dialects.postgresql import insert as own
    else:
        from sqlalchemy.dialects.sqlite import insert as own  # type: ignore[assignment]
    return own(table)


def upsert(engine: sa.Engine, table: sa.Table, names: Sequence[str]) -> Any:
    """An insert that, of a row that is there already, replaces these columns."""
    made = insert(engine, table)
    taken = {name: made.excluded[name] for name in names}
    return made.on_conflict_do_update(index_elements=[column.name for column in table.primary_key], set_=taken)
