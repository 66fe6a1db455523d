"""What every recipe promises. Files are found by being there: none is named here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import plain_recipe

from distill.checkpoint import load_student
from distill.command import JOBS
from distill.keys import RECIPES, recipe_names
from distill.objective.objective import live
from distill.recipe import read_recipe
from distill.run_log import read_metrics

TinyRun = Callable[[str], Path]
EVERY_RECIPE = pytest.mark.parametrize("name", recipe_names())


def header(name: str) -> list[str]:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines[: next(i for i, x in enumerate(lines) if x[:1] != "#")]]


@EVERY_RECIPE
def test_a_recipe_s_header_says_what_command_cost_and_expectation(name: str) -> None:
    what, *rest = header(name)
    assert what.endswith(".")
    assert not what.startswith(("command", "cost", "expect"))
    said = {key: value.strip() for key, _, value in (line.partition(":") for line in rest)}
    for key in ("command", "cost", "expect"):
        assert said.get(key), f"{name}: no line '# {key}: ...'"
    jobs = re.findall(r"distill (\w+)", said["command"])
    assert jobs
    assert set(jobs) <= set(JOBS)
    assert f"recipe={name}" in said["command"] or name in jobs


@EVERY_RECIPE
def test_a_recipe_reads_like_the_experiment(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    content = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert len(content) < 40
    assert max(map(len, lines)) <= 120
    assert plain_recipe(name).out.startswith("runs/")


def test_recipes_keep_to_folders_of_their_own() -> None:
    folders = [plain_recipe(name).out for name in recipe_names()]
    assert len(set(folders)) == len(folders)


@EVERY_RECIPE
def test_a_recipe_trains(name: str, tiny_run: TinyRun) -> None:
    run = tiny_run(name)
    kept = [f"student/{file}" for file in ("model.safetensors", "config.json", "README.md")]
    for file in ("recipe.yaml", "metrics.jsonl", *kept, "summary.json"):
        assert (run / file).stat().st_size > 0, file
    assert read_recipe([f"recipe={run / 'recipe.yaml'}"]).train.steps == 2
    rows = [row for row in read_metrics(run) if "loss" in row]
    terms = live(read_recipe([f"recipe={run / 'recipe.yaml'}"]).objective)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert math.isfinite(row["loss"])
        assert row["loss"] == pytest.approx(sum(row[f"weighted.{term}"] for term in terms))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2
    assert 0 <= summary["test"]["top1"] <= 1
    student = load_student(run).eval()
    frames = torch.zeros(1, student.spec.frames, 3, student.spec.size, student.spec.size, dtype=torch.uint8)
    assert torch.isfinite(student(frames).logits).all()
