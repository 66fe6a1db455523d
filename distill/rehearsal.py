"""Before training starts: what does not fit shows now, in one line, and not after hours.

The recipe is checked on its own; then with the clips, on a student without weights; then student, teacher and
objective meet over an example.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from distill.checkpoint import outline
from distill.clips.manifest import Manifest
from distill.errors import UserError
from distill.freezing import Freezing, Schedule
from distill.freezing import check as check_schedule
from distill.loop import Timetable
from distill.loop import check as check_train
from distill.measure import imagined
from distill.mixing import Mixer
from distill.objective.objective import (
    Objective,
    check_features,
    check_mixable,
    needs_teacher,
    teacher_maps,
)
from distill.optim import check as check_optim
from distill.outputs import Clips, ClipSpec, Student, StudentOutput
from distill.randomness import generator, number
from distill.recipe import Recipe
from distill.teaching.teacher import Teacher


def check_recipe(recipe: Recipe) -> None:
    """What can be said before any clip is looked at."""
    check_train(recipe.train)
    check_optim(recipe.optim)
    check_schedule(recipe.schedule)
    Objective(recipe.objective)
    teaches, cached = needs_teacher(recipe.objective), recipe.cache.outputs
    if teaches and recipe.teacher is None:
        raise UserError("the objective learns from a teacher, but the recipe has none; set teacher.name")
    if teaches and recipe.cache.test_clips and (maps := teacher_maps(recipe.objective)):
        raise UserError(f"cache.test_clips averages over other views, so {maps[0]} is no map of what the student sees")
    if Mixer(recipe.train.mixup, recipe.train.cutmix):
        check_mixable(recipe.objective)
        if teaches and cached:
            raise UserError(
                "train.mixup and train.cutmix blend clips, and the cache knows what the teacher said of each alone; "
                "ask the teacher live with cache.outputs=false, or set both to 0"
            )


def check_student(recipe: Recipe, manifest: Manifest) -> None:
    """What can be said with these clips, before the student has weights."""
    student = outline(recipe.student, len(manifest.classes))
    painted = imagined(student, ("reconstruction",)).reconstruction is not None
    check_features(recipe.objective, student)
    Schedule(student, recipe.schedule, 1)
    labelled = any(manifest.clips[index].label >= 0 for index in manifest.of("val"))
    lacking = {
        "top1": "" if labelled else "labelled clips in the validation split; see clips.validation",
        "top5": "" if labelled and len(manifest.classes) > 5 else "a validation split and more than five classes",
        "reconstruction": "" if painted and manifest.of("val") else "a validation split and a student with a decoder",
    }
    if lacking.get(recipe.train.best):
        raise UserError(f"train.best={recipe.train.best} needs {lacking[recipe.train.best]}")


@dataclass(frozen=True)
class Rehearsal:
    """Student, teacher and objective over an example, before anything is wrapped for several processes.

    Random numbers go on as if nothing had happened, and so does the student.
    """

    student: Student
    teacher: Teacher | None
    objective: Objective
    schedule: Freezing
    times: Timetable
    seed: int
    device: torch.device

    def __call__(self, spec: ClipSpec, training: Sequence[int]) -> None:
        """Makes what the losses learn, and tries every turn of the training. `spec` is that of the batches."""
        clips = self._example(spec, training)
        trains = {parameter: parameter.requires_grad for parameter in self.student.parameters()}
        with torch.random.fork_rng():
            torch.manual_seed(number(self.seed, "parts"))
            with torch.no_grad():
                said = self._ask(clips, self.objective.ever_wanted)
                taught = self.teacher(clips) if self.teacher else None
            self.objective.meet(said, taught, clips, training)
            schedule = Schedule(self.student, self.schedule, self.times.epoch)
            for step in sorted({turn for turn in schedule.turns if turn < self.times.steps} | {*self._turns()}):
                schedule.apply(step)
                self.objective.try_on(self._ask(clips, self.objective.want(step)), taught, clips, step)
        for parameter, trained in trains.items():
            parameter.requires_grad_(trained)
        self.student.train()

    def _turns(self) -> Sequence[int]:
        return self.objective.turns(self.times.steps) if self.times.steps else []

    def _example(self, spec: ClipSpec, training: Sequence[int]) -> Clips:
        """Noise that claims to be two of the training clips."""
        index = torch.tensor([training[0], training[-1]])
        shape = (2, spec.frames, 3, spec.size, spec.size)
        noise = torch.from_numpy(generator(self.seed, "rehearsal").integers(0, 256, shape, "uint8"))
        return Clips(noise, torch.zeros_like(index), index, torch.ones_like(index)).to(self.device)

    def _ask(self, clips: Clips, want: Collection[str]) -> StudentOutput:
        frames = self.student.eval().spec.fit(clips.frames)
        try:
            said: StudentOutput = self.student(frames, want=want)
        except RuntimeError as error:
            raise UserError(f"the student cannot see {list(frames.shape)}: {str(error).splitlines()[0]}") from error
        return said
