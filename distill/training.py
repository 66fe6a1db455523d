"""The training job: open the run, build what the recipe names, run the loop, keep the student and its figures."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.numpy import save_file
from torch import nn

from distill.checkpoint import (
    StudentCard,
    build_student,
    checkpoints,
    copy_student,
    newest_checkpoint,
    outline,
    read_card,
    save_student,
)
from distill.clips.batches import Failures, Plan, training_batches
from distill.clips.clipset import ClipSet, open_clips, open_manifest
from distill.clips.frames import StoredFrames
from distill.clips.manifest import SPLITS, Manifest
from distill.clips.views import test_views
from distill.errors import UserError
from distill.evaluate import REALTIME, Answers, collect, evaluate
from distill.files import publish, publish_text
from distill.freezing import Schedule
from distill.hub import narrow_student
from distill.keeping import Keeper
from distill.loop import Learner, Loop, Timetable, check
from distill.measure import measure
from distill.mixing import Mixer
from distill.objective.objective import Objective, needs_teacher
from distill.optim import Rate, make_optimizer
from distill.optim import check as check_optim
from distill.outputs import ClipSpec, Student
from distill.quantising import quantise
from distill.randomness import number
from distill.recipe import Recipe, differences, save_recipe, stages
from distill.rehearsal import Rehearsal, check_recipe, check_student
from distill.report import write_report
from distill.run_log import RunLog, Talk
from distill.shards.claims import Claims
from distill.shards.grid import Shards
from distill.starting import hold_zeros, start_from
from distill.sync import sync_batch_norm
from distill.teaching.store import CachedTeacher, needed, output_shards
from distill.teaching.store import check as check_cache
from distill.teaching.teacher import Teacher, fingerprint, open_teacher, wants

WRONG = "it counts as wrong"
PATIENCE = timedelta(days=1)  # one process may render, or fit probes, while the others wait
FILL = "distill cache with the same recipe and keys"


def train(recipe: Recipe) -> dict[str, Any]:
    """Train a student: from labels, from a teacher, or both.

    accelerate launch distill/train.py recipe=quickstart train.steps=300 objective.kl.weight=2
    distill train recipe=tiny out=runs/tiny

    Leaves recipe.yaml, metrics.jsonl, TensorBoard events, checkpoints, the student (student/, ready for the Hub),
    summary.json and report.html in the run folder. With resume=true it goes on from the newest checkpoint.
    """
    todo, summary = stages(recipe), dict[str, Any]()
    for stage in todo:
        check_recipe(stage)
        check_run(stage)
    accelerator, trained = start(recipe), ""
    for stage in todo if len(todo) > 1 else ():
        if not is_finished(stage):
            look(stage, accelerator)  # what is wrong with a later stage shows before an earlier one takes its time
    for stage in todo:
        if trained and (is_finished(stage) or checkpoints(Path(stage.out))):
            raise UserError(f"{stage.out} was trained from an earlier {trained}; choose another out=, or delete it")
        trained = trained if is_finished(stage) else stage.out
        with alone_in(Path(stage.out), accelerator):
            check_run(stage)  # somebody else may have been here since
            summary = _train(stage, accelerator)
    return summary


def _train(recipe: Recipe, accelerator: Accelerator) -> dict[str, Any]:
    """One stage: the whole of it, for most recipes."""
    talk, run = Talk(accelerator.is_main_process), Path(recipe.out)
    open_run(recipe, run, accelerator)
    summary_path = run / "summary.json"
    if is_finished(recipe):
        talk.say(f"{run} is finished already")
        return dict(json.loads(summary_path.read_text(encoding="utf-8")))

    started = time.monotonic()
    clips = look(recipe, accelerator)
    held_out = clips.manifest.of("test")
    student, card = begin(recipe, clips.manifest.classes, talk)
    plan = make_plan(recipe, clips, accelerator)
    loop = make_loop(recipe, clips, plan, student, accelerator, talk)
    steps = range(loop.done, loop.times.steps)
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    most = recipe.clips.failing * len(plan.indices) / world
    failures = Failures(talk.warn, "another clip takes its place", most)
    loop.fit(training_batches(clips, plan, steps, rank, world, failures, device))
    loop.log.close()
    keeper = loop.keeper
    student = keeper.finish()
    replaced = sorted({clips.manifest.clips[index].id for index in gather_object(list(failures.found))})

    answers = collect(student, clips, held_out, recipe.train.batch, accelerator, Failures(talk.warn, WRONG))
    failed = [clips.manifest.clips[index].id for index in answers.index[answers.failed]]
    seconds = round(time.monotonic() - started, 1)
    summary: dict[str, Any] = {"steps": loop.done, "seconds": seconds, "test": evaluate(answers)}
    if len(test_views(recipe.clips.views)) > 1:
        summary[REALTIME] = evaluate(collect(student, clips.seen_once(), held_out, recipe.train.batch, accelerator))
    if span := clips.seconds:
        summary["clip_seconds"] = round(span, 6)
    if keeper.at:
        summary["best"] = {"step": keeper.at, recipe.train.best: keeper.top}
    summary |= {name: ids for name, ids in (("replaced", replaced), ("unreadable", failed)) if ids}
    if accelerator.is_main_process:
        summary |= measure(copy_student(student, card))
        save_student(run, student, card, summary, {split: len(clips.manifest.of(split)) for split in SPLITS})
        save_answers(run, answers)
        write_report(run, run.name, {run.name: run}, clips, summary)
        publish_text(summary_path, json.dumps(summary, indent=1))  # last: it says that the run is finished
    accelerator.wait_for_everyone()
    return summary


def begin(recipe: Recipe, classes: Sequence[str], talk: Talk) -> tuple[Student, StudentCard]:
    """The student before its first step. One that starts from a pruned one is as narrow and as sparse, and stays so."""
    torch.manual_seed(number(recipe.seed, "weights"))
    student = build_student(recipe.student, len(classes))
    card = StudentCard(dict(vars(recipe.student)), list(classes), student.spec)
    if recipe.init:
        try:
            before = read_card(Path(recipe.init)) if Path(recipe.init).is_dir() else card
            narrow_student(student, before.widths, len(classes))
        except UserError as error:
            raise UserError(f"init: {error}") from error
        told = start_from(student, recipe.init)
        hold_zeros(student, before.sparse)
        card = replace(card, widths=before.widths, sparse=before.sparse)
        if not checkpoints(Path(recipe.out)):  # else later weights take their place
            talk.say(told)
    if recipe.train.quantise:
        quantise(student)
    return student, card


def is_finished(recipe: Recipe) -> bool:
    return (Path(recipe.out) / "summary.json").exists()


def look(recipe: Recipe, accelerator: Accelerator) -> ClipSet:
    """The clips to train with, once it is known that everything is there and fits."""
    clips = see_clips(recipe, accelerator)
    held_out = clips.manifest.of("test")
    if all(clips.manifest.clips[index].broken for index in held_out):
        why = "none of the test clips can be read (distill clips says why)" if held_out else "there are no test clips"
        raise UserError(f"{why}, so nothing could be said about the student")
    check_student(recipe, clips.manifest)
    require_cached_frames(recipe, clips)
    if needs_teacher(recipe.objective) and recipe.cache.outputs:
        clips = with_cached_answers(recipe, clips)
    return clips


def make_loop(
    recipe: Recipe, clips: ClipSet, plan: Plan, student: Student, accelerator: Accelerator, talk: Talk
) -> Loop:
    """The loop around a student, at the step where an earlier attempt was stopped."""
    run, val, wrong = Path(recipe.out), clips.manifest.of("val"), Failures(talk.warn, WRONG)
    device, seed = accelerator.device, recipe.seed
    times = Timetable.of(recipe.train, plan.epoch_steps)
    objective = Objective(recipe.objective, plan.epoch_steps)
    objective.check_times(times.steps)
    teacher = make_teacher(recipe, clips, accelerator) if needs_teacher(recipe.objective) else None
    Rehearsal(student.to(device), teacher, objective, recipe.schedule, times, seed, device)(clips.spec, plan.indices)
    learner: nn.Module = Learner(student, objective)
    if accelerator.num_processes > 1:
        learner = sync_batch_norm(learner, device)
    schedule = Schedule(student, recipe.schedule, plan.epoch_steps)
    optimizer = make_optimizer(learner, recipe.optim, schedule.factor)
    wrapped, optimizer = accelerator.prepare(learner, optimizer)
    folder, options = run / "checkpoints", recipe.train
    state = newest_checkpoint(run)
    loop = Loop(
        learner=wrapped,
        objective=objective,
        teacher=teacher,
        optimizer=optimizer,
        accelerator=accelerator,
        options=options,
        mixer=Mixer(options.mixup, options.cutmix),
        times=times,
        rate=Rate(recipe.optim, times.steps, plan.epoch_steps),
        clip_norm=recipe.optim.clip_norm,
        schedule=schedule,
        keeper=Keeper(student, options.ema, options.best, options.patience, folder, accelerator.is_main_process),
        seed=seed,
        run=run,
        log=RunLog(run, state["step"] if state else 0, accelerator.is_main_process),
        talk=talk,
        validate=lambda kept: evaluate(collect(kept, clips, val, options.batch, accelerator, wrong)) if val else {},
    )
    if state:
        loop.restore(state)
        talk.say(f"going on from step {loop.done}")
    steps = accelerator.gather(torch.tensor([loop.done], device=accelerator.device)).unique().tolist()
    if len(steps) > 1:
        raise UserError(
            f"the processes found {run} at different steps ({steps}); it has to be on a disk that all share"
        )
    return loop


def start(recipe: Recipe) -> Accelerator:
    """One process, or one of many: accelerate decides from how we were launched."""
    check(recipe.train)
    check_optim(recipe.optim)
    check_cache(recipe.cache)
    # A recipe may leave out the decoder or the classifier; their parameters then have no gradient. Statistics and
    # memories come out alike on all processes by themselves.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(mixed_precision=recipe.train.precision, kwargs_handlers=[unused, patient])
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, but each believes it is one of {accelerator.num_processes}; "
            "on CPUs set ACCELERATE_USE_CPU=true and launch with torchrun --nproc_per_node=N"
        )
    return accelerator


def check_run(recipe: Recipe) -> None:
    """Whether the run folder is free for this recipe, or holds a run of it that may go on."""
    run = Path(recipe.out)
    saved = run / "recipe.yaml"
    if not is_finished(recipe) and not checkpoints(run):
        return
    if not saved.exists():
        raise UserError(f"{run} holds something else than a run of this kind; choose another out=")
    if not recipe.resume:
        raise UserError(f"{run} already holds a run; say resume=true to go on with it, or choose another out=")
    changed = differences(recipe, saved)
    if changed:
        raise UserError(f"{run} was made with another {changed[0]}; choose another out=, or delete the folder")


@contextmanager
def alone_in(run: Path, processes: Accelerator | PartialState) -> Iterator[None]:
    """Two jobs in one run folder would write over each other's checkpoints, and mix up their answers."""
    with ExitStack() as held:
        alone = held.enter_context(Claims(run / ".claim")).take(0) if processes.is_main_process else False
        (alone,) = broadcast_object_list([alone])
        if not alone:
            raise UserError(f"another job is at work in {run}; wait for it, or choose another out=")
        yield


def open_run(recipe: Recipe, run: Path, accelerator: Accelerator) -> None:
    """Make the run folder and keep the merged recipe in it."""
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, run / "recipe.yaml")
    accelerator.wait_for_everyone()


def see_clips(recipe: Recipe, accelerator: Accelerator) -> ClipSet:
    """The recipe's clips, at a size that serves the student and its teacher alike."""
    with accelerator.main_process_first():
        manifest = open_manifest(recipe.clips, Path(recipe.cache.folder), recipe.seed)
    clips = open_clips(manifest, recipe.clips, batch_spec(recipe, manifest), recipe.cache.kept)
    if clips.lacking:
        Talk(accelerator.is_main_process).say(clips.lacking)
    return clips


def batch_spec(recipe: Recipe, manifest: Manifest) -> ClipSpec:
    spec = outline(recipe.student, len(manifest.classes)).spec
    return spec.union(wants(recipe.teacher)) if recipe.teacher else spec


def require_cached_frames(recipe: Recipe, clips: ClipSet) -> None:
    """Say at once, not at step 700, which frames the cache lacks."""
    require_frames(clips, clips.training(), range(1, recipe.clips.views.count + 1))
    require_frames(clips.seen_once(), clips.manifest.of("val") + clips.manifest.of("test"), [0])


def require_frames(clips: ClipSet, indices: Sequence[int], views: Sequence[int]) -> None:
    if isinstance(clips.frames, StoredFrames):
        clips.frames.shards.require(dict.fromkeys(views, np.asarray(indices, np.int64)), FILL)


def with_cached_answers(recipe: Recipe, clips: ClipSet) -> ClipSet:
    """Refuse to go on without all records; the clips as if those were broken that the teacher could not be shown."""
    shards, needs = cached_outputs(recipe, clips), needed(recipe.cache, clips, clips.training())
    shards.require(needs, FILL)
    failed = {clip for found in shards.failures(needs).values() for clip in found}
    return clips.with_trouble(failed, "could not be read when the teacher was asked") if failed else clips


def cached_outputs(recipe: Recipe, clips: ClipSet) -> Shards:
    return output_shards(recipe.cache, clips, fingerprint(recipe.teacher))


def make_teacher(recipe: Recipe, clips: ClipSet, accelerator: Accelerator) -> Teacher:
    """From the cache or live: the same call, the same answers."""
    if recipe.cache.outputs:
        soft_labels = bool(recipe.cache.test_clips)
        return CachedTeacher(cached_outputs(recipe, clips), clips.name, soft_labels, recipe.cache.maps)
    teacher = open_teacher(recipe.teacher, clips.manifest.classes, recipe.cache.maps, recipe.cache.autocast)
    return teacher.to(accelerator.device)


def make_plan(recipe: Recipe, clips: ClipSet, accelerator: Accelerator) -> Plan:
    indices = clips.training()
    return Plan(
        indices=indices,
        labelled=[clips.manifest.clips[i].label >= 0 for i in indices],
        batch=recipe.train.batch,
        parts=accelerator.num_processes * recipe.train.accumulate,
        view_options=recipe.clips.views,
        seed=recipe.seed,
    )


def save_answers(run: Path, answers: Answers) -> None:
    """The student's answers about the test clips: what the report draws."""
    columns: dict[str, np.ndarray] = {name: np.ascontiguousarray(value) for name, value in vars(answers).items()}
    publish(run / "answers.safetensors", lambda part: save_file(columns, part))
