"""The promises of the loop: pinned curves, cached == live, resume == uninterrupted, two processes == one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.deploy import measure_runs
from distill.errors import UserError
from distill.pages import percent
from distill.recipe import read_recipe
from distill.run_log import read_metrics
from distill.teaching.caching import cache
from distill.training import train

ROOT = Path(__file__).resolve().parents[1]
CURVES = ROOT / "tests" / "losses"


def run(out: Path, *changes: str) -> Path:
    """Train recipes/tiny.yaml with changes; returns the run folder."""
    train(read_recipe(["recipe=tiny", f"out={out}", *changes]))
    return out


def curve(folder: Path) -> list[dict[str, float]]:
    """The raw loss terms of every step."""
    rows = (row for row in read_metrics(folder) if "loss" in row)
    return [{key: value for key, value in row.items() if key == "loss" or key.startswith("raw.")} for row in rows]


def gap(ours: Path, theirs: Path) -> float:
    """The largest difference between two runs' curves, as a share of the loss."""
    pairs = list(zip(curve(ours), curve(theirs), strict=True))
    assert len(pairs) >= 10
    return max(abs(a[key] - b[key]) / b["loss"] for a, b in pairs for key in a.keys() | b.keys())


def test_a_run_folder_belongs_to_one_job_at_a_time(tmp_path: Path) -> None:
    """The second is refused while the first is at work, however far it is; a job that was killed holds nothing."""
    script = "import sys, time; from distill.shards.claims import Claims; from pathlib import Path; "
    script += "claims = Claims(Path(sys.argv[1])); print(claims.take(0), flush=True); time.sleep(100)"
    command = [sys.executable, "-c", script, str(tmp_path / "run" / ".claim")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with pytest.raises(UserError, match=r"another job is at work in .*run; wait for it, or choose another out="):
            run(tmp_path / "run")
        assert not (tmp_path / "run" / "recipe.yaml").exists()
        other.kill()
    run(tmp_path / "run", "train.steps=1")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("teacher") / "run", "clips.labelled=1")


def distilled(teacher: Path, folder: Path) -> list[str]:
    """Changes that make the tiny recipe learn from a teacher."""
    return [
        "teacher.name=student",
        f"teacher.run={teacher}",
        "objective.kl.weight={to: 1, over: 4 steps}",
        f"cache.folder={folder / 'cache'}",
    ]


@pytest.fixture
def double() -> Iterator[None]:
    """Networks in float64: what a processor or a number of threads does to the last digits stays down there."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["tiny", "tiny_distilled"])
def test_pinned_curve(name: str, tmp_path: Path) -> None:
    """A refactor leaves these numbers alone; a change that moves them rewrites the file and says why."""
    changes = []
    if name == "tiny_distilled":
        changes = ["cache.outputs=false", *distilled(run(tmp_path / "teacher", "clips.labelled=1"), tmp_path)]
    found = curve(run(tmp_path / "run", *changes))
    path = CURVES / f"{name}.txt"
    if os.environ.get("PIN"):
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    pinned = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(found) == len(pinned)
    for ours, theirs in zip(found, pinned, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("float16", 2e-4)])
def test_cached_teacher_gives_the_curve_of_the_live_one(
    precision: str, tolerance: float, tmp_path: Path, teacher: Path
) -> None:
    changes = distilled(teacher, tmp_path)
    live = run(tmp_path / "live", *changes, "cache.outputs=false")
    changes.append(f"cache.precision={precision}")
    cache(read_recipe(["recipe=tiny", f"out={tmp_path / 'unused'}", *changes]))
    cached = run(tmp_path / "cached", *changes)
    assert gap(cached, live) < tolerance
    without = run(tmp_path / "without", *changes, "objective.kl.weight=0")
    assert curve(without)[-1]["raw.cross_entropy"] != curve(live)[-1]["raw.cross_entropy"]


def test_stored_frames_give_the_curve_of_decoded_ones(tmp_path: Path) -> None:
    decoded = run(tmp_path / "decoded")
    stored = [f"cache.folder={tmp_path / 'cache'}", "cache.frames=true"]
    cache(read_recipe(["recipe=tiny", f"out={tmp_path / 'unused'}", *stored]))
    assert curve(run(tmp_path / "stored", *stored)) == curve(decoded)


@pytest.mark.parametrize("stored", [False, True])
def test_a_test_of_several_views_tells_what_one_look_says_too(stored: bool, tmp_path: Path) -> None:
    """The numbers of a run that was tested by one look only; the same with stored frames, and on the pages."""
    kept = ["cache.frames=true", f"cache.folder={tmp_path / 'cache'}"] if stored else []
    if stored:
        cache(read_recipe(["recipe=tiny", f"out={tmp_path / 'unused'}", *kept]))
    once = run(tmp_path / "once", *kept)
    several = run(tmp_path / "several", *kept, "clips.views.test_clips=3", "clips.views.test_crops=3")
    plain, both = (json.loads((folder / "summary.json").read_text()) for folder in (once, several))
    assert "realtime" not in plain
    assert both["realtime"] == pytest.approx(plain["test"], rel=1e-5)
    latents = [load_file(folder / "answers.safetensors")["latent"] for folder in (once, several)]
    assert (latents[0] - latents[1]).abs().max() > 1e-3 * latents[0].abs().max()  # those are means over the views
    top1 = plain["test"]["top1"]
    report = (several / "report.html").read_text()
    assert "real time" in report
    assert f'<td class="number">{percent(top1)}</td>' in report
    assert "real time" not in (once / "report.html").read_text()
    card = (several / "student" / "README.md").read_text()
    assert f"in real time, by one look at each clip | {top1:.1%} |" in card
    assert measure_runs.trained(several, ["whole"]).test_top1 == both["realtime"]["top1"]


def test_workers_do_not_change_the_curve(tmp_path: Path) -> None:
    assert curve(run(tmp_path / "two", "clips.workers=2")) == curve(run(tmp_path / "none", "clips.workers=0"))


def test_training_without_its_cache_is_refused_at_once(tmp_path: Path, teacher: Path) -> None:
    with pytest.raises(UserError, match="distill cache"):
        run(tmp_path / "run", *distilled(teacher, tmp_path))


def test_the_teacher_does_not_move_the_student(tmp_path: Path, teacher: Path) -> None:
    """Building and asking a teacher leaves weights and random numbers of a student alone."""
    alone = run(tmp_path / "alone", "train.steps=10")
    changes = [*distilled(teacher, tmp_path), "cache.outputs=false", "train.steps=10", "objective.kl.weight=1e-30"]
    assert [row["raw.cross_entropy"] for row in curve(run(tmp_path / "beside", *changes))] == [
        row["raw.cross_entropy"] for row in curve(alone)
    ]


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    out = run(tmp_path / "run", "train.steps=2")
    with pytest.raises(UserError, match="resume=true"):
        run(out, "train.steps=2")
    with pytest.raises(UserError, match=r"train\.steps"):
        run(out, "train.steps=3", "resume=true")
    before = (out / "student" / "model.safetensors").stat().st_mtime_ns
    run(out, "train.steps=2", "resume=true")
    assert (out / "student" / "model.safetensors").stat().st_mtime_ns == before


def command(out: Path, *changes: str) -> list[str]:
    return [sys.executable, str(ROOT / "distill" / "train.py"), "recipe=tiny", f"out={out}", *changes]


def test_kill_and_resume_is_bit_identical(tmp_path: Path) -> None:
    """kill -9 at random moments, then go on: the same weights and the same curve as if nothing had happened."""
    long = ["train.steps=60", "train.checkpoint_every=7", "train.log_every=3", "student.dropout=0.2"]
    whole = run(tmp_path / "whole", *long)
    broken, dice, kills = tmp_path / "broken", random.Random(), 0
    for goal in sorted(dice.sample(range(2, 55), 3)):
        process = subprocess.Popen(command(broken, *long, "resume=true"), stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            rows = read_metrics(broken)
            if rows and rows[-1]["step"] >= goal:
                break
            time.sleep(dice.uniform(0, 0.02))
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 1
    subprocess.run(command(broken, *long, "resume=true"), check=True, stdout=subprocess.DEVNULL)
    ours, theirs = (
        load_file(broken / "student" / "model.safetensors"),
        load_file(whole / "student" / "model.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert curve(broken) == curve(whole)


@pytest.mark.usefixtures("double")
def test_two_processes_give_the_curve_of_one(tmp_path: Path) -> None:
    """Half of the clips have no label, so this also shows that masked means add up over processes."""
    one = run(tmp_path / "one")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    two = tmp_path / "two"
    script = [str(ROOT / "tests" / "in_double.py"), *command(two)[2:]]
    subprocess.run([*launch, *script], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=300, cwd=ROOT)
    assert gap(two, one) < 1e-8
    ours, theirs = (json.loads((folder / "summary.json").read_text())["test"] for folder in (two, one))
    assert ours == pytest.approx(theirs, rel=1e-6)
