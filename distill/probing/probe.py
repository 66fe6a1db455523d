"""The probe job: encode the splits with a run's student, fit classifiers on the latents, report."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from distill.checkpoint import load_student
from distill.clips.manifest import SPLITS, Manifest
from distill.errors import UserError
from distill.evaluate import collect
from distill.files import publish_text
from distill.probing.classifiers import judge
from distill.recipe import Recipe
from distill.report import write_report
from distill.run_log import Talk, percent
from distill.training import require_frames, see_clips, start


def probe(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """Judge the latents of the student in a run folder with classical classifiers.

    accelerate launch distill/probe.py recipe=runs/quickstart/distilled/recipe.yaml
    distill probe recipe=runs/tiny/recipe.yaml probe.probes=[svm]

    Settings are chosen on the validation split; the test split is looked at once. Writes probe.json.
    """
    accelerator = start(recipe)
    talk, run = Talk(accelerator.is_main_process), Path(recipe.out)
    student = load_student(run).to(accelerator.device)
    # Probes measure the latents, so they may use labels that training had to do without.
    labelled = replace(recipe.clips, labelled=recipe.probe.labelled)
    clips = see_clips(replace(recipe, clips=labelled), accelerator)
    wanted = {split: _labelled(clips.manifest, split) for split in SPLITS}
    require_frames(clips.for_tests(), list(chain.from_iterable(wanted.values())), [0])
    data = {}
    for split, labelled_clips in wanted.items():
        if not labelled_clips:
            raise UserError(f"the probe needs labelled clips in the split {split!r}, and the data set has none")
        answers = collect(student, clips, labelled_clips, recipe.train.batch, accelerator)
        if answers.failed.all():
            raise UserError(f"none of the clips in the split {split!r} can be read; run distill clips to see why")
        data[split] = (answers.latent[~answers.failed], answers.label[~answers.failed])
    readable = float((~answers.failed).mean())  # of the test split, the last one; what cannot be read counts as wrong
    found = {}
    if accelerator.is_main_process:
        with talk.track(f"probe {run.name}", len(recipe.probe.probes)) as track:
            for name in recipe.probe.probes:
                verdict = judge(name, data["train"], data["val"], data["test"], recipe.seed)
                verdict = replace(verdict, top1=verdict.top1 * readable)
                found[name] = vars(verdict)
                track.advance(1, f"{name} {percent(verdict.top1)}")
        publish_text(run / "probe.json", json.dumps(found, indent=1))
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        write_report(run, run.name, {run.name: run}, clips, summary)
    accelerator.wait_for_everyone()
    return found


def _labelled(manifest: Manifest, split: str) -> list[int]:
    clips = manifest.clips
    return [i for i in manifest.of(split) if clips[i].label >= 0 and (split == "test" or not clips[i].broken)]
