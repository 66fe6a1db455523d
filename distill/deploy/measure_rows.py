"""What workers said, as rows: a file or a student, with so many threads, and every figure of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from distill.deploy.measure_machine import LOADED, OF_INT8
from distill.deploy.measure_race import Record, Surroundings
from distill.deploy.measure_statistics import energy, number, ratio, times
from distill.deploy.measure_subjects import Subject, Trained
from distill.surroundings import cores

Row = dict[str, Any]
VERIFIED, TESTED = "verified", "test"  # where a top-1 comes from
SLOWER = 1.1  # with more threads than with few, from here on


def rows(
    subjects: Sequence[Subject], records: Mapping[int, Record], around: Surroundings, students: Mapping[Path, Trained]
) -> list[Row]:
    """`records` are of the subjects at these places."""
    found = []
    for place, subject in enumerate(subjects):
        record = records.get(place) or Record(subject.asked, failed=subject.failed)
        row = {**_about(subject, subjects, students), "failed": record.failed, "rounds": record.rounds}
        if not record.failed:
            reference = records.get(_reference(subject, subjects))
            row |= _figures(record, None if reference is None or reference is record else reference, around)
        found.append(row)
    return found


def _about(subject: Subject, subjects: Sequence[Subject], students: Mapping[Path, Trained]) -> Row:
    student, form = students.get(subject.run) if subject.run else None, subject.asked.form
    return {
        "of": origin(subject, subjects),
        "kind": subject.kind,
        **asdict(subject.asked),
        "bytes": subject.bytes,
        "parameters": student.parameters if student else None,
        "gflops": student.gflops.get(form) if student else None,
        "verified": subject.card.verified if subject.card else {},
        "accuracy": accuracy(subject, subjects, student),
    }


def origin(subject: Subject, subjects: Sequence[Subject]) -> str:
    """A short name of the run or file; the whole path where a name would be two's."""
    path = subject.run or Path(subject.asked.path)
    same = {other.run or Path(other.asked.path) for other in subjects}
    name = path.resolve().name
    return name if sum(other.resolve().name == name for other in same) == 1 else str(path)


def accuracy(subject: Subject, subjects: Sequence[Subject], student: Trained | None) -> Row | None:
    """Top-1, and of what: an export's as its card has it, a student's as it was compared with its exports, or else as
    its run ended. In half precision nothing was compared."""
    if subject.card:
        top1 = subject.card.verified.get("top1")
        return None if top1 is None else {"top1": top1, "of": VERIFIED, "views": 1}
    if subject.failed or subject.asked.how == "bf16" or subject.asked.form == "encoder" or student is None:
        return None
    cards = [other.card for other in subjects if other.card and other.run == subject.run]
    for card in sorted(cards, key=lambda card: card.form != subject.asked.form):
        if "student_top1" in card.verified:
            return {"top1": card.verified["student_top1"], "of": VERIFIED, "views": 1}
    if student.test_top1 is None:
        return None
    return {"top1": student.test_top1, "of": TESTED, "views": student.test_views}


def _reference(subject: Subject, subjects: Sequence[Subject]) -> int:
    """The place of torch eager with the same form and as many threads of the same run; -1: there is none."""
    for place, other in enumerate(subjects):
        asked = other.asked
        same = (asked.form, asked.threads) == (subject.asked.form, subject.asked.threads)
        if subject.run and other.run == subject.run and (asked.how, asked.device) == ("eager", "cpu") and same:
            return place
    return -1


def _figures(record: Record, reference: Record | None, around: Surroundings) -> Row:
    rounds, eager = record.rounds, reference.rounds if reference else {}
    last = rounds[max(rounds)]
    return {
        **times(rounds, record.start["frames"]),
        "faster": ratio(rounds, eager),
        "less_cpu": ratio(rounds, eager, "cpu_ms"),
        "start_seconds": record.start["seconds"],
        "memory": {
            "libraries": record.start["libraries"],
            "loaded": record.start["loaded"],
            "steady": last["now"],
            "peak": last["peak"],
        },
        "energy": energy(rounds, around.idle_watts),
        "frames": record.start["frames"],
        "size": record.start["size"],
    }


def doubts(table: Sequence[Row], around: Surroundings, instructions: Sequence[str]) -> Iterator[str]:
    """What a person has to know of these figures before believing them. `instructions` are the processor's."""
    if around.others_cores > LOADED * cores():
        yield (
            f"the machine was loaded: other programs took {around.others_cores:.2f} of {cores()} processors; CPU "
            "time and ratios on one thread suffer least; measure again when it is quiet"
        )
    if instructions and not set(OF_INT8) & set(instructions) and any("int8" in row["kind"] for row in table):
        yield "this processor has no instructions for 8-bit numbers, so INT8 makes files smaller and little faster here"
    eager = [row for row in table if (row["how"], row["device"]) == ("eager", "cpu") and not row["failed"]]
    for row in eager:
        beside = [other for other in eager if (other["path"], other["form"]) == (row["path"], row["form"])]
        few = min(beside, key=lambda other: int(other["threads"]))
        if row["median_ms"] > SLOWER * few["median_ms"]:
            yield (
                f"torch eager of {row['of']} ({row['form']}) took {number(row['median_ms'])} ms on {row['threads']} "
                f"threads and {number(few['median_ms'])} ms on {few['threads']}: its threads spin while they wait for "
                f"each other, so ratios to it on {row['threads']} threads flatter"
            )
