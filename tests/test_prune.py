"""The pruning job from end to end: what a pruned run keeps of the run it came from, and that it stays pruned."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from distill import command
from distill.checkpoint import load_student, read_card
from distill.deploy.magnitude import smallest
from distill.deploy.prune_request import read
from distill.deploy.pruning import prune
from distill.errors import UserError
from distill.evaluate import collect, evaluate
from distill.recipe import read_recipe
from distill.run_log import read_metrics
from distill.teaching.caching import cache
from distill.training import look, start, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny recipe, which is the one to prune and its own teacher."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(read_recipe(["recipe=tiny", f"out={out}"]))
    return out


@pytest.fixture(scope="module")
def base(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A distilled run, with its cache."""
    folder = tmp_path_factory.mktemp("base")
    changes = ["teacher.name=student", f"teacher.run={teacher}", f"cache.folder={folder / 'cache'}"]
    recipe = read_recipe(
        ["recipe=tiny", f"out={folder / 'run'}", *changes, "objective.kl.weight={to: 2, over: 4 steps}"]
    )
    cache(recipe)
    train(recipe)
    return folder / "run"


def pruned(base: Path, out: Path, *changes: str) -> Path:
    prune(read([f"run={base}", f"out={out}", "steps=4", *changes]))
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "model.safetensors")


def rounds(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "prune.json").read_text())["rounds"]
    return found


@pytest.mark.parametrize(
    "changes",
    [
        ["optim.name=sgd", "optim.lr=0.1", "optim.weight_decay=0.1", "optim.clip_norm=0"],
        ["optim.weight_decay=0.5", "train.ema=0.5"],
        ["train.best=top1", "train.evaluate_every=2"],
        [
            "schedule.mode=progressive",
            "schedule.groups.late.parts=[encoder]",
            "schedule.groups.late.at=2",
            "train.accumulate=2",
        ],
    ],
    ids=["sgd", "ema", "best", "progressive"],
)
def test_zeros_stay_zeros(changes: list[str], base: Path, tmp_path: Path) -> None:
    """Through momentum, decay, averages and thawing; all other weights learn. Each round cuts what is left."""
    out = pruned(base, tmp_path / "out", "method=magnitude", "amount=0.8", "rounds=2", *changes)
    sparse = read_card(out).sparse
    assert sparse
    total = sum(weights(base)[name].numel() for name in sparse)
    for folder, amount in ((out / "round1", 0.8 * 0.875), (out, 0.8)):
        cut, learnt = weights(folder / "cut"), weights(folder)
        assert sum(int((cut[name] == 0).sum()) for name in sparse) == round(amount * total)
        for name in sparse:
            assert torch.equal(cut[name] == 0, learnt[name] == 0), name
        assert any(not torch.equal(cut[name], learnt[name]) for name in sparse)
    before = {name: weights(base)[name] for name in sparse}
    first = weights(out / "round1" / "cut")
    assert all(torch.equal(gone, first[name] == 0) for name, gone in smallest(before, 0.7, "global").items())


def test_a_pruned_run_is_a_run(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder holds what every run's does, each round's figures are those of its students, and both are said."""
    out = tmp_path / "out"
    arguments = [f"run={base}", f"out={out}", "amount=0.5", "rounds=2", "steps=4", "multiple=4"]
    assert command.run("prune", arguments) == 0
    said = capsys.readouterr().out
    assert "report.html" in said
    assert "times as fast in torch" in said
    for name in ("recipe.yaml", "summary.json", "report.html", "answers.safetensors", "student/README.md"):
        assert (out / name).is_file()
    found = rounds(out)
    assert list(found) == ["before", "round 1", "round 2"]
    for figure in ("parameters", "gflops", "megabytes"):
        values = [row[figure] for row in found.values()]
        assert values == sorted(values, reverse=True)
        assert values[-1] < values[0]
    assert found["round 2"]["compressed_megabytes"] < found["before"]["compressed_megabytes"]
    recipe = read_recipe([f"recipe={out / 'recipe.yaml'}", f"out={out}"])
    accelerator = start(recipe)
    clips = look(recipe, accelerator)
    last = found["round 2"]
    for run, test in ((base, found["before"]["test"]), (out / "cut", last["cut"]), (out, last["test"])):
        answers = collect(load_student(run), clips, clips.manifest.of("test"), 16, accelerator)
        assert evaluate(answers) == pytest.approx(test)


def test_it_learns_from_what_the_run_learned_from(base: Path, tmp_path: Path) -> None:
    """The same teacher out of the same cache, with weights where they had arrived; or without it."""
    taught = pruned(base, tmp_path / "taught", "rounds=1")
    alone = pruned(base, tmp_path / "alone", "rounds=1", "objective.kl.weight=0", "objective.reconstruction.weight=0")
    first = next(row for row in read_metrics(taught) if "loss" in row)
    assert first["weighted.kl"] == pytest.approx(2 * first["raw.kl"])
    assert first["weighted.reconstruction"] == pytest.approx(5 * first["raw.reconstruction"])
    other = next(row for row in read_metrics(alone) if "loss" in row)
    assert other["loss"] == pytest.approx(other["raw.cross_entropy"])
    assert other["raw.cross_entropy"] == first["raw.cross_entropy"]  # the same cut student, the same clips
    with pytest.raises(UserError, match="distill cache"):
        pruned(base, tmp_path / "nocache", f"cache.folder={tmp_path / 'empty'}")


def test_a_student_that_starts_from_a_pruned_one_stays_pruned(base: Path, tmp_path: Path) -> None:
    """By its recipe it can be trained again; and pruned again, the other way."""
    narrow = pruned(base, tmp_path / "narrow", "rounds=1", "multiple=4")
    again = read_recipe([f"recipe={narrow / 'recipe.yaml'}", f"out={tmp_path / 'again'}"])
    train(again)
    ours, theirs = weights(tmp_path / "again"), weights(narrow)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    both = pruned(narrow, tmp_path / "both", "method=magnitude", "amount=0.6", "rounds=1", "scope=layer")
    assert read_card(both).widths == read_card(narrow).widths
    for name in read_card(both).sparse:
        value = weights(both)[name]
        assert int((value == 0).sum()) == round(0.6 * value.numel())
    third = pruned(both, tmp_path / "third", "rounds=1", "multiple=2")
    assert read_card(third).sparse == read_card(both).sparse
    assert rounds(third)["round 1"]["parameters"] < rounds(both)["round 1"]["parameters"]


def test_a_missing_start_is_one_line(base: Path, tmp_path: Path) -> None:
    narrow = pruned(base, tmp_path / "narrow", "rounds=1", "steps=0")
    shutil.rmtree(narrow / "cut")
    with pytest.raises(UserError, match=r"init: .*cut is not there"):
        train(read_recipe([f"recipe={narrow / 'recipe.yaml'}", f"out={tmp_path / 'again'}"]))


def test_what_was_asked_stays_asked(base: Path, tmp_path: Path) -> None:
    out = pruned(base, tmp_path / "out", "rounds=1")
    before = (out / "student" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match="say resume=true"):
        pruned(base, out, "rounds=1")
    with pytest.raises(UserError, match="was made with another amount"):
        pruned(base, out, "rounds=1", "resume=true", "amount=0.4")
    with pytest.raises(UserError, match=r"was made with another optim\.lr"):
        pruned(base, out, "rounds=1", "resume=true", "optim.lr=0.1")
    pruned(base, out, "rounds=1", "resume=true")
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(("method", "round1"), [("channels", "round1"), ("magnitude", "")])
def test_kill_and_resume_is_bit_identical(method: str, round1: str, base: Path, tmp_path: Path) -> None:
    """kill -9 at a random moment of the first or the last round, then go on: as if nothing had happened."""
    changes = [f"method={method}", "rounds=2", "amount=0.6", "train.checkpoint_every=3", "train.ema=0.9"]
    whole = pruned(base, tmp_path / "whole", "steps=20", *changes)
    broken, dice = tmp_path / "broken", random.Random()
    asked = [f"run={base}", f"out={broken}", "steps=20", "resume=true", *changes]
    line = [sys.executable, "-c", "from distill.command import dispatch; dispatch()", "prune", *asked]
    goal = dice.randrange(2, 16)
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, cwd=ROOT) as process:
        while process.poll() is None and not any(row["step"] >= goal for row in read_metrics(broken / round1)):
            time.sleep(dice.uniform(0, 0.02))
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    pruned(base, broken, "steps=20", "resume=true", *changes)
    ours, theirs = weights(broken), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
