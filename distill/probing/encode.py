"""From a run to tables of latents: what its student makes of the clips, and what the cache holds of its teacher.

The student is asked as any teacher is, so that any number of processes share the work, and what is done stays done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from distill import plugins
from distill.checkpoint import fingerprint_student, read_card
from distill.clips import views
from distill.clips.batches import Failures
from distill.clips.clipset import ClipSet
from distill.clips.manifest import SPLITS
from distill.errors import UserError
from distill.probing.table import LatentTable, Split
from distill.recipe import Recipe
from distill.run_log import Talk
from distill.shards.grid import Shards
from distill.teaching.caching import ask
from distill.teaching.filling import Filling
from distill.training import cached_outputs, require_frames, see_clips

UNREAD = "a probe learns without it, and as a test clip it counts as a wrong answer"


@dataclass(frozen=True)
class Encoding:
    """The clips of a run that probes look at, and where their latents are kept."""

    recipe: Recipe
    clips: ClipSet
    accelerator: Accelerator
    talk: Talk

    @staticmethod
    def of(recipe: Recipe, accelerator: Accelerator) -> Encoding:
        read_card(Path(recipe.out))  # a run that has no student yet says so before anything else is looked for
        # Probes measure the latents, so they may use labels that training had to do without.
        labelled = replace(recipe.clips, labelled=recipe.probe.labelled)
        recipe = replace(recipe, clips=labelled)
        return Encoding(recipe, see_clips(recipe, accelerator), accelerator, Talk(accelerator.is_main_process))

    @cached_property
    def chosen(self) -> Mapping[str, np.ndarray]:
        """The labelled clips of each split; of the training and validation clips, those that can be read."""
        clips, found = self.clips.manifest.clips, {}
        for split in SPLITS:
            wanted = [
                i
                for i in self.clips.manifest.of(split)
                if clips[i].label >= 0 and (split == "test" or not clips[i].broken)
            ]
            if not wanted and split != "val":
                raise UserError(
                    f"the probe needs labelled clips in the split {split!r}, and the data set of {self.recipe.out} has "
                    "none"
                )
            found[split] = np.array(wanted, np.int64)
        return {split: index for split, index in found.items() if len(index)}

    def encode(self) -> Shards:
        """Every process does its share."""
        recipe, index = as_teacher(self.recipe), np.concatenate(list(self.chosen.values()))
        if not recipe.cache.test_clips:
            require_frames(self.clips, index.tolist(), [0])
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        filling = Filling(self.clips, rank, world, self.talk, Failures(self.talk.warn, UNREAD))
        return ask(recipe, filling, {0: index}, self.accelerator, "latents", "encode clips")

    def student(self, shards: Shards) -> LatentTable:
        made = {"run": self.recipe.out, "student": fingerprint_student(Path(self.recipe.out))}
        return self._table(shards, {**made, "precision": self.recipe.train.precision})

    def teacher(self) -> LatentTable | str:
        """Or why there is none."""
        if self.recipe.teacher is None or not self.recipe.cache.outputs:
            return "the run has no cached teacher"
        plain = replace(self.recipe, cache=replace(self.recipe.cache, maps=[]))
        shards = cached_outputs(plain, self.clips)
        lacking = shards.missing({0: np.concatenate(list(self.chosen.values()))})
        if lacking:
            return f"the cache lacks {len(lacking[0])} clips of the teacher's (distill cache makes them)"
        if "feature" not in shards.record("", int(self.chosen["train"][0]), 0)[0]:
            return "the teacher has no features, only logits"
        return self._table(shards, {"teacher": plain.teacher.name, "precision": plain.cache.precision})

    def _table(self, shards: Shards, about: Mapping[str, str]) -> LatentTable:
        clips, splits = self.clips.manifest.clips, {}
        for split, index in self.chosen.items():
            seen, latent = shards.read(["seen", "feature"], index, np.zeros_like(index))
            label, read = np.array([clips[i].label for i in index]), seen.any(1)
            if not read.any():
                raise UserError(f"none of the clips in the split {split!r} can be read; run distill clips to see why")
            names = [clips[i].id for i in index[read]]
            unanswered = label[~read] if split == "test" else label[:0]
            splits[split] = Split(latent[read].astype(np.float32), label[read], names, unanswered)
        origin = {**about, "store": str(shards.folder), "source": self.recipe.clips.source.name}
        return LatentTable(list(self.clips.manifest.classes), splits, origin)


def as_teacher(recipe: Recipe) -> Recipe:
    """The recipe of a cache of what its own student says, in the test views."""
    tested = recipe.clips.views
    several = views.test_views(tested) != [0]
    options = replace(
        recipe.cache,
        folder=str(Path(recipe.out, "probe", "encoding")),
        remote="",
        outputs=True,
        precision="float32",
        top_k=0,
        maps=[],
        test_clips=tested.test_clips if several else 0,
        test_crops=tested.test_crops if several else 1,
        autocast=recipe.train.precision,
        compile=False,
        batch=0,
    )
    student = plugins.schema("teacher", "student")(name="student", run=recipe.out)
    return replace(recipe, teacher=student, cache=options)
