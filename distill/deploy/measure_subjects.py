"""What there is to measure: every run's student in torch, and every exported file, each with so many threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.deploy.card import EXPORTS, SUFFIXES, ExportCard, read_export
from distill.deploy.measure_race import Asked
from distill.deploy.measure_request import Request
from distill.errors import UserError


@dataclass(frozen=True)
class Subject:
    """A row of the table to be."""

    kind: str
    """Runtime and precision, or how torch runs it."""
    asked: Asked
    run: Path | None = None
    card: ExportCard | None = None
    """Of an exported file."""
    bytes: int = 0
    failed: str = ""
    """Why it cannot be measured at all."""


@dataclass(frozen=True)
class Trained:
    """What is known of a run's student without measuring."""

    parameters: int
    """That take part in recognising."""
    gflops: dict[str, float]
    """Of an answer, by form."""
    test_top1: float | None
    """Of the whole student on the run's test clips."""
    test_views: int
    """Of each test clip, whose answers were averaged: 1 is what happens live."""


def subjects(request: Request) -> list[Subject]:
    """In the order of the table: of each run the torch student in every form that was exported, then its files."""
    found, students = list[Subject](), dict[Path, str]()
    for run in request.runs:
        from distill.checkpoint import fingerprint_student  # torch, which exported files do without
        from distill.deploy.measure_runs import in_torch

        students[run] = fingerprint_student(run)
        files = [(file, *_card(file, students, run)) for file in exports(run)]
        forms = dict.fromkeys(["whole", *(card.form for _, _, card, _ in files if card)])
        for form in forms:
            found += in_torch(run, form, request)
        for file, _, card, failed in files:
            found += _exported(file, run, card, failed, request.options.threads)
    for file in request.files:
        found += _exported(file, *_card(file, students), request.options.threads)
    return list({(one.asked, one.run): one for one in found}.values())


def exports(run: Path) -> list[Path]:
    """Exported files of a run."""
    folder = run / EXPORTS
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES.values()) if folder.is_dir() else []


def _card(
    file: Path, students: Mapping[Path, str], run: Path | None = None
) -> tuple[Path | None, ExportCard | None, str]:
    """The run of a file (which of these it came from, unless that is known), what its card says, or why it does not do:
    a run's file is of the student that the run has now, whose fingerprint is given."""
    try:
        card = read_export(file)
    except UserError as error:
        return run, None, str(error)
    run = run or _origin(card, students)
    if run and card.origin.get("student") != students[run]:
        return run, None, f"{file} is of another student than {run} has now; export it again"
    return run, card, ""


def _origin(card: ExportCard, runs: Iterable[Path]) -> Path | None:
    """The run among these that a file came from."""
    told = card.origin.get("run")
    return next((run for run in runs if told and run.resolve() == Path(told).resolve()), None)


def _exported(
    file: Path, run: Path | None, card: ExportCard | None, failed: str, threads: Sequence[int]
) -> Iterator[Subject]:
    if card is None:
        yield Subject(file.name, Asked(str(file), "whole", threads[0]), run, failed=failed)
        return
    for count in threads:
        asked = Asked(str(file), card.form, count, batch=card.batch)
        batch = f", batch {card.batch}" if card.batch > 1 else ""
        yield Subject(f"{card.format} {card.precision}{batch}", asked, run, card, card.bytes)
