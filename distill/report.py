"""The page that a run leaves behind: what came out, how it got there, and what it looks like.

One page for one run or for many: each section appears when its data are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.numpy import load_file
from torch import Tensor

from distill import charts
from distill import report_figures as figures
from distill.checkpoint import load_student, student_folder
from distill.clips.clipset import ClipSet
from distill.clips.frames import ClipError
from distill.errors import UserError
from distill.evaluate import REALTIME, Answers, confusion, evaluate
from distill.files import publish_text
from distill.hub import read_config
from distill.model_card import part
from distill.objective.losses import LOSSES
from distill.outputs import Student
from distill.pages import percent, render
from distill.run_log import read_metrics
from distill.surroundings import surroundings

ANSWERING = {name for name, loss in LOSSES.items() if loss.answers}
FILMS = 4
# What is measured about a model: key -> (what it is, unit, factor from the summary's number)
MEASURES = {
    "parameters": ("Parameters", "M", 1e-6),
    "gflops": ("Arithmetic per clip", "GFLOPs", 1.0),
    "milliseconds": ("Time per clip", "ms", 1.0),
    "megabytes": ("Weights", "MB", 1.0),
}
Section = dict[str, Any]


def write_report(
    folder: Path, title: str, runs: Mapping[str, Path], clips: ClipSet, summary: Mapping[str, Any]
) -> Path:
    """Write `folder`/report.html about finished runs (name -> run folder); `summary` is what the job returned."""
    if not runs:
        raise UserError(f"a report in {folder} needs at least one run")
    found = [read_run(name, run) for name, run in runs.items()]
    classes = list(clips.manifest.classes)
    page = render(
        "report.html",
        title=title,
        lead=list(lead(found, clips, summary)),
        results=results(found, clips, summary),
        probes=probes(found, len(classes)),
        curves=curves(found, len(classes)),
        confusions=[
            {"name": run.title, **figures.confusion_table(confusion(run.answers, len(classes)), classes)}
            for run in found
            if run.answers_test
        ],
        maps=maps(found, classes),
        films=films([run for run in found if "reconstruction" in run.terms], clips),
        sizes=sizes(summary),
        stages=stages(summary),
        recipes={run.title: run.recipe_text for run in found},
        made=surroundings(),
    )
    path = folder / "report.html"
    publish_text(path, page)
    return path


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    name: str
    folder: Path
    recipe: dict[str, Any]
    recipe_text: str
    metrics: list[dict[str, float]]
    answers: Answers  # about the test clips
    realtime: Mapping[str, float]  # scores by one look at each clip, where the answers are means over several
    probes: dict[str, dict[str, Any]]

    @property
    def title(self) -> str:
        return self.name.replace("_", " ")

    @property
    def steps(self) -> int | str:
        steps: int | str = self.recipe["train"]["steps"]  # or "20 epochs"
        return steps

    @property
    def terms(self) -> set[str]:
        """The losses that really trained."""
        terms = self.recipe["objective"].items()
        return {name for name, term in terms if term["weight"]} if self.steps else set()

    @property
    def answers_test(self) -> bool:
        """Whether it learned to classify, and there are labels to compare with."""
        return bool(self.terms & ANSWERING) and "top1" in self.scores

    @cached_property
    def scores(self) -> dict[str, float]:
        return evaluate(self.answers)

    @property
    def variance(self) -> float:
        """Of top-1, from counting on so many clips."""
        return self.scores["top1"] * (1 - self.scores["top1"]) / self.labelled

    @property
    def labelled(self) -> int:
        """Test clips with a label."""
        return int((self.answers.label >= 0).sum())


def read_run(name: str, folder: Path) -> Run:
    recipe, answers, probe = (folder / file for file in ("recipe.yaml", "answers.safetensors", "probe.json"))
    for path in (recipe, answers):
        if not path.exists():
            raise UserError(f"{folder} is not a finished run ({path.name} is missing), so it cannot be reported")
    tree = OmegaConf.to_container(OmegaConf.load(recipe), resolve=True)
    assert isinstance(tree, dict)
    return Run(
        name=name,
        folder=folder,
        recipe={str(key): value for key, value in tree.items()},
        recipe_text=recipe.read_text(encoding="utf-8"),
        metrics=read_metrics(folder),
        answers=Answers(**load_file(answers)),
        realtime=part(read_config(student_folder(folder)), "facts", "summary", REALTIME),
        probes=json.loads(probe.read_text(encoding="utf-8")).get("probes", {}) if probe.exists() else {},
    )


def lead(runs: Sequence[Run], clips: ClipSet, summary: Mapping[str, Any]) -> Iterator[str]:
    """What came out, in sentences."""
    ranked = sorted((run for run in runs if run.answers_test), key=lambda run: -run.scores["top1"])
    if ranked:
        first, *others = (f"{run.title} {{}}{percent(run.scores['top1'])}" for run in ranked)
        shares = ", ".join([first.format("names "), *(other.format("") for other in others)])
        chance = percent(1 / len(clips.manifest.classes))
        yield f"Of {ranked[0].labelled} test clips, {shares} correctly; guessing would give {chance}."
    for run in runs:
        if not ranked and {"reconstruction"} <= run.terms & run.scores.keys():
            yield f"{run.title} redraws test clips with a mean squared error of {run.scores['reconstruction']:.4f}."
    for run in ranked:
        yield from _teaching_gain(run, ranked, clips)
    models = measured(summary)
    if {"teacher", "student"} <= models.keys():
        part = {key: percent(models["student"][key] / models["teacher"][key]) for key in MEASURES}
        yield (
            f"The student has {part['parameters']} of the teacher's parameters, needs {part['gflops']} of its "
            f"arithmetic and takes {part['milliseconds']} of its time per clip on this machine."
        )


def _teaching_gain(run: Run, ranked: Sequence[Run], clips: ClipSet) -> Iterator[str]:
    """How a taught run compares with the same network that had the same labels and no teacher."""
    for other in ranked:
        if not (_taught(run) and not _taught(other) and _same_start(run, other)):
            continue
        gain = run.scores["top1"] - other.scores["top1"]
        noise = 1.96 * (run.variance + other.variance) ** 0.5
        more = [lesson for lesson in _lessons(run, clips) if lesson not in _lessons(other, clips)]
        yield (
            f"With the same {labels_used(run, clips)} labels the same network {'gains' if gain >= 0 else 'loses'} "
            f"{100 * abs(gain):.1f} points when it also learns from {' and '.join(more)}"
            f"{', less than chance can do (± ' + f'{100 * noise:.1f})' if abs(gain) < noise else ''}."
        )


def _same_start(run: Run, other: Run) -> bool:
    same_labels = run.recipe["clips"]["labelled"] == other.recipe["clips"]["labelled"]
    return same_labels and all(run.recipe[key] == other.recipe[key] for key in ("student", "seed"))


def _taught(run: Run) -> bool:
    return any(name in LOSSES and LOSSES[name].teacher for name in run.terms)


def results(runs: Sequence[Run], clips: ClipSet, summary: Mapping[str, Any]) -> Section:
    rows = [_result(run, clips, summary) for run in runs]
    scored = [run for run in runs if run.answers_test]
    return {
        "rows": rows,
        "chance": 1 / len(clips.manifest.classes),
        "clips": scored[0].labelled if scored else 0,
        "columns": {key: MEASURES[key] for key in MEASURES if any(row["sizes"].get(key) for row in rows)},
        "top5": any("top5" in run.scores for run in scored),
        "realtime": any(row["realtime"] is not None for row in rows),
        "error": any(row["error"] for row in rows),
        "training_clips": len(clips.manifest.of("train")),
    }


def _result(run: Run, clips: ClipSet, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table; a figure that the run never trained for is left out."""
    scores, models = run.scores if run.answers_test else {}, measured(summary)
    size = models.get(run.name, models.get("student", {}))
    return {
        "name": run.title,
        "learned_from": ", ".join(_lessons(run, clips)) or "nothing: random weights",
        "steps": run.steps,
        "top1": scores.get("top1"),
        "margin": f"{196 * run.variance**0.5:.1f}" if scores else "",
        "top5": scores.get("top5"),
        "realtime": run.realtime.get("top1") if scores else None,
        "error": run.scores.get("reconstruction") if "reconstruction" in run.terms else None,
        "sizes": {key: f"{size[key] * factor:.3g}" for key, (_, _, factor) in MEASURES.items() if key in size},
    }


def _lessons(run: Run, clips: ClipSet) -> list[str]:
    """What a run learned from, in words."""
    lessons = {
        f"{labels_used(run, clips)} labels": "cross_entropy" in run.terms,
        "a teacher": _taught(run),
        "redrawing clips": "reconstruction" in run.terms,
    }
    return [lesson for lesson, given in lessons.items() if given]


def labels_used(run: Run, clips: ClipSet) -> int:
    """Training labels that the run could see: those of the manifest, scaled to the run's own clips.labelled."""
    train = clips.manifest.of("train")
    known = sum(clips.manifest.clips[index].label >= 0 for index in train)
    share, shown = run.recipe["clips"]["labelled"], clips.options.labelled
    return min(len(train), round(known * share / shown)) if shown else 0


def measured(summary: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """The models whose size and speed the summary knows; a single run's own figures stand at its top."""
    parts = {"student": summary, **{key: part for key, part in summary.items() if isinstance(part, Mapping)}}
    models = {name: part for name, part in parts.items() if MEASURES.keys() <= part.keys()}
    return dict(sorted(models.items(), key=lambda item: -item[1]["parameters"]))


def sizes(summary: Mapping[str, Any]) -> Section | None:
    models = measured(summary)
    if not models:
        return None
    first, *_, last = [*models.values()] * 2
    rows = [
        {
            "what": f"{what} ({unit})",
            "values": [f"{model[key] * factor:.3g}" for model in models.values()],
            "ratio": percent(last[key] / first[key]) if len(models) > 1 else "",
        }
        for key, (what, unit, factor) in MEASURES.items()
    ]
    return {"models": list(models), "rows": rows}


def stages(summary: Mapping[str, Any]) -> dict[str, float] | None:
    """Seconds by name."""
    seconds = summary.get("seconds")
    return dict(seconds) if isinstance(seconds, Mapping) else {"training": seconds} if seconds else None


def probes(runs: Sequence[Run], classes: int) -> Section | None:
    names = list(dict.fromkeys(name for run in runs for name in run.probes))
    if not names:
        return None
    best = {name: max(run.probes[name]["test"]["top1"] for run in runs if name in run.probes) for name in names}
    rows = [
        (run.title, [_probe_cell(run.probes.get(name), best[name]) for name in names]) for run in runs if run.probes
    ]
    return {"names": [name.replace("_", " ") for name in names], "rows": rows, "chance": 1 / classes}


def _probe_cell(found: Mapping[str, Any] | None, best: float) -> dict[str, Any] | None:
    if found is None:
        return None
    setting = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in found["setting"].items())
    top1 = found["test"]["top1"]
    return {"top1": top1, "best": top1 == best, "setting": setting}


def curves(runs: Sequence[Run], classes: int) -> Section | None:
    trained = [run for run in runs if any("loss" in row for row in run.metrics)]
    terms = sorted({key[4:] for run in trained for row in run.metrics for key in row if key.startswith("raw.")})
    colours = {name: charts.colour(place + 3) for place, name in enumerate(terms)}  # not those of the runs
    if not trained:
        return None
    return {
        "terms": {name.replace("_", " "): value for name, value in colours.items()},
        "losses": [_losses(run, colours) for run in trained],
        "validation": _validation([run for run in trained if run.terms & ANSWERING], 1 / classes),
    }


def _losses(run: Run, colours: Mapping[str, str]) -> Section:
    rows = [row for row in run.metrics if "loss" in row]
    names = [name for name in colours if f"raw.{name}" in rows[-1]]
    raw, weighted = (
        {name: [row.get(f"{kind}.{name}", np.nan) for row in rows] for name in names} for kind in ("raw", "weighted")
    )
    title = f"{run.title}: total loss {rows[0]['loss']:.4f} → {rows[-1]['loss']:.4f}"
    return {"title": title, "chart": figures.loss_chart([row["step"] for row in rows], raw, weighted, colours, title)}


def _validation(runs: Sequence[Run], chance: float) -> Section | None:
    looks = {run.title: [(row["step"], row["val.top1"]) for row in run.metrics if "val.top1" in row] for run in runs}
    curves = {name: points for name, points in looks.items() if points}
    if not curves:
        return None
    colours = {name: charts.colour(place) for place, name in enumerate(curves)}
    last = {name: points[-1][1] for name, points in curves.items()}
    best = max(curves, key=lambda name: last[name])
    title = f"{best} ends {'highest, ' if len(curves) > 1 else ''}at {percent(last[best])}"
    return {
        "title": title,
        "chart": figures.share_chart(
            [(colours[name], "o", points) for name, points in curves.items()],
            ("training step", "top-1 on validation clips (%)"),
            f"Validation top-1 over training steps: {title}",
            chance,
            width=5.6,
        ),
        "legend": [(name, colours[name], percent(last[name])) for name in curves],
    }


def maps(runs: Sequence[Run], classes: Sequence[str]) -> Section | None:
    drawn = [run for run in runs if (~run.answers.failed).sum() >= 5 and 0 < run.answers.latent.std() < np.inf]
    if not drawn:
        return None
    group, legend = figures.class_colours(drawn[0].answers.label, classes)
    return {"maps": [_map(run, group) for run in drawn], **legend}


def _map(run: Run, group: np.ndarray) -> Section:
    shown = figures.thinned(np.flatnonzero(~run.answers.failed))
    latent, label = run.answers.latent[shown], run.answers.label[shown]
    share = percent(figures.neighbour_share(latent[label >= 0], label[label >= 0])) if (label >= 0).sum() > 1 else ""
    title = f"{run.title}: {share} of clips lie next to one of their class" if share else run.title
    return {"title": title, "chart": figures.latent_map(latent, group[label], f"Map of latents, {title}")}


def films(runs: Sequence[Run], clips: ClipSet) -> list[Section]:
    """Test clips above what each run redrew of them; taken evenly through the split, not for their looks."""
    if not runs or runs[0].answers.failed.all():
        return []
    students = {run.title: load_student(run.folder).eval() for run in runs}
    index = runs[0].answers.index[~runs[0].answers.failed]
    chosen = dict.fromkeys(int(index[(2 * place + 1) * len(index) // (2 * FILMS)]) for place in range(FILMS))
    found = []
    for number in chosen:
        with suppress(ClipError):  # a file that was there when the run answered
            found.append(_film(number, runs, students, clips))
    return found


def _film(index: int, runs: Sequence[Run], students: Mapping[str, Student], clips: ClipSet) -> Section:
    frames = torch.from_numpy(clips.frames.get(index, [0]))
    videos = [frames[0], *(_redraw(students[run.title], frames) for run in runs)]
    (clip, *pictures), pixelated = figures.strips(videos)
    label = clips.manifest.clips[index].label
    return {
        "name": clips.manifest.classes[label] if label >= 0 else "not known",
        "clip": clip,
        "pixelated": pixelated,
        "rows": [_redrawn(run, index, clips, picture) for run, picture in zip(runs, pictures, strict=True)],
    }


@torch.no_grad()
def _redraw(student: Student, frames: Tensor) -> Tensor:
    """Clips uint8 [1,T,3,S,S] -> the student's version of the first, uint8 [T,3,S,S]."""
    picture: Tensor = student(student.spec.fit(frames), want=("reconstruction",)).reconstruction
    return (255 * picture[0]).round().to(torch.uint8)


def _redrawn(run: Run, index: int, clips: ClipSet, picture: str) -> dict[str, Any]:
    said = int(run.answers.logits[np.searchsorted(run.answers.index, index)].argmax())
    label, classes = clips.manifest.clips[index].label, clips.manifest.classes
    answer = classes[said] if run.terms & ANSWERING else None
    return {"name": run.title, "picture": picture, "answer": answer, "right": said == label if label >= 0 else None}
