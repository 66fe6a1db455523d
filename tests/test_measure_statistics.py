"""Figures from milliseconds: closed forms, and the front against its definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.deploy.measure_machine import Meter
from distill.deploy.measure_race import Asked, Surroundings, orders
from distill.deploy.measure_rows import doubts
from distill.deploy.measure_statistics import energy, front, number, ratio, times

POINTS = st.lists(st.tuples(st.integers(1, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


def turn(*wall: float, **more: Any) -> dict[str, Any]:
    return {"wall_ms": list(wall), "cpu_ms": [2 * ms for ms in wall], "answers": len(wall) + 1, **more}


def test_times_are_of_all_calls_of_all_rounds() -> None:
    found = times({0: turn(*range(1, 51)), 3: turn(*range(51, 102))}, frames=8)
    assert found["median_ms"] == 51
    assert found["p90_ms"] == 91
    assert found["least_ms"] == 1
    assert found["cpu_ms"] == 102
    assert found["frames_per_second"] == pytest.approx(8000 / 51)
    assert found["frames_per_second_per_core"] == pytest.approx(8000 / 102)
    assert found["calls"] == 101


def test_a_ratio_is_of_turns_in_the_same_round() -> None:
    """Noise that doubles a round for both leaves it as it is; rounds that one of them missed are left out."""
    mine = {0: turn(1, 2, 3), 1: turn(2, 4, 6), 2: turn(4, 4, 4), 5: turn(100)}
    reference = {0: turn(6), 1: turn(12), 2: turn(4), 4: turn(1)}
    found = ratio(mine, reference)
    assert found == {"median": 3, "low": 2, "high": 3, "rounds": 3}
    assert ratio(mine, reference, "cpu_ms") == found
    assert ratio(mine, {}) is None


def test_energy_is_of_every_call_and_less_what_an_idle_machine_takes() -> None:
    rounds = {0: turn(1, 1, 1, joules=8.0, turn_seconds=0.5), 1: turn(1, 1, 1, joules=12.0, turn_seconds=0.5)}
    assert energy(rounds, 8.0) == {"joules": 2.5, "joules_above_idle": 1.5}
    assert energy(rounds, None) is None
    assert energy({0: turn(1, joules=None, turn_seconds=1.0)}, 8.0) is None


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    def beaten(place: int) -> bool:
        cost, worth = points[place]
        return any(
            other[0] <= cost and other[1] >= worth and (other != points[place] or at < place)
            for at, other in enumerate(points)
            if at != place
        )

    found = front(points)
    assert sorted(found) == [place for place in range(len(points)) if not beaten(place)]
    assert [points[place] for place in found] == sorted(points[place] for place in found)


@given(st.integers(0, 9), st.integers(1, 9), st.integers(0, 99))
def test_in_every_round_each_has_one_turn(count: int, rounds: int, seed: int) -> None:
    found = orders(count, rounds, seed)
    assert len(found) == rounds
    assert all(sorted(order) == list(range(count)) for order in found)
    assert found == orders(count, rounds, seed)


def test_the_order_is_another_in_each_round() -> None:
    """Over many rounds each is first, and comes after each of the others, about equally often."""
    found = orders(4, 2000, seed=0)
    for one in range(4):
        assert sum(order[0] == one for order in found) == pytest.approx(500, abs=100)
        for other in set(range(4)) - {one}:
            assert sum(order.index(one) < order.index(other) for order in found) == pytest.approx(1000, abs=120)


def package(root: Path, name: str, joules: str, most: int = 1_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(joules)
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_energy_is_counted_over_packages_and_past_the_counters_end(tmp_path: Path) -> None:
    first, second = package(tmp_path, "intel-rapl:0", "900000\n"), package(tmp_path, "intel-rapl:1", "5\n")
    core = package(tmp_path, "intel-rapl:0:0", "0\n")  # is in the first package already
    package(tmp_path, "intel-rapl:2", "what is this")
    meter = Meter(tmp_path)
    before = meter.read()
    first.write_text("100000\n")
    second.write_text("300005\n")
    core.write_text("999\n")
    assert meter.joules(before) == pytest.approx(0.2 + 0.3)


def test_a_machine_that_does_not_tell_its_energy(tmp_path: Path) -> None:
    assert Meter(tmp_path).joules([]) is None
    assert Meter(tmp_path / "nowhere").read() == []


def eager(threads: int, ms: float) -> dict[str, Any]:
    about = vars(Asked("runs/a", "whole", threads, "eager"))
    return {"of": "a", "kind": "torch eager", **about, "failed": "", "median_ms": ms}


def test_doubts_are_said() -> None:
    quiet, loaded = Surroundings(0.0, [], None), Surroundings(99.0, [], None)
    assert list(doubts([eager(1, 10.0), eager(2, 7.0)], quiet, ["avx2"])) == []
    (busy,) = doubts([eager(1, 10.0)], loaded, [])
    assert "other programs took 99.00" in busy
    (spins,) = doubts([eager(1, 10.0), eager(2, 1380.0)], quiet, [])
    assert "1,380 ms on 2 threads and 10 ms on 1" in spins
    small = {**eager(1, 10.0), "kind": "litert int8", "how": ""}
    assert len(list(doubts([small], quiet, ["avx2", "fma"]))) == 1
    assert list(doubts([small], quiet, ["avx2", "avx512_vnni"])) == []
    assert list(doubts([small], quiet, [])) == []


@pytest.mark.parametrize(("value", "text"), [(1234.5, "1,234"), (99.94, "99.9"), (0.01234, "0.0123")])
def test_three_digits_that_count(value: float, text: str) -> None:
    assert number(value) == text
