"""The job `measure`: what students cost where they run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill.deploy.card import FORMS
from distill.deploy.measure_machine import instructions, machine
from distill.deploy.measure_page import METHOD, spoken, write_page
from distill.deploy.measure_race import race
from distill.deploy.measure_request import Request
from distill.deploy.measure_rows import Row, doubts, rows
from distill.deploy.measure_statistics import number
from distill.deploy.measure_subjects import Subject, Trained, subjects
from distill.deploy.sessions import NEEDED
from distill.errors import UserError
from distill.files import make_folder, publish_text
from distill.run_log import Talk, percent
from distill.surroundings import surroundings

HEAD = (
    *("", "threads", "ms", "p90", "CPU ms", "frames/s", "per core", "x eager", "quartiles", "memory MB", "peak MB"),
    *("file MB", "top-1"),
)
ANSWERS = {"whole": "an answer about a clip", "encoder": "a latent of a clip", "stream": "an answer after each frame"}


def measure(request: Request) -> dict[str, Any]:
    """Measure students as they will run: latency, processor time, memory, size, beside their accuracy.

    distill measure run=runs/quickstart/distilled threads=1,2
    distill measure run=runs/a,runs/b files=other/whole-int8.tflite out=runs/compared

    Each run's student in torch and every file in RUN/export/ has a process of its own, and all take turns. Writes
    measure.json and measure.html, with a plot of accuracy against latency.
    """
    talk, out = Talk(), Path(request.out)
    make_folder(out)
    found = subjects(request)
    openable = [place for place, one in enumerate(found) if not one.failed]
    said, around = race([found[place].asked for place in openable], request.options, talk)
    students = _students(found)
    table = rows(found, dict(zip(openable, said, strict=True)), around, students)
    told = {
        "method": METHOD,
        "options": asdict(request.options),
        "machine": machine(),
        "made": {**surroundings(), **_versions(found)},
        "others": asdict(around),
        "warnings": list(doubts(table, around, instructions())),
        "trained": {str(run): asdict(student) for run, student in students.items()},
        "rows": table,
    }
    publish_text(out / "measure.json", json.dumps(told, indent=1) + "\n")
    _show(talk, out, told)
    talk.say(f"page: {write_page(out, told)}")
    if all(row["failed"] for row in table):
        raise UserError(f"nothing could be measured: {table[0]['failed']}")
    return {}


def _students(found: Sequence[Subject]) -> dict[Path, Trained]:
    """Of every run, in the forms that are measured."""
    forms: dict[Path, dict[str, None]] = {}
    for one in found:
        if one.run and not one.failed:
            forms.setdefault(one.run, {})[one.asked.form] = None
    if not forms:
        return {}
    from distill.deploy.measure_runs import trained  # torch, which exported files do without

    return {run: trained(run, list(wanted)) for run, wanted in forms.items()}


def _versions(found: Sequence[Subject]) -> dict[str, str]:
    """Of the runtimes that ran."""
    packages = dict.fromkeys(NEEDED[one.card.format][1] for one in found if one.card)
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _show(talk: Talk, out: Path, told: Mapping[str, Any]) -> None:
    table: list[Row] = told["rows"]
    for form in FORMS:
        shown = [_line(row, table) for row in table if row["form"] == form and not row["failed"]]
        if shown:
            talk.table(f"{out}: {ANSWERS[form]}", HEAD, shown)
    for row in table:
        if row["failed"]:
            talk.warn(f"{spoken(row, table)}, threads={row['threads']}: {row['failed']}")
    for text in told["warnings"]:
        talk.warn(text)


def _line(row: Row, table: Sequence[Row]) -> list[str]:
    memory, faster, right = row["memory"], row["faster"], row["accuracy"]
    return [
        spoken(row, table),
        str(row["threads"]),
        *(number(row[key]) for key in ("median_ms", "p90_ms", "cpu_ms")),
        *(f"{row[key]:.0f}" for key in ("frames_per_second", "frames_per_second_per_core")),
        f"{faster['median']:.2f}" if faster else "",
        f"{faster['low']:.2f}-{faster['high']:.2f}" if faster else "",
        *(f"{memory[key] / 1e6:.0f}" for key in ("steady", "peak")),
        f"{row['bytes'] / 1e6:.2f}",
        percent(right["top1"]) if right else "",
    ]
