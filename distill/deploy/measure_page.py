"""The page about measured students: what an answer takes, what it is worth, and how that was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from distill import charts
from distill.deploy.measure_figures import Point, rounds_chart, trade_chart
from distill.deploy.measure_rows import TESTED, Row
from distill.deploy.measure_statistics import front, number
from distill.files import publish_text
from distill.pages import percent, render

METHOD = [
    "Every row had a process of its own, freshly started; an exported file met nothing in it but Python, numpy and its "
    "runtime.",
    "All rows took turns: in a round each has one, in an order drawn for that round, so that noise hits all alike. A "
    "turn begins with a call that does not count; then calls follow each other for the seconds given, at least three.",
    "A call goes from frames as a camera gives them (8-bit RGB of the right size, synthetic, other ones in every call) "
    "to numbers for each class, conversions included, decoding and scaling not. On a GPU it ends when the answer is "
    "back in the processor's memory.",
    "ms is time on the clock; CPU ms is the processor time of the process, all its threads together, whatever "
    "else the machine does; frames a second per core are counted by it. Median and 90th percentile are over all calls.",
    "A file that takes several clips at once is asked about so many; its times are one clip's share of a call.",
    "Times eager is the median, over rounds, of torch eager's median in a round over the row's in that round, "
    "with as many threads; with its quartiles.",
    "Memory is what the whole process holds (resident, shared libraries included): after its libraries were loaded, "
    "after the student was, after the last round, and at its peak. Start is from the start of the process to its first "
    "answer.",
]
FORMS = {  # title, what an answer is
    "whole": ("Clips", "An answer is about a whole clip: every call sees all its frames anew."),
    "stream": (
        "Frame by frame",
        "Every frame is a call, and gets an answer about the latest frames; what was seen is kept in between.",
    ),
    "encoder": ("Latents", "An answer is the latent of a clip, for classifiers that come after."),
}
Section = dict[str, Any]


def write_page(folder: Path, told: Mapping[str, Any]) -> Path:
    """Write `folder`/measure.html from what measure.json tells."""
    table: list[Row] = told["rows"]
    good = [row for row in table if not row["failed"]]
    path = folder / "measure.html"
    page = render(
        "measure.html",
        title=f"Measured: {', '.join(dict.fromkeys(row['of'] for row in table))}",
        lead=list(lead(good)),
        warnings=told["warnings"],
        sections=[section(form, good) for form in FORMS if any(row["form"] == form for row in good)],
        lost=[(spoken(row, table), row["threads"], row["failed"]) for row in table if row["failed"]],
        trade=trade(good),
        memory=memory(good),
        steady=steady(good),
        trained=trained(told["trained"]),
        method=told["method"],
        options=told["options"],
        energy=any(row["energy"] for row in good),
        others=told["others"],
        made={**told["machine"], "instructions": ", ".join(told["machine"]["instructions"]), **told["made"]},
    )
    publish_text(path, page)
    return path


def spoken(row: Row, table: Sequence[Row]) -> str:
    """A row's name; with its run where there are several."""
    several = len({other["of"] for other in table}) > 1
    return f"{row['of']}, {row['kind']}" if several else str(row["kind"])


def lead(good: Sequence[Row]) -> Iterator[str]:
    """Of every run, or of a file's own student, the quickest exported file on the fewest threads."""
    fewest = min((row["threads"] for row in good), default=1)
    for form, what in (("whole", "answers about a clip"), ("stream", "takes in a frame and answers")):
        files = [
            row for row in good if (row["form"], row["threads"], row["how"]) == (form, fewest, "") and row["faster"]
        ]
        quickest: dict[str, Row] = {}
        for row in sorted(files, key=lambda row: float(row["median_ms"])):
            quickest.setdefault(row["of"], row)
        if len(quickest) > 1:
            told = [f"{spoken(row, good)} {_told(row)}" for row in quickest.values()]
            yield f"On {_threads(fewest)}, the quickest file of each run {what} in: {'; '.join(told)}."
        for row in quickest.values() if len(quickest) == 1 else ():
            yield (
                f"{spoken(row, good)} {what} in {_told(row)} on {_threads(fewest)}, {row['faster']['median']:.1f} "
                "times as fast as torch eager beside it, with at most "
                f"{megabytes(row['memory']['peak'])} MB of memory and a file of {megabytes(row['bytes'])} MB."
            )


def _told(row: Row) -> str:
    worth = f" (top-1 {percent(row['accuracy']['top1'])})" if row["accuracy"] else ""
    return f"{number(row['median_ms'])} ms{worth}"


def section(form: str, good: Sequence[Row]) -> Section:
    """The table of one form."""
    shown = [row for row in good if row["form"] == form]
    most = max(row["frames_per_second_per_core"] for row in shown)
    title, about = FORMS[form]
    return {
        "id": form,
        "title": title,
        "about": about,
        "frames": {row["frames"] for row in shown},
        "energy": any(row["energy"] for row in shown),
        "rows": [_row(row, good, row["frames_per_second_per_core"] / most) for row in shown],
    }


def _row(row: Row, good: Sequence[Row], share: float) -> Section:
    faster, worth, verified = row["faster"], row["accuracy"], row["verified"]
    return {
        "name": row["kind"],
        "of": row["of"] if len({other["of"] for other in good}) > 1 else "",
        "threads": row["threads"],
        "ms": number(row["median_ms"]),
        "p90": number(row["p90_ms"]),
        "cpu": number(row["cpu_ms"]),
        "less": f"{row['less_cpu']['median']:.2f}" if row["less_cpu"] else "",
        "frames": f"{row['frames_per_second']:,.0f}",
        "per_core": f"{row['frames_per_second_per_core']:,.0f}",
        "share": share,
        "faster": f"{faster['median']:.2f}" if faster else "",
        "quartiles": f"{faster['low']:.2f}\N{EN DASH}{faster['high']:.2f}" if faster else "",
        "top1": percent(worth["top1"]) if worth else "",
        "against": f"agrees {percent(verified['agreement'])}" if "agreement" in verified else protocol(worth),
        "memory": megabytes(row["memory"]["steady"]),
        "file": megabytes(row["bytes"]),
        "joules": number(row["energy"]["joules"]) if row["energy"] else "",
        "above_idle": number(row["energy"]["joules_above_idle"]) if row["energy"] else "",
    }


def protocol(worth: Mapping[str, Any] | None) -> str:
    """What clips a top-1 is of, and how they were shown."""
    if not worth:
        return ""
    if worth["of"] != TESTED:
        return "at export"
    return "test clips" if worth["views"] == 1 else f"test clips, {worth['views']} views"


def trade(good: Sequence[Row]) -> Section | None:
    """Accuracy against latency; those that nothing beats are numbered, the quickest first."""
    shown = [row for row in good if row["accuracy"]]
    if not shown:
        return None
    kinds, threads = list(dict.fromkeys(map(_kind, shown))), sorted({row["threads"] for row in shown})
    points = [
        Point(
            row["median_ms"],
            row["accuracy"]["top1"],
            row["bytes"],
            charts.colour(kinds.index(_kind(row))),
            charts.marker(threads.index(row["threads"])),
            row["accuracy"]["of"] == TESTED,
        )
        for row in shown
    ]
    best = front([(point.ms, point.top1) for point in points])
    told = [_point(shown[place], good) for place in best]
    alike: dict[tuple[str, int], list[Point]] = {}
    for row, point in zip(shown, points, strict=True):
        alike.setdefault((_kind(row), row["threads"]), []).append(point)
    lines = [found for found in alike.values() if len(found) > 1]
    return {
        "joined": bool(lines),
        "chart": trade_chart(
            points, best, lines, f"Top-1 over milliseconds for an answer. Not beaten: {'; '.join(told)}"
        ),
        "front": told,
        "kinds": [(kind, charts.colour(place), "●") for place, kind in enumerate(kinds)],
        "threads": [(_threads(count), "var(--muted)", charts.sign(place)) for place, count in enumerate(threads)],
        "hollow": any(point.hollow for point in points),
        "mixed": len({point.hollow for point in points}) > 1,
        "largest": megabytes(max(point.bytes for point in points)),
    }


def _kind(row: Row) -> str:
    return row["kind"] if row["form"] == "whole" else f"{row['kind']}, {row['form']}"


def _point(row: Row, good: Sequence[Row]) -> str:
    form = "" if row["form"] == "whole" else f" {row['form']}"
    return (
        f"{spoken(row, good)}{form}, {_threads(row['threads'])}: {percent(row['accuracy']['top1'])} in "
        f"{number(row['median_ms'])} ms, {megabytes(row['bytes'])} MB"
    )


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def memory(good: Sequence[Row]) -> list[Section]:
    """What each process held, as lengths of a bar: its libraries, the student, and what was added at the peak."""
    most = max((row["memory"]["peak"] for row in good), default=1)
    found = []
    for row in good:
        held = row["memory"]
        steps = [0, held["libraries"], held["loaded"], held["peak"]]
        parts = [max(0, after - before) / most for before, after in pairwise(steps)]
        told = {key: megabytes(held[key]) for key in ("libraries", "loaded", "steady", "peak")}
        name = f"{spoken(row, good)}{'' if row['form'] == 'whole' else ' ' + row['form']}"
        found.append(
            {"name": name, "threads": row["threads"], "parts": parts, "start": f"{row['start_seconds']:.2f}", **told}
        )
    return found


def steady(good: Sequence[Row]) -> Section | None:
    """The median of every round: whether the machine was the same throughout."""
    if not good or max(len(row["rounds"]) for row in good) < 2:
        return None
    kinds = list(dict.fromkeys(spoken(row, good) for row in good))
    drawn = []
    for form in FORMS:
        for threads in sorted({row["threads"] for row in good}):
            shown = [row for row in good if (row["form"], row["threads"]) == (form, threads)]
            if shown:
                title = f"{FORMS[form][0]}, {_threads(threads)}"
                lines = [(charts.colour(kinds.index(spoken(row, good))), _medians(row)) for row in shown]
                drawn.append({"title": title, "chart": rounds_chart(lines, f"Milliseconds by round. {title}")})
    return {
        "charts": drawn,
        "legend": [(kind, charts.colour(place), "●") for place, kind in enumerate(kinds)],
    }


def _medians(row: Row) -> dict[int, float]:
    return {at: float(np.median(turn["wall_ms"])) for at, turn in row["rounds"].items()}


def trained(found: Mapping[str, Any]) -> list[Section]:
    """What is known of the students without measuring."""
    return [
        {
            "name": run,
            "parameters": f"{about['parameters'] / 1e6:.3g}",
            "gflops": [(form, f"{value:.3g}") for form, value in about["gflops"].items()],
            "test": percent(about["test_top1"]) if about["test_top1"] is not None else "",
            "views": about["test_views"],
        }
        for run, about in found.items()
    ]


def megabytes(count: int) -> str:
    return number(count / 1e6)
