"""The job `measure`: fresh processes that take turns, and what is told of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import command
from distill.checkpoint import fingerprint_student, load_student
from distill.deploy import measure_race
from distill.deploy.card import ExportCard, Port, read_export, sealed, write_card
from distill.deploy.forms import TorchSession, load_form, make_card, make_form, open_run
from distill.deploy.measure_race import Asked, LostError, Worker, race
from distill.deploy.measure_request import Options, read
from distill.deploy.measure_torch import Elsewhere
from distill.deploy.measure_worker import caller, turn, video
from distill.deploy.recogniser import Recogniser
from distill.run_log import Talk

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
QUICK = ("rounds=2", "seconds=0.001")
VERIFIED = {"top1": 0.75, "student_top1": 0.875, "agreement": 0.99}


@pytest.fixture(scope="module")
def run(tiny_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one export."""
    folder = tmp_path_factory.mktemp("measure") / "run"
    shutil.copytree(tiny_run("tiny"), folder)
    form, loaded = load_form(folder, "whole")
    file = folder / "export" / "whole-fp32.onnx"
    file.parent.mkdir()
    torch.onnx.export(form, form.example(), str(file), dynamo=True, external_data=False, verbose=False)
    made = {"run": str(folder), "student": fingerprint_student(folder)}
    card = replace(make_card(folder, "whole", form, loaded, 2.0), format="onnx", origin=made, verified=VERIFIED)
    write_card(file, replace(card, **sealed([file])))
    return folder


@pytest.fixture
def file(run: Path) -> Path:
    return run / "export" / "whole-fp32.onnx"


def measured(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "measure.json").read_text())
    return found


def test_a_run_and_its_exports(run: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(run / "export" / "whole-fp32.onnx", tmp_path / "copy" / "whole-int8.onnx")  # it has no card
    given = [f"run={run}", f"files={tmp_path / 'copy' / 'whole-int8.onnx'}", f"out={tmp_path / 'out'}", *QUICK]
    assert command.run("measure", [*given, "threads=1,2"]) == 0
    told = measured(tmp_path / "out")
    good, (lost,) = ([row for row in told["rows"] if bool(row["failed"]) == bad] for bad in (False, True))
    assert [(row["kind"], row["threads"]) for row in good] == [
        (kind, threads) for kind in ("torch eager", "onnx fp32") for threads in (1, 2)
    ]
    assert "whole-int8.onnx.json is missing" in lost["failed"]
    for row in good:
        assert sorted(row["rounds"]) == ["0", "1"]
        assert row["calls"] >= 6
        assert 0 < row["least_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert row["frames_per_second"] == pytest.approx(8e3 / row["median_ms"])
        held = row["memory"]
        assert 0 < held["libraries"] <= held["loaded"] <= held["peak"]
        assert held["steady"] <= held["peak"]
        assert row["start_seconds"] > 0
    eager, exported = good[0], good[2]
    assert eager["accuracy"] == {"top1": 0.875, "of": "verified", "views": 1}
    assert exported["accuracy"] == {"top1": 0.75, "of": "verified", "views": 1}
    assert eager["faster"] is None
    assert exported["faster"]["rounds"] == 2
    assert exported["bytes"] == (run / "export" / "whole-fp32.onnx").stat().st_size
    assert exported["parameters"] == json.loads((run / "summary.json").read_text())["parameters"]
    assert exported["gflops"] == pytest.approx(json.loads((run / "summary.json").read_text())["gflops"])
    page = (tmp_path / "out" / "measure.html").read_text()
    for text in ("torch eager", "onnx fp32", "87.5", "whole-int8.onnx.json is missing", "<svg"):
        assert text in page
    captured = capsys.readouterr()
    assert "onnx fp32" in captured.out
    assert "whole-int8.onnx.json is missing" in captured.err


def test_without_exports_the_top1_is_the_training_runs(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(run, alone, ignore=shutil.ignore_patterns("export"))
    assert command.run("measure", [f"run={alone}", "threads=1", *QUICK]) == 0
    (row,) = measured(alone)["rows"]
    top1 = json.loads((run / "summary.json").read_text())["test"]["top1"]
    assert row["accuracy"] == {"top1": top1, "of": "test", "views": 1}
    assert "Hollow" in (alone / "measure.html").read_text()


def test_a_file_alone_is_compared_with_nothing(file: Path, tmp_path: Path) -> None:
    assert command.run("measure", [f"files={file}", f"out={tmp_path}", "threads=1", *QUICK]) == 0
    (row,) = measured(tmp_path)["rows"]
    assert row["faster"] is None
    assert row["parameters"] is None
    assert row["of"] == "whole-fp32.onnx"


def test_an_exported_file_meets_no_torch(file: Path) -> None:
    """Nor anything else that is large: its process's memory is told."""
    asked = vars(Asked(str(file), "whole", 1))
    code = f"{measure_race.SERVE}; import json, sys; sys.stderr.write(json.dumps(list(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        input='{"seconds": 0.001}\n',
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        cwd=measure_race.ROOT,
    )
    ready, turn = map(json.loads, done.stdout.splitlines())
    assert (ready["frames"], ready["size"]) == (8, 16)
    assert len(turn["wall_ms"]) == len(turn["cpu_ms"]) >= 3
    assert turn["answers"] > len(turn["wall_ms"])
    modules = {name.partition(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}
    assert "onnxruntime" in modules
    assert not modules & {"torch", "rich", "omegaconf", "jinja2", "matplotlib", "pandas", "sklearn", "psutil"}


def test_memory_is_the_processs_own(file: Path) -> None:
    """Linux lets a process inherit the peak of the one that started it, which is far larger here."""
    told = Worker(Asked(str(file), "whole", 1), patience=120)
    try:
        told.answer()
        assert told.ask({"seconds": 0.001})["peak"] < psutil.Process().memory_info().rss / 2
    finally:
        told.close()


NOISY = """
import os
from distill.deploy import measure_worker
turn = measure_worker.turn
def noisy(*given, **named):
    os.write(1, b"a library says hello\\n")
    return turn(*given, **named)
measure_worker.turn = noisy
measure_worker.serve()
"""
# One with two threads dies in its second turn.
DYING = """
import json, os, sys
from distill.deploy import measure_worker
turn, turns = measure_worker.turn, []
def dying(*given, **named):
    turns.append(1)
    if len(turns) == 2 and json.loads(sys.argv[1])["threads"] == 2:
        os.kill(os.getpid(), 9)
    return turn(*given, **named)
measure_worker.turn = dying
measure_worker.serve()
"""


def test_what_a_library_prints_is_no_answer(file: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(measure_race, "SERVE", NOISY)
    ((record,), _) = race([Asked(str(file), "whole", 1)], Options(rounds=2, seconds=0.001), Talk(active=False))
    assert record.failed == ""
    assert len(record.rounds) == 2


def test_a_killed_worker_is_a_row_that_says_so(file: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(measure_race, "SERVE", DYING)
    assert command.run("measure", [f"files={file}", f"out={tmp_path}", "rounds=3", "seconds=0.001"]) == 0
    lives, dead = measured(tmp_path)["rows"]
    assert len(lives["rounds"]) == 3
    assert not lives["failed"]
    assert "was killed (SIGKILL); if memory ran out" in dead["failed"]
    assert "was killed (SIGKILL)" in (tmp_path / "measure.html").read_text()


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import time; time.sleep(600)", "gave no answer in 0.5 seconds"),
        ("import sys; sys.exit('no room')", "its process ended with code 1: no room"),
        ("raise SystemExit(3)", "its process ended with code 3: it said nothing"),
    ],
)
def test_a_worker_that_gives_no_answer(monkeypatch: Patch, code: str, why: str) -> None:
    monkeypatch.setattr(measure_race, "SERVE", code)
    worker = Worker(Asked("x", "whole", 1), patience=0.5 if "sleep" in code else 120)
    try:
        with pytest.raises(LostError) as found:
            worker.answer()
    finally:
        worker.close()
    assert str(found.value) == why


def test_what_cannot_be_opened_says_why(file: Path, tmp_path: Path) -> None:
    """A file that its own runtime refuses; the card fits it."""
    bad = tmp_path / "whole-fp32.onnx"
    bad.write_bytes(b"this is no network")
    write_card(bad, replace(read_export(file), **sealed([bad])))
    ((record,), _) = race([Asked(str(bad), "whole", 1)], Options(rounds=1), Talk(active=False))
    assert "onnx" in record.failed
    assert record.rounds == {}


def test_turns_are_in_the_order_that_was_drawn(file: Path, monkeypatch: Patch) -> None:
    turns, ask = [], Worker.ask

    def noted(worker: Worker, question: dict[str, Any]) -> dict[str, Any]:
        turns.append(workers.index(worker))
        return ask(worker, question)

    workers: list[Worker] = []
    start = Worker.__init__

    def started(worker: Worker, asked: Asked, patience: float) -> None:
        workers.append(worker)
        start(worker, asked, patience)

    monkeypatch.setattr(Worker, "ask", noted)
    monkeypatch.setattr(Worker, "__init__", started)
    asked = [Asked(str(file), "whole", threads) for threads in (1, 2, 3)]
    race(asked, Options(rounds=4, seconds=0.001, seed=7), Talk(active=False))
    assert turns == [place for order in measure_race.orders(3, 4, 7) for place in order]
    for worker in workers:
        assert worker.process.returncode is not None
        assert not psutil.pid_exists(worker.process.pid)


def test_frames_are_moving_pictures_of_every_size() -> None:
    film = video(6, 40)
    assert film.shape == (6, 40, 40, 3)
    assert film.dtype == np.uint8
    assert film.min() < 60
    assert film.max() > 190
    moved = np.abs(film[1:].astype(int) - film[:-1]).mean((1, 2, 3))
    assert (moved > 1).all()
    assert video(1, 1).shape == (1, 1, 1, 3)


def test_other_ways_of_torch_say_the_same(run: Path) -> None:
    """What runs on a GPU, here on the processor."""
    form, _ = load_form(run, "whole")
    clip = video(8, 16)[None].astype(np.float32)
    (wanted,) = TorchSession(form)([clip])
    (eager,) = Elsewhere(form, "eager", "cpu")([clip])
    (half,) = Elsewhere(form, "bf16", "cpu")([clip])
    assert eager == pytest.approx(wanted)
    assert half.dtype == np.float32
    assert half == pytest.approx(wanted, abs=0.05 * float(np.abs(wanted).max()))
    assert not np.array_equal(half, wanted)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "what is to be measured? say run=DIR"),
        (["run"], "'run' is not key=value"),
        (["run=/nowhere"], "run=/nowhere is not there"),
        (["run=."], "holds no finished student"),
        (["files=/nowhere.tflite", "out=x"], "files=/nowhere.tflite is not there"),
        (["files=/nowhere.tflite"], "out= is missing"),
        (["run=.", "threads=0"], "threads=[0]"),
        (["run=.", "threads=[]"], "threads=[]"),
        (["run=.", "threads=two"], "threads"),
        (["run=.", "rounds=0"], "rounds is 0"),
        (["run=.", "seconds=0"], "seconds is 0"),
        (["run=.", "seconds=nan"], "seconds is nan"),
        (["run=.", "patience=-1"], "patience is -1"),
        (["run=.", "secondz=3"], "did you mean 'seconds'?"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], told: str, capsys: Capture) -> None:
    assert command.run("measure", arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert told in lines[0]


def test_where_figures_go(run: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    shutil.copytree(run / "student", tmp_path / "other" / "student")
    assert read([f"run={run}"]).out == str(run)
    assert read([f"run={run},{tmp_path / 'other'}"]).out == os.path.commonpath([run, tmp_path])
    assert read([f"run={run}", "out=here"]).out == "here"
    monkeypatch.chdir(tmp_path)
    assert read([f"run=other,{run}"]).out == os.path.commonpath([run, tmp_path])


def test_a_card_names_the_run_that_a_file_came_from(run: Path, file: Path, tmp_path: Path) -> None:
    """A file from elsewhere is compared with its own run's student, and with no other's."""
    strange = tmp_path / "strange.onnx"
    shutil.copy(file, strange)
    card: ExportCard = read_export(file)
    write_card(strange, replace(card, origin={"run": "/another/run"}))
    moved = tmp_path / "moved.onnx"
    shutil.copy(file, moved)
    write_card(moved, card)
    given = [f"run={run}", f"files={strange},{moved}", f"out={tmp_path}", "threads=1", *QUICK]
    assert command.run("measure", given) == 0
    compared = {Path(row["path"]).name: bool(row["faster"]) for row in measured(tmp_path)["rows"] if not row["how"]}
    assert compared == {"whole-fp32.onnx": True, "strange.onnx": False, "moved.onnx": True}


def test_a_file_of_the_student_that_was_there_before(run: Path, tmp_path: Path) -> None:
    """It is no file of the student that is there now."""
    shutil.copytree(run, tmp_path / "run")
    weights = tmp_path / "run" / "student" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(weights).items()}, weights)
    assert command.run("measure", [f"run={tmp_path / 'run'}", "threads=1", *QUICK]) == 0
    rows = {row["kind"]: row for row in measured(tmp_path / "run")["rows"]}
    assert "is of another student than" in rows["whole-fp32.onnx"]["failed"]
    assert rows["torch eager"]["accuracy"]["of"] == "test"


def test_when_nothing_can_be_measured(file: Path, tmp_path: Path, capsys: Capture) -> None:
    bad = tmp_path / "whole-fp32.onnx"
    bad.write_bytes(b"this is no network")
    write_card(bad, replace(read_export(file), **sealed([bad])))
    assert command.run("measure", [f"files={bad}", f"out={tmp_path}", "threads=1", *QUICK]) == 2
    assert f"error: nothing could be measured: {bad} cannot be opened" in capsys.readouterr().err
    assert measured(tmp_path)["warnings"] == []


def test_where_no_figures_can_go(file: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").write_text("a file")
    assert command.run("measure", [f"files={file}", f"out={tmp_path / 'out'}", *QUICK]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path / 'out'}: File exists; choose another out=\n"


def test_a_run_knows_how_much_of_time_its_clips_span(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert open_run(run, "whole").card.seconds == summary["clip_seconds"] == pytest.approx(1.2)


def test_a_file_of_several_clips_is_measured_by_the_clip(run: Path, tmp_path: Path) -> None:
    file, batch = tmp_path / "whole-fp32-batch4.onnx", 4
    form = make_form("whole", load_student(run), batch)
    torch.onnx.export(form, form.example(), str(file), dynamo=True, external_data=False, verbose=False)
    card = make_card(run, "whole", form, load_form(run, "whole")[1], 2.0)
    write_card(file, replace(card, format="onnx", verified=VERIFIED, **sealed([file])))
    assert command.run("measure", [f"files={file}", "threads=1", f"out={tmp_path}", *QUICK]) == 0
    (row,) = measured(tmp_path)["rows"]
    assert (row["kind"], row["failed"]) == ("onnx fp32, batch 4", "")
    assert row["frames_per_second"] == pytest.approx(8e3 / row["median_ms"])
    for told in row["rounds"].values():
        assert told["answers"] % batch == 0
        assert told["answers"] > batch * len(told["wall_ms"])


def test_torch_is_asked_about_as_many_clips_as_are_wanted(run: Path) -> None:
    asked = [Asked(str(run), "encoder", 1, "eager", batch=batch) for batch in (1, 4)]
    records, _ = race(asked, Options(rounds=1, seconds=0.001), Talk(active=False))
    answers = [record.rounds[0]["answers"] for record in records]
    assert answers[1] % 4 == 0
    assert not any(record.failed for record in records)


def test_an_answer_s_time_is_its_share_of_a_call() -> None:
    told = turn(lambda: time.sleep(0.02), 5, 0.001)
    assert told["answers"] == 5 * (len(told["wall_ms"]) + 1)
    assert all(4 <= ms < 20 for ms in told["wall_ms"])


@pytest.mark.parametrize("form", ["whole", "stream"])
def test_every_call_sees_other_frames(form: str) -> None:
    """And a stream's state goes on from call to call."""
    seen: list[list[np.ndarray]] = []

    def session(given: Sequence[np.ndarray]) -> list[np.ndarray]:
        seen.append([array.copy() for array in given])
        return [np.zeros((1, 2), np.float32), *(state + 1 for state in given[1:])]

    streams = form == "stream"
    state = [Port("state", (1, 3), "float32")] if streams else []
    pixels = Port("clip", (1, 8, 16, 16, 3), "uint8")
    ports = {"inputs": [pixels, *state], "outputs": [Port("logits", (1, 2), "float32"), *state]}
    card = ExportCard(form, "onnx", "fp32", "tsn", ["a", "b"], frames=8, size=16, seconds=2.0, **ports)
    call = caller(Recogniser(card, session))
    for _ in range(3):
        call()
    assert [given[0].shape for given in seen] == [(1, 16, 16, 3) if streams else (1, 8, 16, 16, 3)] * 3
    assert not np.array_equal(seen[0][0], seen[1][0])
    assert not np.array_equal(seen[1][0], seen[2][0])
    assert [given[1:] and float(given[1].max()) for given in seen] == ([0.0, 1.0, 2.0] if streams else [[], [], []])
