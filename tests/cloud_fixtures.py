"""Fixtures of the cloud's tests, over both databases."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from cloud_server import DATABASES, Service, fresh_database, inside


@pytest.fixture(scope="module", params=DATABASES)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with inside(fresh_database(request.param, tmp_path_factory.mktemp("cloud"))) as found:
        yield found


@pytest.fixture(params=DATABASES)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database."""
    return fresh_database(request.param, tmp_path)


@pytest.fixture
def boot() -> str:
    """Of an edge that nobody has heard of."""
    return secrets.token_hex(6)
