"""The command: help that is enough to work with, and mistakes that cost one line."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill import command
from distill.clips.clipset import open_manifest
from distill.errors import UserError
from distill.keys import RECIPES, flatten, recipe_names
from distill.recipe import Recipe, read_recipe

LIVE = RECIPES / "live"
Capture = pytest.CaptureFixture[str]
Arguments = Callable[..., list[str]]


def refused(capsys: Capture, code: int) -> str:
    """The one line of a mistake."""
    assert code == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in captured.out
    return lines[0]


@pytest.mark.parametrize("arguments", [[], ["help"], ["-h"], ["--help"]])
def test_usage(capsys: Capture, arguments: list[str]) -> None:
    assert command.dispatch(arguments) == 0
    said = capsys.readouterr().out
    for word in ("distill JOB recipe=NAME", "--help", "distill recipes", *command.JOBS):
        assert word in said


def test_recipes_are_listed_with_what_they_are(capsys: Capture) -> None:
    assert command.dispatch(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    known = [RECIPES / f"{name}.yaml" for name in recipe_names()]
    known += [LIVE / f"{name}.yaml" for name in recipe_names(LIVE)]
    for line, path in zip(lines, known, strict=True):
        first = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        assert line.split() == [path.stem, *first.split()]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["recipes"]], ids=" ".join)
def test_a_reader_that_stops_early_is_no_error(arguments: list[str]) -> None:
    """As in `distill train --help | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    whole = [sys.executable, "-m", "distill.cli", *arguments]
    done = subprocess.run(whole, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (command.UNHEARD, "")


def test_a_broken_pipe_of_another_kind_is_told() -> None:
    def job() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with pytest.raises(BrokenPipeError):
        command.guarded(job)


@pytest.mark.parametrize("job", command.JOBS)
def test_help_has_what_an_example_and_every_key(capsys: Capture, job: str) -> None:
    assert command.dispatch([job, "--help"]) == 0
    said = capsys.readouterr().out
    first, blank, *rest = said.splitlines()
    assert first.endswith(".")
    assert blank == ""
    assert re.search(rf"^(distill {job}|accelerate launch distill/{job}.py) ?.*$", said, re.MULTILINE)
    text = "\n".join(rest)
    own = (
        getattr(importlib.import_module(command.READERS[job]), "Options", Recipe) if job in command.READERS else Recipe
    )
    for key in flatten(OmegaConf.to_container(OmegaConf.structured(own))):
        plug_in = key.startswith(("clips.source.", "student.", "teacher.", "objective."))
        name = key.rpartition(".")[0] if plug_in else key
        assert re.search(rf"^  {re.escape(name)}(=\S+)? +[^ =].*", text, re.MULTILINE), f"{name} is not explained"
    assert max(map(len, said.splitlines())) <= 120


@pytest.mark.parametrize("job", command.JOBS)
def test_every_recipe_that_help_names_is_there(job: str) -> None:
    text = inspect.getdoc(command.function_of(job)) or ""
    for name in re.findall(r"recipe=(\w+)(?![\w/.])", text):
        assert name in recipe_names(LIVE if job.split()[0] in ("edge", "cloud") else RECIPES)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["tarin"], "there is no job 'tarin'; known: clips, train"),
        (["recipe=quickstart"], "there is no job 'recipe=quickstart'"),
        (["train"], "which recipe?"),
        (["train", "recipe=quickstrat"], "did you mean 'quickstart'?"),
        (["train", "recipe=quickstart", "train.stepz=3"], "'train.stepz'"),
        (["train", "recipe=quickstart", "out=[1"], "out"),
        (["quickstart", "trian.steps=3"], "'trian'"),
    ],
)
def test_mistakes_before_any_work(capsys: Capture, arguments: list[str], told: str) -> None:
    assert told in refused(capsys, command.dispatch(arguments))


MISTAKES: list[tuple[str, str]] = [  # for the job train; what the line has to name
    ("train.batch=1000", "training clips"),
    ("train.precision=fp8", "train.precision"),
    ("clips.labelled=2", "clips.labelled"),
    ("clips.labelled=nan", "clips.labelled"),
    ("clips.views.span=0", "clips.views.span"),
    ("clips.views.area=2", "clips.views.area"),
    ("clips.views.count=0", "clips.views.count"),
    ("clips.workers=-1", "workers"),
    ("clips.source.size=15", "size"),
    ("clips.source.frames=0", "frames"),
    ("clips.source.classes=[left,nope]", "'nope'"),
    ("clips.source.classes=[left]", "classes"),
    ("clips.source.train=0", "no training clips"),
    ("clips.source.test=0", "test"),
    ("student.size=33", "size is 33"),
    ("student.widths=[8]", "widths"),
    ("student.strides=[[1,2],[2,2,2],[2,2,2],[1,1,1]]", "strides"),
    ("student.latent=-1", "student"),
    ("student.dropout=2", "dropout"),
    ("train.batch=0", "train.batch"),
    ("train.batch=-4", "train.batch"),
    ("train.accumulate=0", "train.accumulate"),
    ("train.accumulate=3", "train.accumulate"),
    ("train.steps=-1", "train.steps"),
    ("optim.lr=-1", "optim.lr"),
    ("objective.cross_entropy.smoothing=2", "smoothing"),
    ("objective={cross_entropy: {weight: 0}, reconstruction: {weight: 0}}", "no term with a weight"),
    ("objective.kl.weight=1", "teacher"),
    ("teacher={name: student, run: /nowhere}", "/nowhere"),
    ("student.decoder=false", "decoder"),
    ("cache.frames=true", "distill cache"),
]


@pytest.mark.parametrize(("change", "told"), MISTAKES, ids=[change for change, _ in MISTAKES])
def test_a_mistake_in_a_value(
    capsys: Capture, tmp_path: Path, tiny_arguments: Arguments, change: str, told: str
) -> None:
    code = command.run("train", tiny_arguments("tiny", tmp_path / "run", change))
    assert told in refused(capsys, code)


def test_a_mistake_can_be_mended_in_the_same_folder(capsys: Capture, tmp_path: Path, tiny_arguments: Arguments) -> None:
    """A run that never began does not stand in the way."""
    out = tmp_path / "run"
    refused(capsys, command.run("train", tiny_arguments("tiny", out, "train.batch=1000")))
    assert command.run("train", tiny_arguments("tiny", out, "train.steps=0")) == 0


@pytest.mark.parametrize(
    ("job", "change", "told"),
    [
        ("cache", "cache.outputs=true", "nothing to cache: the recipe has no teacher"),
        ("cache", "cache.frames=true teacher={name: student, run: /nowhere}", "/nowhere"),
        ("cache", "cache.maps=attention", "cache.maps is a list, not 'attention'; say cache.maps=[...]"),
    ],
)
def test_mistakes_of_other_jobs(
    capsys: Capture, tmp_path: Path, tiny_arguments: Arguments, job: str, change: str, told: str
) -> None:
    changes = re.split(r" (?=\w+=)", change)
    assert told in refused(capsys, command.run(job, tiny_arguments("tiny", tmp_path / "run", *changes)))


def test_a_folder_that_cannot_be_made(capsys: Capture, tmp_path: Path, tiny_arguments: Arguments) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "run"
    assert str(out) in refused(capsys, command.run("train", [*tiny_arguments("tiny", tmp_path / "x"), f"out={out}"]))


def test_a_finished_run_is_not_touched(capsys: Capture, tmp_path: Path, tiny_arguments: Arguments) -> None:
    given = tiny_arguments("tiny", tmp_path / "run")
    assert command.run("train", given) == 0
    weights = (tmp_path / "run" / "student" / "model.safetensors").read_bytes()
    capsys.readouterr()
    assert "resume=true" in refused(capsys, command.run("train", given))
    assert "optim.lr" in refused(capsys, command.run("train", [*given, "resume=true", "optim.lr=1"]))
    assert "'nope'" in refused(capsys, command.run("probe", [f"run={tmp_path / 'run'}", "probes=nope"]))
    assert command.run("train", [*given, "resume=true"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert (tmp_path / "run" / "student" / "model.safetensors").read_bytes() == weights


def test_another_process_says_which_it_is(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert command.dispatch(["train", "recipe=quickstrat"]) == 2
    assert capsys.readouterr().err.startswith("error (process 1): recipe 'quickstrat' is not there")


def test_a_broken_video_is_one_line(capsys: Capture, tmp_path: Path, tiny_arguments: Arguments) -> None:
    """Whether it is met in this process or in a loader's worker."""
    for workers in (0, 1):
        broken = [f"clips.source.folder={tmp_path / 'clips'}", f"clips.workers={workers}"]
        arguments = tiny_arguments("tiny", tmp_path / f"run{workers}", *broken)
        for clip in open_manifest(read_recipe(arguments).clips, tmp_path, 0).clips:
            Path(clip.path).write_bytes(b"this is no video")
        said = refused(capsys, command.run("train", arguments))
        assert "is not a video that can be opened" in said
        assert ".mp4" in said
        assert "Traceback" not in said


def test_a_message_of_several_lines_becomes_one(capsys: Capture) -> None:
    def job() -> None:
        raise UserError("first line\n  second line")

    assert refused(capsys, command.guarded(job)) == "error: first line second line"


def test_ctrl_c_is_not_a_traceback(capsys: Capture) -> None:
    def job() -> None:
        raise KeyboardInterrupt

    assert command.guarded(job) == 130
    assert "resume=true" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback() -> None:
    def job() -> None:
        raise AssertionError("a bug of ours")

    with pytest.raises(AssertionError, match="bug of ours"):
        command.guarded(job)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "was killed (signal: Killed); if memory ran out"),
        ("[gloo/tcp] Connection closed by peer [127.0.0.1]:4", "another process of this job has ended; it says why"),
    ],
)
def test_what_torch_says_of_other_processes_is_one_line(error: str, line: str, capsys: Capture) -> None:
    def job() -> None:
        raise RuntimeError(error)

    assert command.guarded(job) == 2
    said = capsys.readouterr().err
    assert line in said
    assert len(said.strip().splitlines()) == 1


def test_another_error_of_torch_keeps_its_traceback() -> None:
    def job() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        command.guarded(job)
