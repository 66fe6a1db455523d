"""The whole house in one command: teacher, cache, four students of one kind, probes, report."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill.errors import UserError
from distill.files import publish_text
from distill.probing.probe import answer
from distill.probing.request import Request
from distill.recipe import Recipe, read_recipe, save_recipe
from distill.report import write_report
from distill.run_log import Talk, percent
from distill.teaching.caching import cache
from distill.training import see_clips, start, train

TEACHER = "quickstart_teacher"


def quickstart(recipe: Recipe) -> dict[str, Any]:
    """Run the first experiment from end to end on the embedded data: about nine minutes on two cores.

    distill quickstart
    distill quickstart seed=1 out=runs/seed1

    Trains a teacher with every label, caches what it says, then trains one and the same student four ways: not at all,
    by reconstruction, from 30 % of the labels, and distilled (those labels, the teacher and reconstruction). Probes
    judge the latents of all four. seed, clips, cache and train.precision reach the teacher too. A second call goes on
    where the first one stopped.
    """
    if recipe.teacher is None or recipe.teacher.name != "student":
        raise UserError("the quickstart trains its own teacher: the recipe needs teacher.name=student")
    out = Path(recipe.out)
    accelerator = start(recipe)
    talk = Talk(accelerator.is_main_process)
    if accelerator.is_main_process:
        save_recipe(recipe, out / "recipe.yaml")
    stages = _Stages(talk, out / "seconds.json")
    teacher = teacher_recipe(recipe, out / "teacher")
    recipe.teacher.run = teacher.out
    students = student_recipes(recipe, out)
    judging = Request(str(out), recipe.probe, recipe.seed, list(students.values()))

    with stages("teacher"):
        if teacher.cache.frames:
            cache(teacher)
        taught = train(teacher)
    with stages("cache"):
        cache(recipe)
    summaries = {}
    for name, student in students.items():
        with stages(name):
            summaries[name] = train(student)
    with stages("probes"):
        judged = answer(judging)

    clips = see_clips(recipe, accelerator)
    if not accelerator.is_main_process:
        return {}
    summary = {
        "chance": 1 / len(clips.manifest.classes),
        "teacher": {"top1": taught["test"]["top1"], **_size(taught)},
        "student": {
            **{name: {"top1": summaries[name]["test"]["top1"]} for name in ("labels_only", "distilled")},
            **_size(summaries["distilled"]),
        },
        "probe": _top1({name: judged[name] for name in ("teacher",) if name in judged} | judged["runs"]),
        "seconds": stages.seconds,
    }
    publish_text(out / "summary.json", json.dumps(summary, indent=1))
    runs = {"teacher": Path(teacher.out), **{name: Path(student.out) for name, student in students.items()}}
    write_report(out, "Quickstart: one student, trained four ways", runs, clips, summary)
    _show(talk, summary)
    return {}


def _top1(judged: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Of each probe on each run's latents."""
    return {
        run: {name: probe["test"]["top1"] for name, probe in found["probes"].items()} for run, found in judged.items()
    }


def _size(summary: dict[str, Any]) -> dict[str, float]:
    """The figures of size and speed that a run measured of itself."""
    return {name: summary[name] for name in ("parameters", "gflops", "milliseconds", "megabytes")}


def _show(talk: Talk, summary: dict[str, Any]) -> None:
    """The result: top-1 of the classifiers that were trained, and of the probes on every latent."""
    probes, trained = {"teacher": {}, **summary["probe"]}, {"teacher": summary["teacher"], **summary["student"]}
    names = list(dict.fromkeys(name for found in probes.values() for name in found))
    rows = [
        [
            run,
            percent(trained[run]["top1"]) if run in trained else "",
            *(percent(found[name]) if name in found else "" for name in names),
        ]
        for run, found in probes.items()
    ]
    rows.append(["chance", *[percent(summary["chance"])] * (1 + len(names))])
    talk.say("")
    talk.table("top-1 on the test clips", ("", "own classifier", *names), rows)
    teacher, student = summary["teacher"], summary["student"]
    talk.say(
        f"teacher {teacher['parameters'] / 1e6:.2f} M parameters, {teacher['milliseconds']:.1f} ms a clip;  "
        f"student {student['parameters'] / 1e6:.2f} M, {student['milliseconds']:.1f} ms"
    )


def teacher_recipe(recipe: Recipe, out: Path) -> Recipe:
    """The teacher's own recipe, on the same clips: it sees every label."""
    teacher = read_recipe([f"recipe={TEACHER}", f"seed={recipe.seed}", f"out={out}", "resume=true"])
    teacher.clips = copy.deepcopy(recipe.clips)
    teacher.clips.labelled = 1.0
    teacher.cache = copy.deepcopy(recipe.cache)
    teacher.train.precision = recipe.train.precision
    return teacher


def student_recipes(recipe: Recipe, out: Path) -> dict[str, Recipe]:
    """One student, four trainings: same network, optimiser, batch, clips and number of steps."""

    def variant(name: str, change: Callable[[Recipe], object]) -> Recipe:
        student = copy.deepcopy(recipe)
        student.out, student.resume = str(out / name), True
        change(student)
        return student

    def only(*terms: str) -> Callable[[Recipe], object]:
        def switch(student: Recipe) -> None:
            for name, term in student.objective.items():
                term.weight = term.weight if name in terms else 0.0
            # A batch of clips that the objective has no use for would only handicap the student.
            student.clips.unlabelled = recipe.clips.unlabelled and terms != ("cross_entropy",)

        return switch

    return {
        "untrained": variant("untrained", lambda student: setattr(student.train, "steps", 0)),
        "reconstruction": variant("reconstruction", only("reconstruction")),
        "labels_only": variant("labels_only", only("cross_entropy")),
        "distilled": variant("distilled", only(*recipe.objective)),
    }


class _Stages:
    """Announces and times the parts; a part that an earlier call finished keeps the time it took then."""

    def __init__(self, talk: Talk, file: Path) -> None:
        self.talk, self.file = talk, file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.talk.say(f"\n== {name}")
        started = time.monotonic()
        yield
        self.seconds.setdefault(name.replace(" ", "_"), round(time.monotonic() - started, 1))
        if self.talk.active:
            publish_text(self.file, json.dumps(self.seconds, indent=1))
