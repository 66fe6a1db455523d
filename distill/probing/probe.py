"""The probe job: latents of the splits, classifiers on them, a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from distill.errors import UserError
from distill.files import publish_text
from distill.probing.classifiers import PROBES
from distill.probing.costs import Planned, Speed, free_memory, plan, read_budget, table_rows
from distill.probing.encode import Encoding
from distill.probing.judged import Judged, latent_facts
from distill.probing.judging import HOLD_OUT, STEPS, Judgement, threads
from distill.probing.page import write_pages
from distill.probing.request import Request, named
from distill.probing.table import LatentTable, check, read_table
from distill.probing.work import Size
from distill.report import write_report
from distill.run_log import Talk, percent
from distill.shards.grid import Shards
from distill.training import PATIENCE, alone_in, start

LONG = 3600.0  # seconds after which a person should know of budget=
SEEDS = 1 << 32  # that numpy and scikit-learn know
TEACHER = "teacher"


def probe(request: Request) -> dict[str, Any]:
    """Judge latents with classical classifiers: those of a run's student, of several runs, or from elsewhere.

    distill probe run=runs/quickstart/distilled
    distill probe run=runs/a,runs/b,runs/c probes=svm,knn,random_forest budget=10min
    distill probe latents=latents.npz out=runs/elsewhere folds=5
    accelerate launch distill/probe.py run=runs/quickstart/distilled

    probes, folds, labelled, teacher and budget are short for probe.probes and so on. A table from elsewhere is an .npz
    file with X_train, y_train, X_test, y_test (X_val, y_val), or a Parquet file with split, label and latent.

    Settings are chosen on the training and validation splits; the test split is looked at once. Says first what it will
    cost. What is done is kept: a probe that was stopped goes on where it was. Writes probe.json, probe.md, probe.html,
    and in probe/ the tables of latents and the fitted classifiers.
    """
    answer(request)
    return {}


def answer(request: Request) -> dict[str, Any]:
    """What probe.json says; empty in every process but the first."""
    processes = start(request.recipes[0]) if request.recipes else PartialState(timeout=PATIENCE)
    talk, found = Talk(processes.is_main_process), dict[str, Any]()
    students = [_elsewhere(request)] if request.latents and talk.active else []
    teachers, outs = list[Subject](), (request.out, *(recipe.out for recipe in request.recipes))
    with ExitStack() as held:
        for folder in dict.fromkeys(Path(out).resolve() for out in outs):
            if folder.exists() and not folder.is_dir():
                raise UserError(f"{folder} is a file; choose another out=")
            held.enter_context(alone_in(folder, processes))
        encodings = [Encoding.of(recipe, processes) for recipe in request.recipes]
        encoded = [encoding.encode() for encoding in encodings]
        if talk.active:
            if encodings:
                students, teachers = _of_runs(encodings, encoded, talk)
            judged = _judge(request, [*students, *teachers], talk)
            found = _publish(request, encodings, students, judged)
            _tell(judged, talk)
            talk.say(f"report: {Path(request.out, 'probe.html')}")
        processes.wait_for_everyone()
    return found


@dataclass(frozen=True)
class Subject:
    """A table to judge, and the folder in which the answer about it is kept."""

    name: str
    table: LatentTable
    folder: Path
    teacher: str = ""  # where the latents of a student's teacher are
    teaches: bool = False


def _elsewhere(request: Request) -> Subject:
    table = read_table(Path(request.latents))
    check(table, request.options.folds, request.latents)
    table = table.labelled(request.options.labelled, request.seed % SEEDS)
    return Subject(Path(request.latents).stem, table, Path(request.out, "probe", "latents"))


def _of_runs(
    encodings: Sequence[Encoding], encoded: Sequence[Shards], talk: Talk
) -> tuple[list[Subject], list[Subject]]:
    """The students of all runs, and each of their teachers once."""
    students, teachers = list[Subject](), dict[str, Subject]()
    for name, encoding, shards in zip(_names(encodings), encodings, encoded, strict=True):
        folder, store = Path(encoding.recipe.out, "probe"), ""
        taught = encoding.teacher() if encoding.recipe.probe.teacher else None
        if isinstance(taught, LatentTable):
            store = taught.about["store"]
            if store not in teachers:
                teachers[store] = replace(_kept(TEACHER, taught, folder / TEACHER, store), teaches=True)
        elif taught:
            talk.say(f"{name}: no latents of a teacher to compare with: {taught}")
        students.append(_kept(name, encoding.student(shards), folder / "student", store))
    if len({tuple(subject.table.classes) for subject in students}) > 1:
        raise UserError("these runs have different classes, so their figures cannot be compared; probe them one by one")
    if len({tuple(subject.table.splits["test"].clips) for subject in students}) > 1:
        talk.warn("these runs are tested on different clips, so small differences between their figures mean little")
    alone = len(teachers) == 1 and TEACHER not in {subject.name for subject in students}
    numbered = (replace(one, name=f"{TEACHER} {place}") for place, one in enumerate(teachers.values(), 1))
    return students, list(teachers.values() if alone else numbered)


def _kept(name: str, table: LatentTable, folder: Path, teacher: str) -> Subject:
    """On the disk, and mapped from there."""
    table.save(folder / "table")
    return Subject(name, LatentTable.open(folder / "table"), folder, teacher)


def _names(encodings: Sequence[Encoding]) -> list[str]:
    """What to call runs: the last part of their folders, if that tells them apart."""
    runs = [encoding.recipe.out for encoding in encodings]
    last = [Path(run).resolve().name for run in runs]
    return last if len(set(last)) == len(last) else runs


def _judge(request: Request, subjects: Sequence[Subject], talk: Talk) -> list[Judged]:
    folds, speed = request.options.folds, Speed.measured()
    for subject in subjects:
        check(subject.table, folds, subject.name)
    plans = [(subject, _plan(request, subject, len(subjects), speed, talk)) for subject in subjects]
    total = sum(one.cost.seconds / threads(subject.table) for subject, planned in plans for one in planned)
    if total > LONG and not request.options.budget:
        talk.warn(f"this takes about {total / 3600:.1f} hours here; budget=1h, say, takes what fits into that")
    return [_judged(subject, planned, request.seed % SEEDS, talk) for subject, planned in plans]


def _plan(request: Request, subject: Subject, subjects: int, speed: Speed, talk: Talk) -> list[Planned]:
    """What will be done about a table, told with its price."""
    splits, options = subject.table.splits, request.options
    rows = len(splits["train"].label)
    if "val" in splits:
        held_out = len(splits["val"].label)
    else:
        held_out = int(np.ceil(np.bincount(splits["train"].label) / HOLD_OUT).sum())

    def size(folds: int) -> Size:
        tested = rows if folds > 1 else held_out
        return Size(rows, tested, len(splits["test"].label), subject.table.width, len(subject.table.classes), folds)

    grids = {name: PROBES[name].grid(rows) for name in named(options)}
    budget = read_budget(options.budget) / subjects if options.budget else None
    planned, remarks = plan(
        list(grids),
        grids,
        size,
        options.folds or 1,
        speed,
        budget=budget,
        cores=threads(subject.table),
        memory=free_memory(),
    )
    about = f"{subject.name}: {rows:,} x {subject.table.width}, {len(subject.table.classes)} classes"
    talk.table(about, ("", "search", "CPU time, expected", "memory"), table_rows(planned, grids))
    for remark in remarks:
        talk.say(remark)
    return planned


def _judged(subject: Subject, planned: Sequence[Planned], seed: int, talk: Talk) -> Judged:
    probes, said = {}, {}
    with talk.track(f"probe {subject.name}", sum(one.folds + STEPS for one in planned)) as track:
        for one in planned:
            folder = subject.folder / one.name
            probes[one.name], said[one.name] = Judgement(subject.table, one, seed, folder, track)()
    return Judged(subject.name, subject.table, latent_facts(subject.table), probes, said, subject.teaches)


def _publish(
    request: Request, encodings: Sequence[Encoding], students: Sequence[Subject], judged: Sequence[Judged]
) -> dict[str, Any]:
    """Every run's own answer in its folder, and the answer that was asked for in `out`."""
    own, taught = judged[: len(students)], judged[len(students) :]
    found = _write(Path(request.out), own, taught)
    for encoding, student, one in zip(encodings, students, own, strict=False):
        run = Path(encoding.recipe.out)
        if students[1:] or run != Path(request.out):
            _write(run, [one], [other for other in taught if other.table.about["store"] == student.teacher])
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        write_report(run, run.name, {run.name: run}, encoding.clips, summary)
    return found


def _write(folder: Path, students: Sequence[Judged], teachers: Sequence[Judged]) -> dict[str, Any]:
    """The answer as JSON and as pages."""
    classes = len(students[0].table.classes)
    found: dict[str, Any] = {"chance": 1 / classes, "classes": classes}
    if students[1:]:
        found["runs"] = {one.name: _told(one) for one in students}
        title = f"What the latents of {len(students)} runs know"
    else:
        found |= _told(students[0])
        title = f"{students[0].name}: what its latents know"
    found |= {one.name: _told(one) for one in teachers}
    publish_text(folder / "probe.json", json.dumps(found, indent=1))
    write_pages(folder, title, [*students, *teachers], found["chance"])
    return found


def _told(one: Judged) -> dict[str, Any]:
    return {"latents": one.latents, "probes": one.probes}


def _tell(judged: Sequence[Judged], talk: Talk) -> None:
    names = list(dict.fromkeys(name for one in judged for name in one.probes))
    rows = [[name, *(_figure(one.probes.get(name)) for one in judged)] for name in names]
    rows.append(["chance", *(percent(1 / len(one.table.classes)) for one in judged)])
    talk.table("top-1 on the test clips (95 % interval)", ("", *(one.name for one in judged)), rows)


def _figure(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    low, high = found["test"]["interval"]
    return f"{percent(found['test']['top1'])} ({100 * low:.1f} to {100 * high:.1f})"
