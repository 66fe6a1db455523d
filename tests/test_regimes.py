"""Ways of training: schedules, stages, moving averages, the best of several looks, mixing, several teachers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from distill.errors import UserError
from distill.recipe import read_recipe, stages
from distill.run_log import read_metrics
from distill.teaching.caching import cache
from distill.training import train

ROOT = Path(__file__).resolve().parents[1]


def run(out: Path, *changes: str) -> Path:
    train(read_recipe(["recipe=tiny", f"out={out}", *changes]))
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "student" / "model.safetensors")


def same(ours: Path, theirs: Path) -> bool:
    one, other = weights(ours), weights(theirs)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def rows(folder: Path, key: str) -> dict[int, float]:
    return {row["step"]: row[key] for row in read_metrics(folder) if key in row}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("teacher") / "run", "clips.labelled=1")


def taught(teacher: Path, folder: Path) -> list[str]:
    return ["teacher.name=student", f"teacher.run={teacher}", f"cache.folder={folder / 'cache'}"]


# ---------------------------------------------------------------- what trains when


def test_a_frozen_encoder_ends_as_it_began(tmp_path: Path) -> None:
    begun = run(tmp_path / "begun", "train.steps=2")
    ended = run(tmp_path / "ended", f"init={begun}", "schedule.mode=frozen", "train.steps=4")
    before, after = weights(begun), weights(ended)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert not any(name.startswith(("autoencoder.encoder", "autoencoder.to_latent")) for name in moved)
    assert any(name.startswith("autoencoder.decoder") for name in moved)


PROGRESSIVE = (
    "schedule={mode: progressive, groups: {late: {parts: [autoencoder.to_latent], at: 3, lr: 0.5}, "
    "early: {parts: [encoder], at: 1 epoch}}}"
)


def test_progressive_training_goes_on_after_a_kill_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """With a moving average, the best of several looks, and a loss that learns something."""
    changes = [
        PROGRESSIVE,
        "train.steps=50",
        "train.ema=0.9",
        "train.best=reconstruction",
        "train.evaluate_every=5",
        "train.checkpoint_every=4",
        "objective.cross_entropy.weight={from: 2, to: 1, over: 3 epochs}",
        "optim={name: sgd, schedule: step, milestones: [5 epochs], lr: 0.05}",
    ]
    whole, broken = run(tmp_path / "whole", *changes), tmp_path / "broken"
    command = [sys.executable, str(ROOT / "distill" / "train.py"), "recipe=tiny", f"out={broken}", *changes]
    for goal in (random.randrange(3, 20), random.randrange(21, 45)):
        process = subprocess.Popen([*command, "resume=true"], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if max(rows(broken, "loss"), default=0) >= goal:
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "resume=true"], check=True, stdout=subprocess.DEVNULL)
    assert same(broken, whole)
    assert rows(broken, "loss") == rows(whole, "loss")
    assert rows(broken, "val.reconstruction") == rows(whole, "val.reconstruction")


# timm's backbone has activations inside its norms, most of which stay as they are here.
FUSED = {"name": "tsn", "backbone": "mobilenetv2_035", "frames": 4, "size": 32, "dropout": 0, "partial_bn": True}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["progressive", "fused"])
def test_two_processes_train_as_one_does(kind: str, tmp_path: Path) -> None:
    recipe = OmegaConf.load(ROOT / "recipes" / "tiny.yaml")
    changes = [PROGRESSIVE, "train.ema=0.9", "optim={name: sgd, lr: 0.05}"]
    if kind == "fused":
        recipe.student, changes = FUSED, ["objective.reconstruction.weight=0", "train.steps=4", "optim.lr=1e-4"]
    OmegaConf.save(recipe, tmp_path / "recipe.yaml")
    changes = [f"recipe={tmp_path / 'recipe.yaml'}", *changes]
    one, two = run(tmp_path / "one", *changes), tmp_path / "two"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launch, str(ROOT / "distill" / "train.py"), f"out={two}", *changes]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, timeout=300)
    assert rows(two, "loss") == pytest.approx(rows(one, "loss"), rel=1e-4)


# ---------------------------------------------------------------- which weights are kept


def test_the_moving_average_is_kept_and_its_closed_form(tmp_path: Path) -> None:
    """After the first step the average is that step's weights; then it forgets by min(decay, (1 + n) / (10 + n))."""
    steps = [weights(run(tmp_path / str(n), f"train.steps={n}", "optim.schedule=constant")) for n in (1, 2, 3)]
    kept = weights(run(tmp_path / "ema", "train.steps=3", "optim.schedule=constant", "train.ema=0.15"))
    name = "classifier.head.weight"
    expected = steps[0][name]
    for n, now in enumerate(steps[1:], 1):
        decay = min(0.15, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * now[name]
    torch.testing.assert_close(kept[name], expected)
    counter = "autoencoder.encoder.0.1.num_batches_tracked"
    assert kept[counter] == steps[2][counter] == 3


def test_the_best_look_is_kept_and_the_test_split_has_no_say(tmp_path: Path) -> None:
    changes = [
        "train.steps=12",
        "train.evaluate_every=1",
        "optim.lr=0.3",
        "optim.schedule=constant",
        "train.best=reconstruction",
    ]
    folder = run(tmp_path / "run", *changes)
    seen = rows(folder, "val.reconstruction")
    best = min(seen, key=lambda step: (seen[step], step))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["best"] == {"step": best, "reconstruction": pytest.approx(seen[best])}
    assert best < 12, "the recipe of this test should overshoot"
    (left,) = (folder / "checkpoints").glob("best-*.pt")
    kept, best_file = weights(folder), torch.load(left, weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in best_file.items())
    assert not same(folder, run(tmp_path / "last", *changes[:-1]))


def test_training_stops_early_when_nothing_gets_better(tmp_path: Path) -> None:
    changes = ["train.steps=40", "train.evaluate_every=2", "train.best=top1", "train.patience=3", "optim.lr=1e-12"]
    folder = run(tmp_path / "run", *changes)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 8  # the first look is the best, and three more are not better
    assert max(rows(folder, "loss")) == 8
    train(read_recipe(["recipe=tiny", f"out={folder}", *changes, "resume=true"]))  # is finished


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["train.best=accuracy"], r"train\.best is 'accuracy'; known: top1, top5, reconstruction"),
        (["train.best=top5"], r"train\.best=top5 needs a validation split and more than five classes"),
        (["train.patience=2"], r"train\.patience is 2; .*needs train\.best"),
        (["train.ema=1"], r"train\.ema is 1\.0"),
        (["train.mixup=-1"], r"train\.mixup is -1\.0"),
        (["schedule.mode=slow"], r"schedule\.mode is 'slow'"),
        (["optim.name=lion"], r"optim\.name is 'lion'"),
        (["objective.cross_entropy.weight={to: 1, after: 3}", "objective.reconstruction.weight=0"], "no term acts at"),
        (["objective.hint={weight: 1, student: block9, teacher: block1}"], "the recipe has none; set teacher.name"),
        (
            ["objective.cross_entropy.weight={from: 1, to: 0, over: 3}", "objective.reconstruction.weight=0"],
            "no term acts at step 3",
        ),
        (["objective.cross_entropy.weight={to: 1, after: 3, until: 2}"], "cross_entropy acts at none of the 12 steps"),
        (
            ["schedule={mode: progressive, groups: {all: {parts: [autoencoder, classifier], at: 3}}}"],
            "acts at",
        ),
        (["train.patience=3", "train.best=top1", "train.evaluate_every=0"], "train.evaluate_every above 0"),
        (["optim={name: sgd, momentum: 1.5}"], r"optim\.momentum is 1\.5"),
        (["student.decoder=false", "objective.reconstruction.weight=0", "train.best=reconstruction"], "with a decoder"),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told) as caught:
        run(tmp_path / "run", "train.evaluate_every=1", *changes)
    assert "\n" not in str(caught.value)
    assert not rows(tmp_path / "run", "loss")


# ---------------------------------------------------------------- stages


STAGES = (
    "stages={draw: {train: {steps: 3}, objective: {cross_entropy: {weight: 0}}}, "
    "name: {train: {steps: 4}, schedule: {mode: frozen}, objective: {reconstruction: {weight: 0}}}}"
)


def test_stages_are_runs_one_after_the_other(tmp_path: Path) -> None:
    staged = run(tmp_path / "staged", STAGES)
    first = run(tmp_path / "first", "train.steps=3", "objective.cross_entropy.weight=0")
    frozen = ["schedule.mode=frozen", "objective.reconstruction.weight=0"]
    second = run(tmp_path / "second", "train.steps=4", *frozen, f"init={first}")
    assert same(staged / "draw", first)
    assert same(staged, second)
    again = read_recipe([f"recipe={staged / 'recipe.yaml'}"])
    assert again.init == str(staged / "draw")
    train(read_recipe(["recipe=tiny", f"out={staged}", STAGES, "resume=true"]))  # is finished


def test_stages_change_the_recipe_s_own_keys(tmp_path: Path) -> None:
    recipe = read_recipe(["recipe=tiny", f"out={tmp_path}", STAGES, "stages.draw.optim.lr=0.5"])
    draw, name = stages(recipe)
    assert (draw.out, name.out, name.init) == (f"{tmp_path}/draw", str(tmp_path), f"{tmp_path}/draw")
    assert (draw.optim.lr, name.optim.lr) == (0.5, recipe.optim.lr)
    assert draw.objective["cross_entropy"].weight == 0
    assert name.objective["cross_entropy"].weight == 1
    for change, told in [
        ("stages.draw.optim.learning_rate=1", r"stages\.draw: there is no key 'optim\.learning_rate'"),
        ("stages.draw.objective.kd.weight=1", r"stages\.draw: objective\.kd: there is no loss named 'kd'"),
        ("stages.draw.out=elsewhere", r"stages\.draw .*but for out,"),
        ("stages.draw=3", r"stages\.draw is a group of changes"),
        ("stages.draw.train.precision=bf16", "the same in all stages"),
        ("stages.student.train.steps=3", r"stages\.student cannot be called so"),
        ("stages={'..': {train: {steps: 3}}}", r"stages\.\.\. cannot be called so"),
        ("stages.draw.objective.kl.temperature=3", r"say stages\.draw\.objective\.kl\.weight="),
    ]:
        with pytest.raises(UserError, match=told):
            read_recipe(["recipe=tiny", STAGES, change])


@pytest.mark.parametrize(
    ("later", "told"),
    [
        ("optim: {name: lion}", "lion"),
        ("schedule: {mode: slow}", "slow"),
        ("schedule: {mode: progressive, groups: {a: {parts: [head]}}}", "no part 'head'"),
        ("objective: {kl: {weight: 1}}", "run: distill cache"),
        ("objective: {hint: {weight: 1, student: block9, teacher: block1}}", "'block9'"),
    ],
)
def test_what_is_wrong_with_a_later_stage_shows_before_the_first(
    later: str, told: str, tmp_path: Path, teacher: Path
) -> None:
    with pytest.raises(UserError, match=told):
        run(tmp_path / "run", f"stages={{a: {{train: {{steps: 4}}}}, b: {{{later}}}}}", *taught(teacher, tmp_path))
    assert not (tmp_path / "run" / "a").exists()


def test_a_stage_does_not_go_on_from_another_beginning(tmp_path: Path) -> None:
    staged = run(tmp_path / "run", "stages={a: {train: {steps: 2}}, b: {train: {steps: 4}}}")
    shutil.rmtree(staged / "a")
    with pytest.raises(UserError, match=r"was trained from an earlier .*/a; choose another out"):
        run(staged, "stages={a: {train: {steps: 3}}, b: {train: {steps: 4}}}", "resume=true")


# ---------------------------------------------------------------- mixing, several teachers, what is learnt


def test_mixing_asks_a_live_teacher_and_refuses_a_cached_one(tmp_path: Path, teacher: Path) -> None:
    changes = [
        *taught(teacher, tmp_path),
        "objective.kl.weight=1",
        "train.mixup=0.3",
        "train.cutmix=1",
        "train.steps=4",
    ]
    mixed = run(tmp_path / "mixed", *changes, "cache.outputs=false")
    plain = run(tmp_path / "plain", *changes[:-3], "train.steps=4", "cache.outputs=false")
    assert rows(mixed, "raw.kl") != rows(plain, "raw.kl")
    with pytest.raises(UserError, match=r"the cache knows what the teacher said of each alone; .*cache\.outputs=false"):
        run(tmp_path / "cached", *changes)
    with pytest.raises(UserError, match=r"objective\.dkd needs clips that are one thing each"):
        run(tmp_path / "hard", *changes, "cache.outputs=false", "objective.dkd.weight=1")


def test_several_teachers_cached_and_live(tmp_path: Path, teacher: Path) -> None:
    """The mean of the losses over the members of an ensemble, each with its weight."""
    other = run(tmp_path / "other", "clips.labelled=1", "seed=1", "train.steps=6")
    members = f"[{{name: student, run: {teacher}}}, {{name: student, run: {other}}}]"
    base = [f"teacher={{name: ensemble, members: {members}}}", f"cache.folder={tmp_path / 'cache'}", "train.steps=4"]
    both = [*base, "objective.kl={weight: 1, members: {0.logits: 3, 1.logits: 1}}", "cache.precision=float32"]
    live = run(tmp_path / "live", *both, "cache.outputs=false")
    cache(read_recipe(["recipe=tiny", f"out={tmp_path / 'unused'}", *both]))
    cached = run(tmp_path / "cached", *both)
    assert rows(cached, "raw.kl") == pytest.approx(rows(live, "raw.kl"), rel=1e-4)
    alone = [
        rows(
            run(tmp_path / name, *taught(folder, tmp_path), "cache.outputs=false", "objective.kl.weight=1e-30"),
            "raw.kl",
        )
        for name, folder in (("a", teacher), ("b", other))
    ]
    assert rows(live, "raw.kl")[1] == pytest.approx(0.75 * alone[0][1] + 0.25 * alone[1][1], rel=1e-4)
    with pytest.raises(UserError, match=r"objective\.reconstruction\.members.*only for .*kl"):
        run(tmp_path / "wrong", *base, "objective.reconstruction.members={0.logits: 1}", "objective.kl.weight=1")
    with pytest.raises(UserError, match=r"no map '2\.logits'; those it has: 0\.logits, 0\.block1"):
        run(tmp_path / "third", *both[:-2], "cache.outputs=false", "objective.kl={weight: 1, members: {2.logits: 1}}")


@pytest.mark.parametrize(
    ("term", "told"),
    [
        ("objective.attention={weight: 1, student: block9, teacher: block2}", "'block9'.*it has block1, .*embedding"),
        ("objective.attention={weight: 1, student: block2, teacher: block9}", "no map 'block9'; those it has: block1"),
        ("objective.rkd_distance={weight: 1, student: latent, teacher: features}", "no map 'features'"),
        ("objective.attention={weight: 1, student: latent, teacher: block2}", "latent"),
        ("objective.kl={weight: 1, temperature: {from: 4, to: 0, over: 5}}", r"temperature is 0\.0"),
        (
            "objective.kl={weight: 1, temperature: {from: 4, to: 2, until: 4}}",
            r"no key objective\.kl\.temperature\.u",
        ),
        ("objective.kl={weight: 1, members: {logits: 1}}", "names maps of an ensemble"),
        ("objective.kl={weight: 1, members: {0.logits: .inf}}", "is inf; it is above 0"),
        ("objective.kl.members.0.logits=1", "names maps of an ensemble"),
        ("objective.hint={weight: 1, student: block1, teacher: null}", "teacher is None; it is a name"),
        ("objective.hint={weight: 1, student: [1], teacher: block1}", r"student is \[1\]; it is a name"),
        (
            "schedule.mode=frozen objective.attention.weight=1 objective.attention.student=block2 "
            "objective.attention.teacher=block3",
            "objective.attention acts at step 1 on what schedule keeps as it is",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_training(term: str, told: str, tmp_path: Path, teacher: Path) -> None:
    terms = [term] if "{" in term else term.split()
    with pytest.raises(UserError, match=told) as caught:
        run(tmp_path / "run", *taught(teacher, tmp_path), "cache.outputs=false", *terms)
    assert "\n" not in str(caught.value)
    assert not rows(tmp_path / "run", "loss")


def test_a_map_that_a_loss_looks_at_joins_the_cache_by_itself(tmp_path: Path, teacher: Path) -> None:
    changes = [*taught(teacher, tmp_path), "objective.attention={weight: 10, student: block2, teacher: block2}"]
    changes += ["cache.precision=float32"]
    cache(read_recipe(["recipe=tiny", f"out={tmp_path / 'unused'}", *changes]))
    cached, live = run(tmp_path / "cached", *changes), run(tmp_path / "live", *changes, "cache.outputs=false")
    assert rows(cached, "raw.attention") == pytest.approx(rows(live, "raw.attention"), rel=1e-4)


def test_what_a_loss_learns_trains_and_leaves_the_student_s_start_alone(tmp_path: Path, teacher: Path) -> None:
    hint = "objective.hint={weight: 1, student: block1, teacher: block4}"
    changes = [*taught(teacher, tmp_path), "cache.outputs=false"]
    hinted = run(tmp_path / "hinted", *changes, hint)
    plain = run(tmp_path / "plain", *changes, "objective.kl.weight=1e-30")
    assert rows(hinted, "raw.cross_entropy")[1] == rows(plain, "raw.cross_entropy")[1]
    assert not [name for name in weights(hinted) if "hint" in name]
    newest = max((hinted / "checkpoints").glob("step-*.pt"))
    kept = torch.load(newest, weights_only=True)["learner"]
    assert [name for name in kept if name.startswith("objective.parts.hint")]
