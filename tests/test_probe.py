"""The probe as a job: from runs and from files, stopped and gone on with, on one process and on two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distill import command
from distill.checkpoint import fingerprint_student, load_student
from distill.clips.clipset import ClipSet
from distill.clips.manifest import SPLITS
from distill.evaluate import collect
from distill.probing import encode, judging
from distill.probing.base import Array
from distill.probing.classifiers import PROBES
from distill.probing.kept import Kept
from distill.probing.saved import encoder_id, load_probe, said_about
from distill.probing.table import LatentTable
from distill.recipe import read_recipe
from distill.training import see_clips, start

Capture = pytest.CaptureFixture[str]
FAST = "probes=ridge,knn"
NO_VAL = {"X_val": None, "y_val": None}


def latents(folder: Path, signal: float = 3.0, **changes: Any) -> Path:
    """A file of latents of four classes that lie `signal` apart; changes replace arrays, None removes them."""
    draw, given = np.random.default_rng(1), dict[str, Any]()
    middle = draw.normal(size=(4, 6)) * signal
    for split, rows in (("train", 200), ("val", 40), ("test", 120)):
        given[f"y_{split}"] = label = np.arange(rows) % 4
        given[f"X_{split}"] = (middle[label] + draw.normal(size=(rows, 6))).astype(np.float32)
    given = {name: value for name, value in (given | changes).items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "latents.npz", **given)
    return folder / "latents.npz"


def probed(*arguments: object) -> dict[str, Any]:
    """The answer, without what differs from call to call."""
    given = [str(argument) for argument in arguments]
    assert command.run("probe", given) == 0
    out = next(value for key, _, value in (one.partition("=") for one in reversed(given)) if key in ("out", "run"))
    return timeless(json.loads(Path(out, "probe.json").read_text()))


def timeless(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key != "cost"}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


# ---------------------------------------------------------------- latents from a file


@pytest.mark.parametrize("folds", [0, 3])
def test_every_classifier_finds_what_is_there_and_nothing_else(tmp_path: Path, folds: int) -> None:
    """But for the two that take many seconds at any size, with every one."""
    names = [name for name in PROBES if folds == 0 or name not in ("mlp", "random_forest")]
    clear, noise = (
        probed(
            f"latents={latents(tmp_path / name, strength)}",
            f"out={tmp_path / name}",
            f"probes={','.join(names)}",
            f"folds={folds}",
        )
        for name, strength in (("clear", 3.0), ("noise", 0.0))
    )
    assert list(clear["probes"]) == names
    assert clear["chance"] == 0.25
    for name in names:
        found = clear["probes"][name]
        assert found["test"]["top1"] > 0.85, name
        assert found["folds"]["count"] == max(1, folds)
        assert abs(noise["probes"][name]["test"]["top1"] - 0.25) < 0.15, name
        assert found["curve"][-1]["rows"] == 200
        assert [point["rows"] for point in found["curve"]] == sorted({point["rows"] for point in found["curve"]})


def test_figures_are_those_of_the_plain_search(tmp_path: Path) -> None:
    file = latents(tmp_path, 0.7)
    found = probed(f"latents={file}", f"out={tmp_path}", "probes=ridge", "folds=5", "seed=3")["probes"]["ridge"]
    given = np.load(file)
    cuts = StratifiedKFold(5, shuffle=True, random_state=3)
    grid = {"ridgeclassifier__alpha": PROBES["ridge"].grid(200)["alpha"]}
    plain = GridSearchCV(make_pipeline(StandardScaler(), RidgeClassifier()), grid, cv=cuts)
    plain.fit(given["X_train"].astype(np.float64), given["y_train"])
    assert found["setting"]["alpha"] == plain.best_params_["ridgeclassifier__alpha"]
    assert found["folds"]["mean"] == pytest.approx(plain.best_score_)
    assert found["test"]["top1"] == pytest.approx(plain.score(given["X_test"], given["y_test"]))
    assert found["test"]["interval"][0] < found["test"]["top1"] < found["test"]["interval"][1]
    support = [row["support"] for row in found["classes"]]
    assert support == [30] * 4


def test_the_test_split_chooses_nothing(tmp_path: Path) -> None:
    """With other test labels everything is the same but the test's figures."""
    shuffled = np.random.default_rng(5).permutation(np.arange(120) % 4)
    one, other = (
        probed(f"latents={latents(tmp_path / name, 0.7, **change)}", f"out={tmp_path / name}", FAST, "folds=3")
        for name, change in (("a", {}), ("b", {"y_test": shuffled}))
    )
    for name in ("ridge", "knn"):
        mine, theirs = one["probes"][name], other["probes"][name]
        assert {key: mine[key] for key in ("setting", "grid", "folds", "curve")} == {
            key: theirs[key] for key in ("setting", "grid", "folds", "curve")
        }
        assert mine["test"]["top1"] > theirs["test"]["top1"] + 0.2


def test_a_fitted_classifier_says_again_what_it_said(tmp_path: Path) -> None:
    file = latents(tmp_path)
    found = probed(f"latents={file}", f"out={tmp_path}", FAST, "folds=3")
    given = np.load(file)
    for name in ("ridge", "knn"):
        folder = tmp_path / "probe" / "latents" / name
        again = load_probe(folder / "probe.safetensors")
        said = again.probe.predict(given["X_test"])
        assert said.tolist() == json.loads((folder / "found.json").read_text())["part"]["said"]
        assert (said == given["y_test"]).mean() == pytest.approx(found["probes"][name]["test"]["top1"])
        assert again.classes == ["0", "1", "2", "3"]


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = (f"latents={latents(tmp_path)}", f"out={tmp_path}", FAST, "folds=4")
    before = probed(*given)
    monkeypatch.setattr(judging, "ProbeSearchCV", None)
    assert probed(*given) == before
    with pytest.raises(TypeError, match="not callable"):  # another question is asked anew
        probed(*given[:-1], "folds=5")


def test_a_part_that_is_not_as_it_was_left_is_made_again(tmp_path: Path) -> None:
    given = (f"latents={latents(tmp_path)}", f"out={tmp_path}", "probes=ridge", "folds=3")
    whole, folder = probed(*given), tmp_path / "probe" / "latents" / "ridge"
    kept = {name: (folder / name).read_bytes() for name in ("search.json", "found.json", "probe.safetensors")}
    top1 = str(whole["probes"]["ridge"]["test"]["top1"]).encode()
    damages: list[tuple[str, bytes | None]] = [
        ("found.json", kept["found.json"].replace(top1, b"NaN")),
        ("found.json", kept["found.json"][:-9]),
        ("found.json", b"[1]"),
        ("search.json", kept["search.json"].replace(b"0.", b"1.")),
        ("probe.safetensors", kept["probe.safetensors"][:-9]),
        ("probe.safetensors", None),
    ]
    for name, damaged in damages:
        for lost in {name, "found.json"} if name == "search.json" else {name}:
            (folder / lost).unlink()
        if damaged is not None:
            (folder / name).write_bytes(damaged)
        assert probed(*given) == whole
        assert (folder / "probe.safetensors").read_bytes() == kept["probe.safetensors"]


def test_what_another_question_left_half_done_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table is judged; then another one, until its classifier is saved; then the first again."""
    files = [latents(tmp_path / name, spread) for name, spread in (("a", 0.7), ("b", 3.0))]
    first, second = ((f"latents={file}", f"out={tmp_path}", "probes=ridge", "folds=3") for file in files)
    whole, saved = probed(*first), tmp_path / "probe" / "latents" / "ridge" / "probe.safetensors"
    fitted = saved.read_bytes()

    def stopped(kept: Kept, name: str, part: object) -> None:
        if name == "found.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Kept, "write", stopped)
        assert command.run("probe", second) == 130
    assert saved.read_bytes() != fitted
    assert probed(*first) == whole
    assert saved.read_bytes() == fitted


def test_two_jobs_do_not_mix_up_their_answers(tmp_path: Path, capsys: Capture) -> None:
    held = "import sys; from pathlib import Path; from distill.shards.claims import Claims\n"
    held += "with Claims(Path(sys.argv[1])) as claims: claims.take(0); print(flush=True); sys.stdin.read()"
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(tmp_path / ".claim")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    given = [f"latents={latents(tmp_path)}", f"out={tmp_path}", FAST, "folds=3"]
    assert command.run("probe", given) == 2
    assert "another job is at work in" in capsys.readouterr().err
    other.communicate()
    assert command.run("probe", given) == 0


def test_fewer_labels(tmp_path: Path) -> None:
    given = (f"latents={latents(tmp_path)}", f"out={tmp_path}", FAST, "folds=3")
    assert probed(*given, "labelled=0.5")["latents"]["rows"] == {"train": 100, "val": 40, "test": 120}
    assert probed(*given)["latents"]["rows"] == {"train": 200, "val": 40, "test": 120}


def test_small_classes_have_a_hold_out_too(tmp_path: Path) -> None:
    """Without a validation split, and of fewer rows than a tenth is taken of."""
    few = {"X_train": np.random.default_rng(0).normal(size=(20, 6)), "y_train": np.arange(20) % 4} | NO_VAL
    found = probed(f"latents={latents(tmp_path, **few)}", f"out={tmp_path}", FAST, "folds=0")
    assert found["probes"]["ridge"]["folds"]["count"] == 1
    assert {point["rows"] for point in found["probes"]["ridge"]["curve"]} >= {16}


def test_names_of_folders_are_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = latents(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("007", "1e3", "yes", "${seed}"):
        assert command.run("probe", [f"latents={file}", f"out={name}", "probes=ridge", "folds=2"]) == 0
        assert (tmp_path / name / "probe.json").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from distill.command import run

left, name = int(sys.argv[1]), Path.replace

def replace(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return name(self, target)

Path.replace = replace
sys.exit(run("probe", sys.argv[2:]))
"""


def test_killed_again_and_again_it_goes_on(tmp_path: Path) -> None:
    """kill -9 in the middle of writing something: the answer is the same."""
    file, probes = latents(tmp_path / "whole"), ("probes=ridge,svm_rbf,decision_tree", "folds=4", "seed=2")
    whole = probed(f"latents={file}", f"out={tmp_path / 'whole'}", *probes)
    arguments, ends = [f"latents={file}", f"out={tmp_path / 'killed'}", *probes], list[int]()
    while not ends or ends[-1]:
        command_line = [sys.executable, "-c", KILLED, str(5 + 2 * len(ends)), *arguments]
        ends.append(subprocess.run(command_line, stdout=subprocess.DEVNULL, timeout=120).returncode)
        assert ends[-1] in (0, -signal.SIGKILL)
        assert len(ends) < 10
    assert len(ends) > 2
    assert timeless(json.loads((tmp_path / "killed" / "probe.json").read_text())) == whole


MISTAKES: list[tuple[dict[str, Any], Sequence[str], str]] = [
    ({"X_test": np.full((120, 6), np.nan)}, (), "row 0 of test has numbers that are not finite"),
    ({"y_train": np.repeat([0, 1, 2, 3], [190, 5, 3, 2])}, (), "class 3 has 2 rows in train, fewer than the 10 folds"),
    ({"y_train": np.zeros(200, int)}, (), "all rows of train are of one class"),
    ({"X_val": np.zeros((0, 6)), "y_val": np.zeros(0, int)}, (), "the split val is empty"),
    ({"X_val": np.zeros((40, 7))}, (), "latents of val have 7 numbers, those of train 6"),
    ({"y_test": None}, (), "has no y_test (labels)"),
    ({"y_train": np.full(200, -1)}, (), "rows have no label"),
    ({}, ("probes=svn",), "there is no probe named 'svn'"),
    ({}, ("folds=1",), "probe.folds is 1"),
    ({}, ("folds=many",), "folds: Value 'many'"),
    ({}, ("budget=soon",), "soon"),
    ({}, ("budgte=1h",), "there is no key 'budgte'; did you mean 'budget'?"),
    ({}, ("probes=svm_rbf", "budget=0.0001s"), "svm_rbf"),
    ({"X_test": np.full((120, 6), 1e30)}, (), "row 0 of test has a number of 1e+30; divide latents"),
    ({"X_train": np.zeros((200, 0))}, (), "latents of train are empty"),
    ({"y_train": np.repeat(["a", "b"], 100)}, (), "labels are all names, or all whole numbers; those of train are na"),
    ({"y_test": np.full(120, 1e30)}, (), "are labels, so whole numbers or names, not 1e+30"),
    ({"y_train": np.array(["a", "b\udcff"])[np.arange(200) % 2], "y_test": np.full(120, "a")} | NO_VAL, (), "not text"),
    ({"y_train": np.repeat([0, 1, 2, 3], [100, 50, 49, 1])} | NO_VAL, ("folds=0",), "class 3 has one row in train"),
    ({}, ("labelled=0",), "probe.labelled is 0.0; it is a share above 0 and up to 1"),
    ({}, ("teacher=false",), "teacher= is about runs"),
    ({}, ("folds=3", "folds=4"), "folds= is given twice"),
    ({}, ("run=here",), "say run=DIR (or run=A,B,C), or latents=FILE out=DIR"),
]


@pytest.mark.parametrize(("changes", "arguments", "told"), MISTAKES, ids=[told for *_, told in MISTAKES])
def test_a_mistake_is_one_line(
    capsys: Capture, tmp_path: Path, changes: dict[str, Any], arguments: Sequence[str], told: str
) -> None:
    given = [f"latents={latents(tmp_path, **changes)}", f"out={tmp_path}", *arguments]
    assert command.run("probe", given) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert told in lines[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "what is to be judged?"),
        (["run="], "run= names no folder"),
        (["run=/nowhere"], "/nowhere is no run folder"),
        (["latents=/nowhere.npz", "out=x"], "/nowhere.npz: No such file"),
        (["latents=x.npz"], "out= is missing"),
        (["runs/tiny"], "'runs/tiny' is not key=value"),
    ],
)
def test_a_mistake_in_what_to_judge_is_one_line(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.run("probe", arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_npz_is_one_line(capsys: Capture, tmp_path: Path) -> None:
    path = latents(tmp_path)
    rows = dict(np.load(path))
    np.savez_compressed(path, **rows)
    packed = path.read_bytes()
    damaged, renamed, text = (tmp_path / f"{name}.npz" for name in ("damaged", "renamed", "text"))
    damaged.write_bytes(packed[:80] + bytes(60) + packed[140:])
    with renamed.open("wb") as stream:
        np.save(stream, rows["X_train"])
    with ZipFile(text, "w") as archive:
        archive.writestr("X_train", "no array")
    for file in (damaged, renamed, text):
        assert command.run("probe", [f"latents={file}", f"out={tmp_path / 'out'}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(file) in line


def test_the_report_of_a_run_is_not_written_over(run: Path, capsys: Capture) -> None:
    assert command.run("probe", [f"latents={latents(run.parent)}", f"out={run}", FAST]) == 2
    assert "is the folder of a run" in capsys.readouterr().err


# ---------------------------------------------------------------- students of runs


def opened(run: Path, *changes: str) -> ClipSet:
    recipe = read_recipe([f"recipe={run / 'recipe.yaml'}", f"out={run}", "clips.labelled=1", *changes])
    return see_clips(recipe, start(recipe))


@pytest.fixture
def run(tmp_path: Path, tiny_arguments: Callable[..., list[str]]) -> Path:
    own = f"clips.source.folder={tmp_path / 'clips'}"
    assert command.run("train", tiny_arguments("tiny", tmp_path / "run", "clips.source.train=12", own)) == 0
    return tmp_path / "run"


@pytest.mark.parametrize("views", [[], ["clips.views.test_clips=2"]], ids=["one view", "mean of two"])
def test_latents_are_what_the_student_makes_of_the_clips(run: Path, views: list[str]) -> None:
    probed(f"run={run}", FAST, "folds=2", *views)
    table, clips = LatentTable.open(run / "probe" / "student" / "table"), opened(run, *views)
    recipe = read_recipe([f"recipe={run / 'recipe.yaml'}"])
    for split in SPLITS:
        wanted = collect(load_student(run), clips, clips.manifest.of(split), 4, start(recipe))
        found = table.splits[split]
        assert found.latent == pytest.approx(wanted.latent, abs=1e-5)
        assert found.label.tolist() == wanted.label.tolist()
        assert found.clips == [clips.manifest.clips[i].id for i in wanted.index]
    assert table.about["run"] == str(run)
    made_by = fingerprint_student(run)
    fitted = sorted((run / "probe" / "student").rglob("probe.safetensors"))
    assert [encoder_id(said_about(file)) for file in fitted] == [made_by] * len(fitted)
    assert fitted


def test_a_probe_that_tells_of_no_student_is_fitted_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(encode, "fingerprint_student", lambda _: "another")
        found = probed(f"run={run}", FAST, "folds=2")
    fitted = sorted((run / "probe" / "student").rglob("probe.safetensors"))
    assert {encoder_id(said_about(file)) for file in fitted} == {"another"}
    assert timeless(probed(f"run={run}", FAST, "folds=2")) == timeless(found)
    assert {encoder_id(said_about(file)) for file in fitted} == {fingerprint_student(run)}


def test_a_run_leaves_its_answer_and_pages(run: Path, capsys: Capture) -> None:
    found = probed(f"run={run}", FAST, "folds=2")
    assert set(found) == {"chance", "classes", "latents", "probes"}
    assert found["latents"]["rows"] == {"train": 24, "val": 2, "test": 2}
    for page in ("probe.html", "probe.md", "report.html"):
        assert "knn" in (run / page).read_text(), page
    said = capsys.readouterr().out
    assert "CPU time, expected" in said
    assert "no latents of a teacher" in said
    encoded = sorted((run / "probe" / "encoding").rglob("*.safetensors"))
    times = [file.stat().st_mtime_ns for file in encoded]
    assert probed(f"run={run}", FAST, "folds=2") == found
    assert [file.stat().st_mtime_ns for file in encoded] == times  # nothing was encoded again


def test_clips_that_cannot_be_read_count_as_wrong(run: Path) -> None:
    whole = probed(f"run={run}", FAST, "folds=2")
    clips = opened(run).manifest
    for split in ("train", "test"):
        Path(clips.clips[clips.of(split)[0]].path).write_bytes(b"this is no video")
    for kept in (run / "probe" / "encoding").rglob("v000/*.safetensors"):
        kept.unlink()
    found = probed(f"run={run}", FAST, "folds=2")
    assert found["latents"]["rows"]["train"] == whole["latents"]["rows"]["train"] - 1
    for name in ("ridge", "knn"):
        assert found["probes"][name]["test"]["clips"] == whole["probes"][name]["test"]["clips"]
        assert found["probes"][name]["test"]["top1"] <= 0.5


def test_two_processes_encode_what_one_does(run: Path) -> None:
    one = probed(f"run={run}", FAST, "folds=2")
    table = run / "probe" / "student" / "table" / "test.latent.npy"
    alone: Array = np.load(table)
    for kept in (run / "probe").rglob("*.*"):
        if kept.is_file():
            kept.unlink()
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "distill/probe.py"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [*launch, f"run={run}", FAST, "folds=2"], cwd=root, env=environment, capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 on the test clips") == 1
    assert np.load(table) == pytest.approx(alone, abs=1e-5)
    assert timeless(json.loads((run / "probe.json").read_text()))["probes"].keys() == one["probes"].keys()


def test_runs_are_compared_with_each_other_and_with_their_teacher(
    tmp_path: Path, tiny_arguments: Callable[..., list[str]]
) -> None:
    teacher = tmp_path / "runs" / "teacher"
    assert command.run("train", tiny_arguments("tiny", teacher, "clips.source.train=12")) == 0
    more = ["clips.source.train=12", "objective.kl={weight: 1}", f"teacher={{name: student, run: {teacher}}}"]
    given = {name: tiny_arguments("tiny", tmp_path / "runs" / name, *more, "cache.outputs=true") for name in "ab"}
    for name, arguments in given.items():
        assert command.run("cache", arguments) == 0
        assert command.run("train", [*arguments, f"seed={ord(name)}"]) == 0
    runs = ",".join(str(tmp_path / "runs" / name) for name in "ab")
    assert command.run("probe", [f"run={runs}", FAST, "folds=2"]) == 0
    found = json.loads((tmp_path / "runs" / "probe.json").read_text())
    assert list(found["runs"]) == ["a", "b"]
    for subject in (found["runs"]["a"], found["runs"]["b"], found["teacher"]):
        assert set(subject["probes"]) == {"ridge", "knn"}
    alone = json.loads((tmp_path / "runs" / "a" / "probe.json").read_text())
    assert alone["probes"] == found["runs"]["a"]["probes"]
    assert alone["teacher"]["latents"] == found["teacher"]["latents"]
    page = (tmp_path / "runs" / "probe.html").read_text()
    assert "teacher" in page
    assert command.run("probe", [f"run={tmp_path / 'runs' / 'a'}", FAST, "folds=2", "teacher=false"]) == 0
    assert "teacher" not in json.loads((tmp_path / "runs" / "a" / "probe.json").read_text())
    named_alike = f"run={runs},{teacher}"
    assert command.run("probe", [named_alike, FAST, "folds=2"]) == 0
    found = json.loads((tmp_path / "runs" / "probe.json").read_text())
    assert list(found["runs"]) == ["a", "b", "teacher"]
    assert found["teacher 1"]["probes"].keys() == found["runs"]["teacher"]["probes"].keys()
    kept = LatentTable.open(tmp_path / "runs" / "a" / "probe" / "teacher" / "table").splits["test"]
    clips = opened(teacher)
    recipe = read_recipe([f"recipe={teacher / 'recipe.yaml'}"])
    wanted = collect(load_student(teacher), clips, clips.manifest.of("test"), 4, start(recipe))
    assert kept.latent == pytest.approx(wanted.latent, abs=5e-3)  # they are cached in half precision
