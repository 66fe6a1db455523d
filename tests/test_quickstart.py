"""The first experiment, much too short to learn anything, but whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill import quickstart as module
from distill.clips.clipset import open_manifest
from distill.command import dispatch
from distill.errors import UserError
from distill.keys import find_recipe
from distill.quickstart import quickstart, student_recipes, teacher_recipe
from distill.recipe import Recipe, read_recipe

RUNS = ("untrained", "reconstruction", "labels_only", "distilled")
PROBES = ("svm", "random_forest", "xgboost")


def small(folder: Path, *more: str) -> Recipe:
    source = ["classes=[left,right,grow]", "train=8", "val=3", "test=3", "size=32", "frames=8"]
    return read_recipe(
        [
            "recipe=quickstart",
            f"out={folder / 'quickstart'}",
            f"cache.folder={folder / 'cache'}",
            *(f"clips.source.{change}" for change in source),
            "clips.views.count=2",
            "clips.labelled=0.5",
            "train.steps=2",
            "train.batch=8",
            "probe.folds=0",
            *more,
        ]
    )


def test_quickstart_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = find_recipe(module.TEACHER).read_text()
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(text[: text.index("train:")] + "train: {steps: 2, batch: 8}\n")
    monkeypatch.setattr(module, "TEACHER", str(teacher))
    quickstart(small(tmp_path))
    out = tmp_path / "quickstart"
    summary = json.loads((out / "summary.json").read_text())
    assert summary["chance"] == pytest.approx(1 / 3)
    for share in (
        summary["teacher"]["top1"],
        summary["student"]["labels_only"]["top1"],
        summary["student"]["distilled"]["top1"],
        *(summary["probe"][run][probe] for run in (*RUNS, "teacher") for probe in PROBES),
    ):
        assert 0 <= share <= 1
    assert summary["teacher"]["parameters"] > summary["student"]["parameters"] > 0
    assert all(value >= 0 for value in summary["seconds"].values())
    assert (out / "report.html").stat().st_size > 10_000
    for run in ("teacher", *RUNS):
        for file in ("recipe.yaml", "metrics.jsonl", "student/model.safetensors", "student/config.json", "report.html"):
            assert (out / run / file).exists(), f"{run}/{file}"
    before = (out / "distilled" / "student" / "model.safetensors").stat().st_mtime_ns
    quickstart(small(tmp_path))
    assert (out / "distilled" / "student" / "model.safetensors").stat().st_mtime_ns == before


def test_it_writes_where_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "quickstart", lambda recipe: asked.append(recipe) or {})
    assert dispatch(["quickstart"]) == 0
    assert asked[0].out == "runs/quickstart"
    assert asked[0].teacher.run == "runs/quickstart/teacher"
    assert dispatch(["quickstart", "out=elsewhere", "seed=4"]) == 0
    assert (asked[1].out, asked[1].seed) == ("elsewhere", 4)


def test_a_quickstart_without_a_teacher_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="teacher"):
        quickstart(small(tmp_path, "teacher=null"))


def test_the_comparison_is_fair(tmp_path: Path) -> None:
    """The four trainings differ in what they learn from, and in nothing else."""
    students = student_recipes(small(tmp_path), tmp_path)
    assert tuple(students) == RUNS
    reference = students["distilled"]
    for name, recipe in students.items():
        assert recipe.student == reference.student
        assert recipe.optim == reference.optim
        assert recipe.seed == reference.seed
        assert recipe.clips.source == reference.clips.source
        assert recipe.clips.views == reference.clips.views
        assert recipe.clips.labelled == reference.clips.labelled
        assert recipe.train.batch == reference.train.batch
        assert recipe.train.steps == (0 if name == "untrained" else reference.train.steps)
    weights = {name: {key: term.weight for key, term in run.objective.items()} for name, run in students.items()}
    assert weights["labels_only"] == {"cross_entropy": 1.0, "kl": 0.0, "reconstruction": 0.0}
    assert all(weights["distilled"].values())
    assert reference.clips.unlabelled
    assert not students["labels_only"].clips.unlabelled


def test_the_teacher_sees_the_same_clips_with_every_label(tmp_path: Path) -> None:
    recipe = small(tmp_path, "seed=3")
    teacher = teacher_recipe(recipe, tmp_path / "teacher")
    ours, theirs = (open_manifest(each.clips, tmp_path, each.seed) for each in (recipe, teacher))
    assert ours.keys.tolist() == theirs.keys.tolist()
    known = [sum(manifest.clips[i].label >= 0 for i in manifest.of("train")) for manifest in (ours, theirs)]
    assert known == [12, 24]
