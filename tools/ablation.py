"""Which part of distilling does what, and why the paper's settings do not work: `make ablation`.

One small student on the embedded data, for the same number of steps on the same clips, trained in many ways; each seed
draws other clips, labels and weights. Prints the top-1 of the student's own classifier and of classifiers on its
latents. What was finished is kept: a second call goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from distill.command import guarded
from distill.errors import UserError
from distill.files import publish_text
from distill.run_log import Talk
from distill.surroundings import cores

STEPS = 800
TEACHER_STEPS = 500  # half of recipes/quickstart_teacher.yaml: right three times in four, where that is nearly always
STUDENT = ("student.size=16",)  # a quarter of the quickstart's pixels, so that this takes minutes
PROBES = ("svm_rbf", "random_forest")
# What the paper says: SGD, momentum 0.9, decay 1e-4, rate 1e-4 to 1e-5, T = 4, weights of 0.5, KL in over a fifth.
PAPER_LOSS = (
    "objective.cross_entropy.weight=0.5",
    f"objective.kl={{weight: {{to: 0.5, over: {STEPS // 5} steps}}, temperature: 4}}",
    "objective.reconstruction.weight=0.5",
)
PAPER_OPTIM = (
    "optim={name: sgd, momentum: 0.9, weight_decay: 1e-4, decay_norms: true, lr: 1e-4, final_lr: 1e-5}",
    "optim.warmup_steps=0",
    "optim.clip_norm=0",
)
PAPER = (*PAPER_LOSS, *PAPER_OPTIM)
OURS = "objective.reconstruction.weight=1"
OFF = tuple(f"objective.{name}.weight=0" for name in ("cross_entropy", "kl", "reconstruction"))
FEATURE = "objective.feature={weight: 1, student: latent, teacher: feature}"
ATTENTION = "objective.attention={weight: 100, student: [block2, block3], teacher: [block2, block3]}"
TEMPORAL = "objective.temporal={weight: 0.1, student: block2, teacher: block2}"
PROGRESSIVE = (
    f"schedule={{mode: progressive, groups: {{late: {{parts: [autoencoder.to_latent, autoencoder.encoder.3], "
    f"at: {STEPS // 8}}}, early: {{parts: [encoder], at: {STEPS // 4}, lr: 0.3}}}}}}"
)


@dataclass(frozen=True)
class Arm:
    """One way of training: what it changes of recipes/quickstart.yaml, and the arm whose weights it starts from."""

    about: str
    changes: Sequence[str]
    start: str = ""


ARMS = {
    "untrained": Arm("chance weights", ["train.steps=0"]),
    "reconstruction": Arm("no labels, no teacher", OFF[:2]),
    "labels": Arm("cross-entropy alone", [*OFF[1:], "clips.unlabelled=false"]),
    "paper": Arm("the paper's: joint, from scratch", PAPER),
    "paper_pretrained": Arm("the paper's, from the reconstruction arm", PAPER, "reconstruction"),
    "paper_frozen": Arm("the same, encoder frozen", [*PAPER, "schedule.mode=frozen"], "reconstruction"),
    "paper_lr_100": Arm("the paper's, rate x 100", [*PAPER, "optim.lr=1e-2", "optim.final_lr=1e-3"]),
    "paper_our_optimiser": Arm("the paper's losses, AdamW at 1e-3", PAPER_LOSS),
    "logits": Arm("ours: cross-entropy, KL, a little reconstruction", [OURS]),
    "feature": Arm("ours + feature", [OURS, FEATURE]),
    "attention": Arm("ours + attention", [OURS, ATTENTION]),
    "temporal": Arm("ours + temporal", [OURS, TEMPORAL]),
    "all": Arm("ours + feature + attention + temporal", [OURS, FEATURE, ATTENTION, TEMPORAL]),
    "progressive": Arm("ours, unfreezing from the reconstruction arm", [OURS, PROGRESSIVE], "reconstruction"),
}


@dataclass(frozen=True)
class Seed:
    """All runs of one seed."""

    folder: Path
    seed: int

    @property
    def shared(self) -> list[str]:
        return [f"seed={self.seed}", f"cache.folder={self.folder / 'cache'}", "resume=true", "train.evaluate_every=0"]

    def prepare(self) -> None:
        """The teacher, and all that any arm wants of it."""
        steps = [f"out={self.folder / 'teacher'}", f"train.steps={TEACHER_STEPS}", *self.shared]
        _distill("cache", "recipe=quickstart_teacher", *steps)
        _distill("train", "recipe=quickstart_teacher", *steps)
        _distill("cache", *self.recipe("all"))

    def recipe(self, name: str) -> list[str]:
        arm = ARMS[name]
        start = [f"init={self.folder / arm.start}"] if arm.start else []
        base = ["recipe=quickstart", f"out={self.folder / name}", f"teacher.run={self.folder / 'teacher'}"]
        base += STUDENT
        return [*base, *self.shared, f"train.steps={STEPS}", *start, *arm.changes]

    def run(self, name: str) -> None:
        out = self.folder / name
        _distill("train", *self.recipe(name))
        if not (out / "probe.json").exists():
            _distill("probe", f"run={out}", f"probes={','.join(PROBES)}", "folds=0", "teacher=false")

    def figures(self, name: str) -> dict[str, float]:
        """Top-1 of the own classifier, where it was trained, and of the probes."""
        summary, probe = (
            json.loads((self.folder / name / file).read_text()) for file in ("summary.json", "probe.json")
        )
        probes = {name: found["test"]["top1"] for name, found in probe["probes"].items()}
        return {"own": summary["test"]["top1"], **probes}


def _distill(*arguments: str) -> None:
    """One job in a process of its own, on one thread, so that two fill two cores and figures do not depend on it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "distill.cli", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"{' '.join(arguments)}: {done.stderr.strip().splitlines()[-1]}")


def ablation(folder: Path, seeds: Sequence[int], arms: Sequence[str], workers: int) -> None:
    talk, started = Talk(), time.monotonic()
    todo = [Seed(folder / f"seed{seed}", seed) for seed in seeds]
    first = [name for name in arms if not ARMS[name].start]
    then = [name for name in arms if ARMS[name].start]
    waves: list[tuple[str, list[Callable[[], None]]]] = [("teachers", [seed.prepare for seed in todo])]
    for wave, names in (("arms", first), ("arms that start from others", then)):
        waves.append((wave, [partial(seed.run, name) for name in names for seed in todo]))
    for wave, jobs in waves:
        with ThreadPoolExecutor(workers) as pool, talk.track(wave, len(jobs), 0) as track:
            for _ in pool.map(lambda job: job(), jobs):
                track.advance(1)
    found = {name: [seed.figures(name) for seed in todo] for name in arms}
    teachers = [json.loads((seed.folder / "teacher" / "summary.json").read_text())["test"]["top1"] for seed in todo]
    publish_text(folder / "ablation.json", json.dumps({"teacher": teachers, "arms": found}, indent=1))
    rows = [("teacher", _spread(teachers), *("" for _ in PROBES), "every label")]
    rows += [_row(*item) for item in found.items()]
    talk.table(
        f"top-1 on the test split, %: mean of {len(seeds)} seeds (least to most)",
        ("", "own classifier", *PROBES, "what"),
        rows,
    )
    minutes = (time.monotonic() - started) / 60
    talk.say(f"{len(arms)} arms x {len(seeds)} seeds, {STEPS} steps each: {minutes:.1f} minutes")


def _row(name: str, figures: Sequence[Mapping[str, float]]) -> tuple[Any, ...]:
    untaught = name in ("untrained", "reconstruction")  # nothing trained their classifier
    own = "" if untaught else _spread([found["own"] for found in figures])
    return (name, own, *(_spread([found[probe] for found in figures]) for probe in PROBES), ARMS[name].about)


def _spread(shares: Sequence[float]) -> str:
    return f"{100 * mean(shares):.1f} ({100 * min(shares):.1f} to {100 * max(shares):.1f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--out", default="runs/ablation")
    given = parser.parse_args()
    return guarded(lambda: ablation(Path(given.out), given.seeds, given.arms, given.workers))


if __name__ == "__main__":
    sys.exit(main())
