"""What is left of students when they leave for other runtimes: agreement of trained ones, speed of whole ones.

    python -m tools.bench_export agreement --out runs/bench_export
    python -m tools.bench_export speed --out runs/bench_speed

`agreement` trains a small student of every family on embedded clips (TSN, whose frames do not know each other, learns
digits instead of motions; TSM and lightweight begin with its weights; tinyact_frames learns without labels), exports
each in INT8 and compares it with itself on all test clips.
`speed` exports students of the sizes that people run, with weights of a few steps, and measures them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from distill.command import guarded
from distill.deploy import export_request, measure_request
from distill.deploy.card import EXPORTS, SUFFIXES, read_export
from distill.deploy.exporting import export
from distill.deploy.measure_subjects import exports
from distill.deploy.measuring import measure
from distill.deploy.real_clips import RealClips, plain_clips, take
from distill.deploy.recogniser import Recogniser, open_any
from distill.errors import UserError
from distill.files import publish_text
from distill.outputs import ClipSpec
from distill.recipe import Recipe, read_recipe
from distill.run_log import Talk, percent
from distill.teaching.caching import cache
from distill.training import train

CLIP: dict[str, Any] = {"frames": 8, "size": 48}
SMALL = {"backbone": "timm/test_resnet", **CLIP}  # learns from nothing in minutes, which mobile networks do not
# Picture networks learn motion slowly from nothing, so they have more clips of fewer classes before a calm background.
CALM = {"train": 400, "test": 150, "texture": 0.1, "drift": 0.0, "noise": 0.01}
FOUR = {**CALM, "classes": ["right", "left", "down", "up"]}
FAMILIES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # clips, and the student that learns them
    "tsn": ({**CALM, "label": "digit"}, {"name": "tsn", **SMALL, "frames": 4, "dropout": 0.1}),
    "tsm": (FOUR, {"name": "tsn", **SMALL, "dropout": 0.1, "shift": "bidirectional"}),
    "tsm_online": (FOUR, {"name": "tsn", **SMALL, "dropout": 0.1, "shift": "online"}),
    "lightweight": ({**CALM, "classes": ["grow", "shrink", "still"]}, {"name": "lightweight", "width": 96, **SMALL}),
    "tinyact": (
        {},
        {
            "name": "tinyact",
            **CLIP,
            "widths": [32, 64, 96, 128],
            "latent": 256,
            "hidden": 128,
            "decoder": False,
            "strides": [[1, 2, 2], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        },
    ),
    "tinyact_frames": (
        {},
        {"name": "tinyact_frames", **CLIP, "widths": [32, 64, 128, 128], "latent": 256},
    ),
    "video3d": (FOUR, {"name": "video3d", "model": "x3d_xs", "frames": 8, "size": 32}),
}
FIRST = {"tsm": "tsn", "tsm_online": "tsn", "lightweight": "tsn"}  # whose weights a family begins with
# How many times as many steps as others: more from nothing, fewer well begun, fewest where each takes seconds.
PACE = {"tsn": 3, "tsm": 0.25, "lightweight": 0.25, "tinyact_frames": 0.15, "video3d": 0.25}
UNTAUGHT = ("tinyact_frames",)  # families that learn without labels, by drawing clips again
FORMS = {name: ["whole", "stream"] for name in ("tsn", "tsm_online", "lightweight")} | {
    "tinyact": ["whole", "encoder"],
    "tinyact_frames": ["encoder"],
}
WHOLE: dict[str, tuple[dict[str, Any], list[str]]] = {  # students of full size, and the forms that are measured
    "tsn_mnasnet": ({"name": "tsn", "backbone": "mnasnet1_0", "frames": 8, "size": 224}, ["whole", "stream"]),
    "tsm_mnasnet": (
        {"name": "tsn", "backbone": "mnasnet1_0", "frames": 8, "size": 224, "shift": "online"},
        ["whole", "stream"],
    ),
    "tinyact": ({"name": "tinyact", "decoder": False}, ["encoder"]),
}
FORMATS = ["litert", "onnx", "openvino"]


def recipe_of(name: str, student: Mapping[str, Any], out: Path, more: Mapping[str, Any]) -> Recipe:
    """A recipe file in the folder, and what it says."""
    path = out / f"{name}.yaml"
    tree = {"out": str(out / name), "resume": True, "student": dict(student), **more}
    publish_text(path, OmegaConf.to_yaml(OmegaConf.create(tree)))
    return read_recipe([f"recipe={path}"])


def trained(out: Path, names: Sequence[str], steps: int) -> list[Path]:
    """Runs of these families, each after the one that it begins with; what is finished stays."""
    runs: dict[str, Path] = {}
    for name in dict.fromkeys(each for asked in names for each in (FIRST.get(asked, asked), asked)):
        source, student = FAMILIES[name]
        more = {
            "cache": {"folder": str(out / "cache"), "frames": True},
            "clips": {"source": {"name": "motion", **source}},
            "init": str(runs[FIRST[name]]) if name in FIRST else "",
            "objective": {"reconstruction" if name in UNTAUGHT else "cross_entropy": {"weight": 1}},
            "optim": {"lr": 2e-3},
            "train": {"steps": round(PACE.get(name, 1) * steps), "batch": 32, "log_every": 100},
        }
        recipe = recipe_of(name, student, out, more)
        cache(recipe)
        train(recipe)
        runs[name] = Path(recipe.out)
    return [runs[name] for name in names]


def agreement(out: Path, names: Sequence[str], steps: int) -> None:
    talk, rows, found = Talk(), list[list[str]](), dict[str, dict[str, float]]()
    for run in trained(out, names, steps):
        forms = FORMS.get(run.name, ["whole"])
        for form in forms:
            for name in FORMATS:
                row = found[f"{run.name} {form} {name}"] = _compared(run, form, name)
                shown = [f"{value:.4f}" if "cosine" in key else percent(value) for key, value in row.items()]
                rows.append([f"{run.name} {form} {name}", ", ".join(map(" ".join, zip(row, shown, strict=True)))])
        if "encoder" in forms:
            found |= _probed(run, rows)
    talk.table("INT8 on all test clips", ("", "found"), rows)
    publish_text(out / "bench_export.json", json.dumps(found, indent=1))


def _compared(run: Path, form: str, name: str) -> dict[str, float]:
    """What the card of a file says, which is kept however bad it is."""
    asked = [f"run={run}", f"to={name}", f"form={form}", "precision=int8", "split=test", "clips=0"]
    export(export_request.read([*asked, "agreement=0", "cosine=0"]))
    found = read_export(run / EXPORTS / f"{form}-int8{SUFFIXES[name]}").verified
    keys = ("agreement", "top1", "student_top1", "cosine", "least_cosine")
    return {key: found[key] for key in keys if key in found}


def _probed(run: Path, rows: list[list[str]]) -> dict[str, dict[str, float]]:
    """Top-1 of a ridge classifier on the latents of the student and of each exported encoder."""
    request = export_request.read([f"run={run}"])
    first = open_any(run, "encoder", 1)
    clips = plain_clips(request.recipe, ClipSpec(first.card.frames, first.card.size))
    splits = [take(clips, split, 0, 0, "the probe") for split in ("train", "test")]
    files = [file for file in exports(run) if file.stem == "encoder-int8"]
    openers = {"torch": first, **{file.suffix: Recogniser.open(file) for file in files}}
    found = {f"{run.name} probe {name}": {"top1": _ridge(each, splits)} for name, each in openers.items()}
    rows += [[name, percent(figures["top1"])] for name, figures in found.items()]
    return found


def _ridge(recogniser: Recogniser, splits: Sequence[RealClips]) -> float:
    latents = [np.stack([recogniser.clip(clip) for clip in split.frames]) for split in splits]
    scaler = StandardScaler().fit(latents[0])
    probe = RidgeClassifier(alpha=10.0).fit(scaler.transform(latents[0]), splits[0].labels)
    return float(probe.score(scaler.transform(latents[1]), splits[1].labels))


def speed(out: Path, names: Sequence[str], rounds: int) -> None:
    runs = []
    for name in names:
        student, forms = WHOLE[name]
        more = {
            "clips": {"source": {"name": "motion", "train": 16, "val": 4, "test": 4}},
            "objective": {"cross_entropy": {"weight": 1}},
            "train": {"steps": 2, "batch": 4},
        }
        recipe = recipe_of(name, student, out, more)
        train(recipe)
        asked = [f"run={recipe.out}", f"to={','.join(FORMATS)}", "precision=fp32,int8", f"form={','.join(forms)}"]
        export(export_request.read([*asked, "agreement=0", "cosine=0", "clips=8", "calibration=16"]))
        runs.append(recipe.out)
    measure(measure_request.read([f"run={','.join(runs)}", f"out={out}", f"rounds={rounds}"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("agreement", "speed"))
    parser.add_argument("--out", default="runs/bench_export")
    parser.add_argument("--only", nargs="+", help="these students alone")
    parser.add_argument("--steps", type=int, default=2000, help="of each training for agreement")
    parser.add_argument("--rounds", type=int, default=20, help="of measuring speed")
    asked = parser.parse_args()
    known = FAMILIES if asked.what == "agreement" else WHOLE
    names = asked.only or list(known)

    def bench() -> None:
        for name in names:
            if name not in known:
                raise UserError(f"--only {name} is not known; there are {', '.join(known)}")
        if asked.what == "agreement":
            agreement(Path(asked.out), names, asked.steps)
        else:
            speed(Path(asked.out), names, asked.rounds)

    return guarded(bench)


if __name__ == "__main__":
    sys.exit(main())
