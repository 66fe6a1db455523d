"""Work over processes: in order, and never hanging in silence."""

from __future__ import annotations

import os
import signal
import time

import pytest

from distill.clips.workers import StuckError, note, spread
from distill.errors import UserError


def name(clip: int) -> str:
    return f"clip {clip}"


def square(key: int) -> int:
    note(key)
    return key * key


def uneven(key: int) -> int:
    time.sleep(0.05 * (key % 3))
    return square(key)


def stuck_at_5(key: int) -> int:
    note(key)
    while key == 5:
        time.sleep(0.1)
    return key


def killed_at_5(key: int) -> int:
    note(key)
    if key == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return key


def complains_at_5(key: int) -> int:
    if key == 5:
        raise UserError("clip 5 is not to my taste")
    return key


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers: int) -> None:
    assert list(spread(uneven, range(9), workers, 30, name)) == [key * key for key in range(9)]


def test_keys_may_be_an_endless_stream() -> None:
    def keys() -> object:
        key = 0
        while True:
            yield key
            key += 1

    found = spread(square, keys(), 2, 30, name)  # type: ignore[arg-type]
    assert [next(found) for _ in range(5)] == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(("work", "how"), [(stuck_at_5, "nothing came for 5 s"), (killed_at_5, "a worker died")])
def test_a_stuck_or_dead_worker_is_named_by_its_clip(work: object, how: str) -> None:
    done, started = [], time.monotonic()
    with pytest.raises(StuckError, match=f"{how} while reading clip 5") as error:
        done.extend(spread(work, range(40), 2, 5, name))  # type: ignore[arg-type]
    assert error.value.clip == 5
    assert time.monotonic() - started < 60


def test_the_process_that_hung_is_gone() -> None:
    before = children()
    with pytest.raises(StuckError):
        list(spread(stuck_at_5, range(40), 2, 4, name))
    deadline = time.monotonic() + 60
    while children() - before and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not children() - before


def children() -> set[str]:
    with open(f"/proc/self/task/{os.getpid()}/children") as file:  # noqa: PTH123
        return set(file.read().split())


@pytest.mark.parametrize("workers", [0, 2])
def test_users_errors_come_through(workers: int) -> None:
    with pytest.raises(UserError, match="not to my taste"):
        list(spread(complains_at_5, range(9), workers, 30, name))
