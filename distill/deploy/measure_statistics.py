"""From every call's milliseconds to the figures of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rounds = Mapping[int, Mapping[str, Any]]  # number of a round -> what a worker said of its turn


def times(rounds: Rounds, frames: int) -> dict[str, float]:
    """Of all the calls; an answer is about so many new frames."""
    wall, work = (np.concatenate([turn[key] for turn in rounds.values()]) for key in ("wall_ms", "cpu_ms"))
    median, busy = float(np.median(wall)), float(np.median(work))
    return {
        "median_ms": median,
        "p90_ms": float(np.quantile(wall, 0.9)),
        "least_ms": float(wall.min()),
        "cpu_ms": busy,
        "frames_per_second": 1e3 * frames / median,
        "frames_per_second_per_core": 1e3 * frames / max(busy, 1e-6),
        "calls": len(wall),
    }


def ratio(rounds: Rounds, reference: Rounds, key: str = "wall_ms") -> dict[str, float] | None:
    """How many times faster than the reference: the median over the rounds in which both had a turn, of their medians'
    ratio, and the quartiles."""
    shared = [number for number in rounds if number in reference]
    if not shared:
        return None
    each = [np.median(reference[at][key]) / max(float(np.median(rounds[at][key])), 1e-6) for at in shared]
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "low": low, "high": high, "rounds": len(shared)}


def energy(rounds: Rounds, idle_watts: float | None) -> dict[str, float] | None:
    """Joules of an answer: all that the processors took in a turn, and what is left without what they take idle."""
    told = [(turn["joules"], turn["turn_seconds"], turn["answers"]) for turn in rounds.values()]
    if idle_watts is None or not told or any(joules is None for joules, *_ in told):
        return None
    return {
        "joules": float(np.median([joules / answers for joules, _, answers in told])),
        "joules_above_idle": float(
            np.median([(joules - idle_watts * seconds) / answers for joules, seconds, answers in told])
        ),
    }


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the points (cost, worth) that no other beats: none costs as little or less and is worth as much or
    more, and better in one of the two. The cheapest first; of equal ones the first."""
    order = sorted(range(len(points)), key=lambda place: (points[place][0], -points[place][1], place))
    found: list[int] = []
    for place in order:
        if not found or points[place][1] > points[found[-1]][1]:
            found.append(place)
    return found


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
