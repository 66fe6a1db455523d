"""What the cache costs: making it, reading it, checking it, and training from it. All compared within one run.

    make bench-cache

A teacher of Kinetics' size (400 logits, a feature of 512 numbers, 246,534 clips) is stored with made-up numbers; the
job is timed with torchvision's ViT-B/16 over the frames of generated videos. Times are those of the processor (user
and system, all threads and workers), since walls lie on shared machines; where walls count, both are told.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torchvision.models import vit_b_16

from distill import command
from distill.checkpoint import build_student
from distill.clips.batches import Part, load
from distill.clips.clipset import ClipSet
from distill.loop import Learner
from distill.objective import terms
from distill.objective.losses import LOSSES
from distill.objective.objective import Objective
from distill.outputs import Clips, StudentOutput, TeacherOutput, TopK
from distill.plugins import schema
from distill.recipe import Recipe, read_recipe
from distill.run_log import Talk
from distill.shards import files
from distill.shards.grid import Shards
from distill.teaching.asking import Asking
from distill.teaching.filling import Filling
from distill.teaching.store import CachedTeacher, pack
from distill.teaching.teacher import LiveTeacher, open_teacher
from distill.training import cached_outputs, see_clips, start
from tools.bench_video import generate

CLIPS, CLASSES, WIDTH = 246_534, 400, 512
BOOKKEEPING = 28  # bytes: what was seen (20) and which clip it is (8)
BATCHES, ROUNDS = 400, 12
JOB_CLIPS, JOB_ROUNDS = 16, 3
STRIDES = [[1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]


def cpu() -> float:
    """Seconds of the processor, by this process and by the workers that it has waited for."""
    return sum(resource.getrusage(who).ru_utime + resource.getrusage(who).ru_stime for who in (0, -1))


def spread(values: list[float], digits: int = 3) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


# ---------------------------------------------------------------- reading, at the size of Kinetics-400


def write_kinetics(root: Path) -> Shards:
    dice = np.random.default_rng(0)
    shards = Shards(root, "outputs", {"bench": 1}, dice.integers(0, 2**63, CLIPS, np.uint64))
    needs = {0: np.arange(CLIPS)}
    shards.enroll(needs)
    for shard, _ in shards.gaps(needs):
        count = len(shards.members(shard))
        answer = TeacherOutput(torch.randn(count, CLASSES), torch.randn(count, WIDTH))
        shards.commit(shard, 0, pack(answer, np.ones((count, 20), np.uint8), "float16", 0))
    return shards


def write_memmaps(root: Path) -> list[np.ndarray]:
    """The same numbers as one array in a file for each field: what a store without any promises would be."""
    found = []
    for width in (CLASSES, WIDTH):
        rows = np.lib.format.open_memmap(root / f"{width}.npy", "w+", np.float16, (CLIPS, width))
        for at in range(0, CLIPS, 8192):
            rows[at : at + 8192] = np.random.default_rng(at).standard_normal(rows[at : at + 8192].shape)
        rows.flush()
        found.append(np.load(root / f"{width}.npy", mmap_mode="r"))
    return found


def bench_reading(root: Path, talk: Talk) -> None:
    written = write_kinetics(root / "cache")
    memmaps = write_memmaps(root)
    weight = sum(path.stat().st_size for path in written.folder.rglob("*.safetensors"))
    payload = 2 * (CLASSES + WIDTH) + BOOKKEEPING
    talk.say(
        f"bytes a record: {weight / CLIPS:.2f}, {weight / CLIPS / payload:.5f} of the fields' {payload}; goal 1.001"
    )

    before, started = anonymous(), time.perf_counter()
    shards = Shards(root / "cache", "outputs", {"bench": 1}, written.keys)
    shards.require({0: np.arange(CLIPS)}, "never")
    opened = 1e3 * (time.perf_counter() - started)
    order = np.random.default_rng(1).permutation(CLIPS)
    batches = [order[64 * i : 64 * (i + 1)] for i in range(BATCHES)]
    view = np.zeros(64, np.int64)
    for batch in (order[at : at + 64] for at in range(0, CLIPS - 64, 64)):  # a whole epoch: every page is warm
        shards.read(["logits", "feature"], batch, view)
        for rows in memmaps:
            rows[batch]
    ours, theirs = [], []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for batch in batches:
            shards.read(["logits", "feature"], batch, view)
        middle = time.process_time()
        for batch in batches:
            for rows in memmaps:
                rows[batch]
        ours.append(1e3 * (middle - begun) / BATCHES)
        theirs.append(1e3 * (time.process_time() - middle) / BATCHES)
    kept = anonymous() - before
    talk.say(f"open: {opened:.1f} ms, goal 50;  anonymous memory after an epoch: {kept / 1e6:.1f} MB, goal 5")
    talk.say(f"random batch of 64: {spread(ours)} ms, goal 1;  np.memmap per field: {spread(theirs)} ms")
    ratio = [one / other for one, other in zip(ours, theirs, strict=True)]
    talk.say(f"over np.memmap: {spread(ratio, 2)}, goal 4")

    cached = CachedTeacher(shards, str, soft_labels=False)
    pixels = torch.zeros(64, 1, 3, 1, 1, dtype=torch.uint8)
    whole = []
    for _ in range(ROUNDS):
        begun = time.process_time()
        for batch in batches[:100]:
            index = torch.from_numpy(batch)
            cached(Clips(frames=pixels, label=index, index=index, view=torch.from_numpy(view)))
        whole.append(1e3 * (time.process_time() - begun) / 100)
    talk.say(f"the same as a TeacherOutput in float32, with what was seen compared: {spread(whole)} ms")

    rates = []
    for _ in range(5):
        started = time.perf_counter()
        for shard in range(shards.roll.shards):
            files.read(shards.path(0, shard))
        rates.append(weight / (time.perf_counter() - started) / 1e9)
    talk.say(f"verify, warm: {spread(rates, 2)} GB/s, goal 3")


# ---------------------------------------------------------------- making


def job_recipe(root: Path) -> Recipe:
    """A ViT-B/16 of torchvision, seen four frames of each of some generated videos."""
    for label in range(2):
        (root / "data" / f"class {label}").mkdir(parents=True)
    generate(root / "data" / "class 0" / "0.mp4")
    for number in range(1, JOB_CLIPS):
        (root / "data" / f"class {number % 2}" / f"{number}.mp4").hardlink_to(root / "data" / "class 0" / "0.mp4")
    torch.manual_seed(0)
    torch.save(vit_b_16(num_classes=CLASSES).state_dict(), root / "vit.pt")
    (root / "labels.txt").write_text("\n".join(f"class {i}" for i in range(CLASSES)))
    teacher = {"name": "torchvision", "model": "vit_b_16", "weights": root / "vit.pt", "labels": root / "labels.txt"}
    given = [f"teacher.{key}={value}" for key, value in (teacher | {"frames": 4}).items()]
    given += ["recipe=videos", f"clips.source.folder={root / 'data'}", f"cache.folder={root / 'cache'}"]
    given += ["clips.source.test=0", "clips.source.val=0", f"out={root / 'out'}", "clips.workers=1"]
    given += [f"clips.views.count={JOB_ROUNDS}", "student.size=112", "student.frames=4", "objective.kl.weight=1"]
    assert command.run("clips", given) == 0
    return read_recipe(given)


def bench_job(recipe: Recipe, clips: ClipSet, talk: Talk) -> LiveTeacher:
    teacher = open_teacher(recipe.teacher, clips.manifest.classes)
    asking = Asking(teacher, recipe.cache, clips, torch.device("cpu"))
    shards = cached_outputs(recipe, clips)
    filling = Filling(clips, 0, 1, Talk(False), lambda failures: None)
    everyone = np.arange(len(clips.manifest.clips))
    shards.enroll(dict.fromkeys(range(1, JOB_ROUNDS + 1), everyone))
    bare, job, walls = [], [], []
    teacher(next(iter(load(clips, [Part([0], [1], np.ones(1, np.float32))]))))
    for view in range(1, JOB_ROUNDS + 1):
        parts = [
            Part(everyone[at : at + asking.batch].tolist(), [view], np.ones(len(everyone[at : at + asking.batch])))
            for at in range(0, len(everyone), asking.batch)
        ]
        parts = [replace(part, label_weight=part.label_weight.astype(np.float32)) for part in parts]
        ready = list(load(clips, parts))
        begun, started = cpu(), time.perf_counter()
        for batch in ready:
            teacher(batch)
        middle, half = cpu(), time.perf_counter()
        filling.fill("", shards, {view: everyone}, clips.frames, lambda numbers: numbers, asking.make)
        bare.append(middle - begun)
        job.append(cpu() - middle)
        walls.append((half - started) / (time.perf_counter() - half))
    ratio = [one / other for one, other in zip(bare, job, strict=True)]
    talk.say(f"teacher alone: {spread([seconds / len(everyone) for seconds in bare], 2)} CPU s a clip")
    talk.say(f"job over teacher alone: {spread(ratio)} by CPU, {spread(walls)} by the wall; goal 0.95")
    return teacher


def bench_steps(recipe: Recipe, clips: ClipSet, live: LiveTeacher, talk: Talk) -> None:
    """A training step from labels alone, with the cached teacher, and with the live one."""
    everyone = list(range(len(clips.manifest.clips)))
    (batch,) = load(clips, [Part(everyone, [1], np.ones(len(everyone), np.float32))])
    accelerator = Accelerator()
    options = schema("student", "tinyact")(frames=4, size=112, strides=STRIDES)
    known: dict[str, Any] = {
        "cross_entropy": terms.schema("cross_entropy")(weight=1),
        "kl": terms.schema("kl")(weight=1),
    }
    student = build_student(options, len(clips.manifest.classes))
    cached = CachedTeacher(cached_outputs(recipe, clips), clips.name, soft_labels=False)

    def step(names: list[str], teacher: Callable[[Clips], TeacherOutput] | None) -> float:
        learner = Learner(student, Objective({name: known[name] for name in names}))
        begun = cpu()
        answer = teacher(batch) if teacher else None
        accelerator.backward(torch.stack(list(learner(batch, answer, 0).values())).sum())
        seconds = cpu() - begun
        student.zero_grad()
        return seconds

    step(["cross_entropy", "kl"], cached)
    rows = [(step(["cross_entropy"], None), step(["cross_entropy", "kl"], cached)) for _ in range(ROUNDS)]
    alone, cached_too = (1e3 * median(column) for column in zip(*rows, strict=True))
    talk.say(f"a step from labels {alone:.0f} ms of CPU, with the cached teacher {cached_too:.0f} ms")
    talk.say(f"step from the cache over a step from labels: {spread([b / a for a, b in rows])}; goal 1.05")
    once = step(["cross_entropy", "kl"], live)
    talk.say(f"step with the live teacher over one from the cache: {once / median([b for _, b in rows]):.1f}")


# ---------------------------------------------------------------- the largest k


def bench_top_k(talk: Talk) -> None:
    """How far the loss and its gradient are from those of all 400 logits."""
    torch.manual_seed(0)
    zeros = torch.zeros(512, dtype=torch.int64)
    clips = Clips(torch.zeros(512, 1, 3, 1, 1, dtype=torch.uint8), zeros, zeros, zeros)
    rows = []
    for kind, scale in (("confident", 3.4), ("soft", 2.2)):
        logits = scale * torch.randn(512, CLASSES)
        answer = torch.randn(512, CLASSES)
        for temperature in (1.0, 4.0):
            exact = _loss(answer, TeacherOutput(logits), clips, temperature)
            for count in (5, 10, 20, 50):
                kept = TopK.of(logits, count).map(lambda value: value.half() if value.is_floating_point() else value)
                loss, gradient = _loss(answer, TeacherOutput(kept).float(), clips, temperature)
                alike = F.cosine_similarity(gradient.flatten(), exact[1].flatten(), 0)
                off = float((gradient - exact[1]).norm() / exact[1].norm())
                share = f"{float(loss / exact[0] - 1):+.3f}"
                rows.append((kind, f"{temperature:g}", str(count), share, f"{off:.3f}", f"{float(alike):.4f}"))
    head = ("teacher", "T", "k", "loss over dense - 1", "gradient off by", "cosine")
    talk.table("KL from the k largest logits and the sum of the others, 400 classes", head, rows)


def _loss(
    answer: torch.Tensor, teacher: TeacherOutput, clips: Clips, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    leaf = answer.clone().requires_grad_()
    loss = LOSSES["kl"](StudentOutput(leaf, leaf), teacher, clips, temperature=temperature)
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


def main() -> int:
    talk = Talk()
    with tempfile.TemporaryDirectory() as folder:
        talk.say("\n== reading: 246,534 clips, 400 logits and 512 numbers each, float16")
        bench_reading(Path(folder), talk)
        talk.say("\n== making: torchvision's ViT-B/16, 4 frames of 224 pixels, decoding in one worker")
        recipe = job_recipe(Path(folder))
        clips = see_clips(recipe, start(recipe))
        live = bench_job(recipe, clips, talk)
        talk.say("\n== training: TinyAct, 4 frames of 112 pixels, batch 16")
        bench_steps(recipe, clips, live, talk)
    talk.say("")
    bench_top_k(talk)
    return 0


if __name__ == "__main__":
    sys.exit(main())
