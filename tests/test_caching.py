"""The caching job: nothing lost, nothing twice, nothing wrong, whoever is killed; what is kept is what was said."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kill_cache import tree
from safetensors.torch import load_file, save_file
from teacher_examples import Example
from teacher_examples import make as make_teacher
from torch.utils.data import get_worker_info
from videos import pictures, write

from distill import command, plugins
from distill.clips import views
from distill.clips.batches import Part, load
from distill.clips.frames import DecodedFrames
from distill.clips.workers import note
from distill.errors import UserError
from distill.evaluate import top_shares
from distill.objective.losses import LOSSES
from distill.outputs import Clips, StudentOutput, TeacherOutput, TopK
from distill.recipe import Recipe, read_recipe, save_recipe
from distill.shards import files
from distill.teaching import caching
from distill.teaching.caching import cache
from distill.teaching.store import CachedTeacher, needed
from distill.teaching.teacher import open_teacher
from distill.teaching.upkeep import prune, verify
from distill.training import cached_outputs, see_clips, start, train
from distill.training import make_teacher as teacher_of

ROOT = Path(__file__).resolve().parents[1]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose student can teach."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    train(read_recipe(["recipe=tiny", f"out={out}", "train.steps=2"]))
    return out


def arguments(run: Path, folder: Path, *more: str) -> list[str]:
    teacher = ["teacher.name=student", f"teacher.run={run}", "objective.kl.weight=1"]
    return ["recipe=tiny", f"out={folder / 'out'}", *teacher, f"cache.folder={folder / 'cache'}", *more]


def recipe(run: Path, folder: Path, *more: str) -> Recipe:
    return read_recipe(arguments(run, folder, *more))


def outputs(made: Recipe) -> Any:
    return cached_outputs(made, see_clips(made, start(made)))


# ---------------------------------------------------------------- killed, shared, extended


@pytest.mark.slow
def test_a_hundred_kills_leave_no_trace(run: Path, tmp_path: Path) -> None:
    """Jobs are killed at random instants, now and then two at once on one cache; what gets finished is, byte for byte,
    what an undisturbed job makes."""
    given = [*arguments(run, tmp_path), "cache.frames=true"]
    assert command.run("cache", given) == 0
    script = [sys.executable, str(ROOT / "tests" / "kill_cache.py"), str(tmp_path / "cache"), str(tmp_path / "work")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*script, "100", *given], env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    kills, caches, differences = map(int, done.stdout.split()[-3:])
    assert kills >= 100
    assert caches >= 10
    assert differences == 0, done.stderr


def test_two_processes_and_two_jobs_make_the_bytes_of_one(run: Path, tmp_path: Path) -> None:
    given = ["cache.frames=true", "clips.workers=1"]
    assert command.run("cache", arguments(run, tmp_path, *given)) == 0
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    job = [str(ROOT / "distill" / "cache.py"), *arguments(run, tmp_path / "two", *given)]
    subprocess.run([*launch, *job], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=300)
    assert tree(tmp_path / "two" / "cache") == tree(tmp_path / "cache")
    alone = [sys.executable, str(ROOT / "distill" / "cache.py"), *arguments(run, tmp_path / "jobs", *given)]
    jobs = [subprocess.Popen(alone, stdout=subprocess.DEVNULL, env=environment) for _ in range(2)]
    assert [job.wait(timeout=300) for job in jobs] == [0, 0]
    assert tree(tmp_path / "jobs" / "cache") == tree(tmp_path / "cache")


def test_only_what_is_missing_is_asked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More views, more clips, a map: what is there stays, and serves."""
    asked: list[tuple[int, int]] = []
    original = caching.Asking._records

    def count(self: Any, chunk: Any, place: int) -> Any:
        asked.append((len(chunk), place))
        return original(self, chunk, place)

    monkeypatch.setattr(caching.Asking, "_records", count)

    def job(*more: str) -> int:
        asked.clear()
        cache(recipe(run, tmp_path, *more))
        return sum(number for number, _ in asked)

    few = ["clips.views.count=1", "clips.per_class.train=8"]
    assert job(*few) == 64 + 32  # 32 training clips in two views, 32 for evaluation in one
    assert job(*few) == 0
    more_views = ["clips.views.count=3", "clips.per_class.train=8"]
    assert job(*more_views) == 2 * 32
    before = tree(tmp_path / "cache")
    assert job("clips.views.count=3") == 32 * 4  # another 32 training clips
    after = tree(tmp_path / "cache")
    assert all(after[name] == data for name, data in before.items())
    assert job("clips.views.count=3", "cache.maps=[block2]") == 64 * 4 + 32
    assert all(tree(tmp_path / "cache")[name] == data for name, data in after.items())


# ---------------------------------------------------------------- kept and live are one


def small_clips(folder: Path, classes: list[str]) -> list[str]:
    """Arguments of a data set with these classes: four small videos of each."""
    for label, name in enumerate(classes):
        (folder / "data" / name).mkdir(parents=True)
        for take in range(4):
            write(folder / "data" / name / f"{take}.mp4", pictures(20, seed=4 * label + take))
    return [f"clips.source.folder={folder / 'data'}"]


@pytest.mark.parametrize("name", plugins.names("teacher"))
@pytest.mark.parametrize("top_k", [0, 2])
def test_a_cached_teacher_says_what_the_live_one_says(name: str, top_k: int, tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    example = make_teacher(name, tmp_path / "teacher")
    made = with_teacher(example, name, tmp_path, f"cache.top_k={top_k}", f"cache.maps=[{','.join(example.maps)}]")
    clips, accelerator = see_clips(made, start(made)), start(made)
    cache(made)
    live = open_teacher(made.teacher, clips.manifest.classes, made.cache.maps)
    cached = teacher_of(made, clips, accelerator)
    assert isinstance(cached, CachedTeacher)
    training = clips.training()
    parts = [Part(training, [view], np.ones(len(training), np.float32)) for view in (1, 2)]
    for batch in load(clips, parts):
        ours, theirs = cached(batch), live(batch)
        logits = theirs.dense
        if top_k:
            assert isinstance(ours.logits, TopK)
            expected = TopK.of(logits, top_k)
            torch.testing.assert_close(ours.logits.values, expected.values, rtol=2e-3, atol=2e-3)
            torch.testing.assert_close(ours.logits.rest, expected.rest, rtol=2e-3, atol=2e-3)
        else:
            torch.testing.assert_close(ours.dense, logits, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(ours.feature, theirs.feature, rtol=2e-3, atol=2e-3)
        for each in example.maps:
            torch.testing.assert_close(ours.maps[each], theirs.maps[each], rtol=2e-3, atol=2e-3)


def with_teacher(example: Example, name: str, folder: Path, *more: str) -> Recipe:
    """A recipe over a small data set with the example's classes; its clips have been looked at."""
    data = small_clips(folder, list(example.classes))
    text = {"teacher": {"name": name, **example.options}}
    base = ["recipe=videos", f"out={folder / 'out'}", f"cache.folder={folder / 'cache'}", "clips.workers=0", *data]
    small = [
        "clips.views.count=2",
        "student.frames=4",
        "student.size=16",
        "clips.source.test=0.25",
        "clips.source.val=0",
    ]
    plain = read_recipe([*base, *small])
    assert command.run("clips", [*base, *small]) == 0
    save_recipe(plain, folder / "recipe.yaml")
    written = (folder / "recipe.yaml").read_text().replace("teacher: null", f"teacher: {json.dumps(text['teacher'])}")
    (folder / "recipe.yaml").write_text(written)
    return read_recipe([f"recipe={folder / 'recipe.yaml'}", *more])


def test_a_soft_label_is_the_mean_over_test_views(run: Path, tmp_path: Path) -> None:
    made = recipe(run, tmp_path, "cache.test_clips=2", "cache.test_crops=3", "cache.precision=float32")
    cache(made)
    clips = see_clips(made, start(made))
    teacher = open_teacher(made.teacher, clips.manifest.classes)
    cached = teacher_of(made, clips, start(made))
    options = views.ViewOptions(**{**vars(made.clips.views), "test_clips": 2, "test_crops": 3})
    frames = DecodedFrames(clips.manifest, options, clips.spec)
    training = clips.training()[:5]
    (batch,) = load(clips, [Part(training, [3], np.ones(5, np.float32))])
    said = cached(batch)
    for row, index in enumerate(training):
        shown = torch.from_numpy(frames.get(index, [-1, -2, -3, -4, -5, -6]))
        number = torch.zeros(6, dtype=torch.int64)
        one = teacher(Clips(frames=shown, label=number, index=number, view=number))
        torch.testing.assert_close(said.dense[row].softmax(-1), one.dense.softmax(-1).mean(0), rtol=1e-4, atol=1e-5)
        assert said.feature is not None
        assert one.feature is not None
        torch.testing.assert_close(said.feature[row], one.feature.mean(0), rtol=1e-4, atol=1e-5)
    assert needed(made.cache, clips, training).keys() == {0}
    train(recipe(run, tmp_path, "cache.test_clips=2", "cache.test_crops=3", "cache.precision=float32", "train.steps=2"))


def test_top_k_distils_as_all_logits_do_at_any_temperature() -> None:
    """The closed form: the same two distributions, with the classes outside of the top taken together."""
    torch.manual_seed(0)
    teacher, student = 3 * torch.randn(6, 40, dtype=torch.float64), torch.randn(6, 40, dtype=torch.float64)
    clips = Clips(*(torch.zeros(6, 1, 3, 2, 2, dtype=torch.uint8), *[torch.zeros(6, dtype=torch.int64)] * 3))
    said = StudentOutput(logits=student, latent=student)
    for temperature in (1.0, 2.0, 4.0, 8.0):
        top = TopK.of(teacher, 39)
        dense = LOSSES["kl"](said, TeacherOutput(teacher), clips, temperature=temperature)
        assert LOSSES["kl"](said, TeacherOutput(top), clips, temperature=temperature) == pytest.approx(float(dense))
        p, q = (teacher / temperature).softmax(-1), (student / temperature).softmax(-1)
        order = teacher.argsort(-1, descending=True)
        p, q = p.gather(1, order), q.gather(1, order)
        p, q = (torch.cat([x[:, :5], x[:, 5:].sum(1, keepdim=True)], 1) for x in (p, q))
        expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
        found = LOSSES["kl"](said, TeacherOutput(TopK.of(teacher, 5)), clips, temperature=temperature)
        assert float(found) == pytest.approx(float(expected))
    with pytest.raises(UserError, match=r"objective\.kl\.temperature: a temperature of 0.5 needs all logits"):
        LOSSES["kl"](said, TeacherOutput(TopK.of(teacher, 5)), clips, temperature=0.5)


@pytest.mark.parametrize("temperature", [1.3, 3.0, 5.0, 6.0, 12.0, 50.0])
def test_what_the_others_add_up_to_between_the_stored_temperatures(temperature: float) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(32, 400, dtype=torch.float64)
    top = TopK.of(logits, 10)
    others = logits.scatter(-1, top.indices, -torch.inf)
    torch.testing.assert_close(
        top.rest_at(temperature, 400), torch.logsumexp(others / temperature, -1), rtol=0, atol=1e-2
    )


def test_jpeg_frames_serve_teacher_and_student_alike(run: Path, tmp_path: Path) -> None:
    made = recipe(run, tmp_path, "cache.frames=true", "cache.form=jpeg", "train.steps=3")
    cache(made)
    train(made)
    live = [f"out={tmp_path / 'live'}", "cache.outputs=false"]
    train(recipe(run, tmp_path, "cache.frames=true", "cache.form=jpeg", "train.steps=3", *live))
    summaries = [json.loads((tmp_path / name / "summary.json").read_text())["test"] for name in ("out", "live")]
    assert summaries[0] == pytest.approx(summaries[1], rel=1e-3)
    raw = recipe(run, tmp_path, "cache.frames=true")
    assert outputs(raw).folder != outputs(made).folder  # pictures out of a JPEG are other pictures


# ---------------------------------------------------------------- trust


def test_what_the_teacher_did_not_see_is_refused(run: Path, tmp_path: Path) -> None:
    made = recipe(run, tmp_path)
    cache(made)
    clips = see_clips(made, start(made))
    teacher = teacher_of(made, clips, start(made))
    training = clips.training()[:4]
    (batch,) = load(clips, [Part(training, [2], np.ones(4, np.float32))])
    teacher(batch)
    assert batch.seen is not None
    name = clips.manifest.clips[training[1]].id
    for byte, what in ((6, "view was drawn"), (17, "pixels came out")):
        spoilt = batch.map(torch.clone)
        assert spoilt.seen is not None
        spoilt.seen[1, byte] += 1
        with pytest.raises(UserError, match=f"{name}.* in view 2 another {what}"):
            teacher(spoilt)


def test_verify_finds_damage_and_records_that_are_not_the_teacher_s(run: Path, tmp_path: Path, capsys: Capture) -> None:
    made = recipe(run, tmp_path, "cache.rows=100", "clips.views.count=1")
    cache(made)
    found = verify(made)
    assert found["outputs"]["asked_anew"] == 100
    shards = outputs(made)
    path = shards.path(1, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 4]) + whole[-2:])
    assert command.run("cache", ["verify", *arguments(run, tmp_path, "clips.views.count=1")]) == 2
    said = capsys.readouterr().err
    assert f"{path} is damaged: its checksum is not that of its content" in said
    assert "error: 1 files are damaged; delete them and run the caching job again" in said
    path.write_bytes(whole)
    fields = {name: rows.copy() for name, rows in shards.record("", 0, 1)[0].items()}
    fields["logits"][:, 1] += 1
    path.write_bytes(files.encode(fields, shards._about(1, 0, "")))  # whole, but wrong
    with pytest.raises(UserError, match=r"is not what this teacher says: logits is off by"):
        verify(made)
    path.unlink()
    cache(made)
    verify(made)


def test_prune_removes_what_the_recipe_does_not_need(run: Path, tmp_path: Path) -> None:
    cache(recipe(run, tmp_path, "clips.views.count=1"))
    expected = tree(tmp_path / "cache")
    cache(recipe(run, tmp_path, "clips.views.count=3", "cache.maps=[block2]"))
    cache(recipe(run, tmp_path, "clips.views.seed=9"))
    others = [folder.name for folder in (tmp_path / "cache" / "outputs").iterdir()]
    (outputs(recipe(run, tmp_path)).path(1, 0).with_name(".s00000.safetensors.77-ab.part")).write_bytes(b"half")
    assert prune(recipe(run, tmp_path, "clips.views.count=1"))["freed"] != "0 bytes"
    assert len(others) == len(list((tmp_path / "cache" / "outputs").iterdir())) == 2
    prune(recipe(run, tmp_path, "clips.views.count=1", "cache.others=true"))
    assert tree(tmp_path / "cache") == expected


def test_status_shows_what_is_there(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert command.run("cache", arguments(run, tmp_path, "clips.views.count=1")) == 0
    capsys.readouterr()
    assert command.run("cache", ["status", *arguments(run, tmp_path, "clips.views.count=2")]) == 0
    said = capsys.readouterr().out
    for part in ("96 of 96", "64 of 64", "0 of 64", "spec: frames=8 size=16", "logits [4]"):
        assert part in said, part


def test_a_store_that_another_teacher_began_is_told_apart(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The same weights, but other arithmetic: as on another GPU."""
    original = caching.open_teacher
    for change, code in ((1e-2, 0), (1.0, 2)):
        folder = tmp_path / str(change)
        assert command.run("cache", arguments(run, folder, "clips.views.count=1")) == 0

        def open_other(*given: Any, change: float = change) -> Any:
            teacher = original(*given)
            teacher.network.register_forward_hook(
                lambda module, inputs, answer: TeacherOutput(answer.dense * (1 + change), answer.feature)
            )
            return teacher

        monkeypatch.setattr(caching, "open_teacher", open_other)
        capsys.readouterr()
        assert command.run("cache", arguments(run, folder, "clips.views.count=2")) == code
        monkeypatch.setattr(caching, "open_teacher", original)
        said = capsys.readouterr().err
        assert (
            "answers differently from when this cache began" if code == 0 else "was begun by a teacher whose answers"
        ) in said


# ---------------------------------------------------------------- trouble


def test_a_full_disk_is_one_line_and_loses_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original, left = Path.write_bytes, [4]

    def write(self: Path, data: bytes) -> int:
        left[0] -= self.name.startswith(".s0")
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    assert command.run("cache", arguments(run, tmp_path)) == 2
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert ".safetensors" in said
    assert len(said.strip().splitlines()) == 1
    monkeypatch.undo()
    kept = {name: data for name, data in tree(tmp_path / "cache").items() if "/v0" in name}
    assert len(kept) == 4
    assert command.run("cache", arguments(run, tmp_path)) == 0
    after = tree(tmp_path / "cache")
    assert all(after[name] == data for name, data in kept.items())


def test_clips_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path, run: Path, capsys: Capture) -> None:
    example = make_teacher("student", tmp_path / "teacher")
    made = with_teacher(
        example, "student", tmp_path, "objective.kl.weight=1", "clips.failing=0.5", "train.batch=4", "train.steps=2"
    )
    clips = see_clips(made, start(made))
    bad = clips.manifest.clips[clips.training()[0]]
    shutil.copy2(bad.path, tmp_path / "kept.mp4")
    Path(bad.path).write_bytes(b"no video")
    found = cache(made)
    said = capsys.readouterr().err
    assert said.count(f"clip {bad.id}: {bad.path} changed since") == 1
    assert "1 clips gave no record" in said
    assert 0 <= found["teacher"]["test"]["top1"] <= 1
    assert verify(made)["outputs"]["never_read"] >= 1
    train(made)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert "replaced" not in summary  # it was left out from the start

    shutil.copy2(tmp_path / "kept.mp4", bad.path)
    expected = tree(tmp_path / "cache")
    cache(made)
    assert tree(tmp_path / "cache") == expected  # what failed is not tried again by itself
    prune(made)
    assert tree(tmp_path / "cache") == expected
    made.cache.failed = True
    prune(made)
    assert "records are to be made again" in capsys.readouterr().out
    cache(made)
    assert verify(made)["outputs"]["never_read"] == 0
    expected = tree(tmp_path / "cache")
    prune(made)
    assert tree(tmp_path / "cache") == expected


def test_a_clip_that_hangs_its_reader_is_counted_and_the_rest_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    original = DecodedFrames.get

    def hang(self: DecodedFrames, index: int, numbers: list[int]) -> np.ndarray:
        if index == 40 and get_worker_info() is not None:
            note(index)
            time.sleep(1000)
        return original(self, index, numbers)

    monkeypatch.setattr(DecodedFrames, "get", hang)
    given = ["clips.workers=2", "clips.timeout=3", "clips.views.count=1"]
    assert command.run("cache", arguments(run, tmp_path, *given)) == 0
    assert capsys.readouterr().err.count("nothing came for 3 s while reading clip") == 1
    failed = outputs(recipe(run, tmp_path)).failures({0: np.arange(96), 1: np.arange(64)})
    assert {clip for found in failed.values() for clip in found} == {40}


@pytest.mark.parametrize(("value", "code"), [(float("nan"), 0), (1e6, 2)])
def test_answers_that_are_no_numbers_and_answers_that_are_too_large(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, value: float, code: int
) -> None:
    """The first is a failed record; the second the storage's fault."""
    original = caching.Asking.ask

    def spoil(self: Any, frames: Any) -> TeacherOutput:
        answer = original(self, frames)
        if len(frames) > 8:  # not when the cost is measured
            answer.dense[3, 1] = value
        return answer

    monkeypatch.setattr(caching.Asking, "ask", spoil)
    assert command.run("cache", arguments(run, tmp_path, "clips.views.count=1", "clips.failing=0.2")) == code
    said = capsys.readouterr().err
    if code == 0:
        assert "the teacher's answer is not a number; its record says so" in said
        train(recipe(run, tmp_path, "clips.views.count=1", "clips.failing=0.2", "train.steps=2"))
    else:
        assert re.search(r"clip motion.*: its logits are too large for float16; say cache.precision=float32", said)
        assert len(said.strip().splitlines()) == 1


def test_a_teacher_that_answers_no_numbers_at_all_is_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    shutil.copytree(run, tmp_path / "run")
    weights = load_file(run / "student" / "model.safetensors")
    nothing = {name: value.float() * torch.nan for name, value in weights.items()}
    save_file(nothing, tmp_path / "run" / "student" / "model.safetensors")
    assert command.run("cache", arguments(tmp_path / "run", tmp_path)) == 2
    assert "the teacher's answer to plain noise is not a number" in capsys.readouterr().err


def test_clips_that_are_known_to_be_broken_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    example = make_teacher("student", tmp_path / "teacher")
    made = with_teacher(example, "student", tmp_path)
    clips = see_clips(made, start(made))
    Path(clips.manifest.clips[3].path).write_bytes(b"")
    assert command.run("clips", [f"recipe={tmp_path / 'recipe.yaml'}"]) == 0
    cache(made)
    expected = tree(tmp_path / "cache" / "outputs")
    made.cache.failed = True
    prune(made)
    assert tree(tmp_path / "cache" / "outputs") == expected


def test_a_live_teacher_is_not_asked_beforehand(run: Path, tmp_path: Path) -> None:
    cache(recipe(run, tmp_path, "cache.outputs=false", "cache.frames=true", "clips.views.count=1"))
    assert [folder.name for folder in (tmp_path / "cache").iterdir()] == ["frames"]
    with pytest.raises(UserError, match=r"nothing to cache: cache.outputs is false, and cache.frames is false"):
        cache(recipe(run, tmp_path, "cache.outputs=false"))


def test_many_views_are_read_in_turns(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(recipe(run, tmp_path))
    monkeypatch.setattr("distill.teaching.filling.CLIP_BYTES", 2 * 8 * 3 * 16 * 16)  # two views
    made = recipe(run, tmp_path / "turns")
    cache(made)
    assert tree(tmp_path / "turns" / "cache") == tree(tmp_path / "cache")


def test_the_teacher_s_accuracy_is_that_of_its_answers(run: Path, tmp_path: Path) -> None:
    made = recipe(run, tmp_path)
    found = cache(made)
    clips = see_clips(made, start(made))
    teacher = open_teacher(made.teacher, clips.manifest.classes)
    for split in ("val", "test"):
        index = clips.manifest.of(split)
        (batch,) = load(clips, [Part(index, [0], np.ones(len(index), np.float32))])
        expected = dict(top_shares(batch.label.numpy(), teacher(batch).dense.numpy()))
        assert found["teacher"][split] == expected
    largest = cache(recipe(run, tmp_path, "cache.top_k=2"))
    assert largest["teacher"] == found["teacher"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("cache.autocast=fp8", "cache.autocast is 'fp8'; known: no, bf16, fp16"),
        ("cache.form=png", "cache.form is 'png'; known: raw, jpeg"),
        ("cache.top_k=-1", "cache.top_k is -1; it is at least 0"),
        ("cache.test_crops=2", "cache.test_crops is 2; it is 1 or 3"),
        ("cache.maps=[nonsense]", "the teacher gives no map 'nonsense'"),
        ("cache.remote=nonsense://x", "cannot be reached"),
    ],
)
def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: Capture, change: str, complaint: str) -> None:
    assert command.run("cache", arguments(run, tmp_path, change)) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert len(said.strip().splitlines()) == 1


def test_the_cost_is_said_before_the_job_starts(run: Path, tmp_path: Path, capsys: Capture) -> None:
    assert command.run("cache", arguments(run, tmp_path, "cache.autocast=bf16")) == 0
    said = capsys.readouterr().out
    cost = said.index("60 bytes each, 21.1 kB; about ")
    assert cost < said.index("ask teacher")
    assert "bfloat16 moves a logit by at most" in said
    assert "top-1" in said[said.index("ask teacher") :]


def test_training_takes_a_cache_from_elsewhere(run: Path, tmp_path: Path) -> None:
    cache(recipe(run, tmp_path))
    shutil.move(tmp_path / "cache", tmp_path / "far")
    remote = f"cache.remote=file://{tmp_path / 'far'}"
    with pytest.raises(UserError, match="lacks"):
        train(recipe(run, tmp_path, "train.steps=2"))
    train(recipe(run, tmp_path, "train.steps=2", remote))
