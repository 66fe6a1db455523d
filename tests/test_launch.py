"""Every way of starting a job, each once, as a person would: in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sys.executable
ACCELERATE = str(Path(PYTHON).with_name("accelerate"))
TORCHRUN = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
SECONDS = 180  # a hang becomes a failure
Arguments = Callable[..., list[str]]


def start(command: list[str], folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command without help from this process: nothing of ours on its path."""
    alone = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    several = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        command, cwd=folder, env=alone | several | environment, capture_output=True, text=True, timeout=SECONDS
    )


def assert_trained(run: Path) -> None:
    assert json.loads((run / "summary.json").read_text())["steps"] == 2
    assert [row["step"] for row in read_metrics(run) if "loss" in row] == [1, 2]  # each step once, whoever trained


@pytest.mark.parametrize(
    "way",
    [[PYTHON, "-m", "distill.cli"], [PYTHON, "distill/cli.py"], [str(Path(PYTHON).with_name("distill"))]],
    ids=["as a module", "as a file", "as the installed command"],
)
def test_the_one_command(way: list[str]) -> None:
    done = start(way)
    assert done.returncode == 0, done.stderr
    assert "distill JOB recipe=NAME" in done.stdout


def test_accelerate_launch(tmp_path: Path, tiny_arguments: Arguments) -> None:
    launch = [ACCELERATE, "launch", "--cpu", "--num_processes", "1", str(ROOT / "distill" / "train.py")]
    done = start([*launch, *tiny_arguments("tiny", tmp_path / "run")], folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "run")


def test_torchrun_with_two_processes(tmp_path: Path, tiny_arguments: Arguments) -> None:
    command = [*TORCHRUN, "distill/train.py", *tiny_arguments("tiny", tmp_path / "run")]
    done = start(command, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "run")
    assert done.stdout.count("train  2/2") == 1  # the second process keeps silent


def test_processes_that_each_believe_to_be_alone_are_refused(tmp_path: Path, tiny_arguments: Arguments) -> None:
    """Started with -m, which is the last way of starting that these tests have to show."""
    done = start([*TORCHRUN, "-m", "distill.train", *tiny_arguments("tiny", tmp_path / "run")])
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert told  # torchrun stops the others when the first has ended: one line, or one of each process
    for line in told:
        assert "2 processes were launched" in line
        assert "ACCELERATE_USE_CPU=true" in line
    assert "exitcode  : 2" in done.stderr  # torchrun's account of how ours ended
    assert not (tmp_path / "run").exists()


def test_as_a_file_from_another_folder_with_spawned_workers(tmp_path: Path, tiny_arguments: Arguments) -> None:
    """Linux forks by default; macOS and Windows spawn, and a spawned worker imports everything anew."""
    (tmp_path / "site").mkdir()
    setting = "import multiprocessing\nmultiprocessing.set_start_method('spawn')\n"
    (tmp_path / "site" / "sitecustomize.py").write_text(setting)
    arguments = tiny_arguments("tiny", tmp_path / "run", "cache.frames=true", "clips.workers=1", "clips.views.count=1")
    command = [PYTHON, str(ROOT / "distill" / "cache.py"), *arguments]
    done = start(command, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    command = [PYTHON, str(ROOT / "distill" / "train.py"), *arguments, "cache.frames=false"]
    done = start(command, folder=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert_trained(tmp_path / "run")
