"""The students of runs as torch has them: how each is to be measured, and what is known of it without measuring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from distill.checkpoint import student_folder
from distill.deploy.card import TORCH
from distill.deploy.forms import load_form
from distill.deploy.measure_race import Asked
from distill.deploy.measure_request import Request
from distill.deploy.measure_subjects import Subject, Trained
from distill.evaluate import REALTIME
from distill.hub import WEIGHTS
from distill.measure import recognition_parameters

HOW = ("eager", "compile", "bf16")  # on a GPU


def in_torch(run: Path, form: str, request: Request) -> Iterator[Subject]:
    """A run's student in this form, in every way that torch runs it."""
    size = (student_folder(run) / WEIGHTS).stat().st_size
    hows = HOW[: 1 + request.options.compile]
    for threads in request.options.threads:
        for how in hows:
            yield Subject(f"{TORCH} {how}", Asked(str(run), form, threads, how), run, bytes=size)
    for how in HOW if torch.cuda.is_available() else ():
        asked = Asked(str(run), form, min(request.options.threads), how, "cuda")
        yield Subject(f"{TORCH} cuda {how}", asked, run, bytes=size)


def trained(run: Path, forms: Sequence[str]) -> Trained:
    """The run's student, by what it holds and what an answer costs it."""
    gflops = dict[str, float]()
    for form in forms:
        network, loaded = load_form(run, form)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            network(*network.example())
        gflops[form] = counter.get_total_flops() / 1e9
    spec = loaded.spec
    frames = torch.zeros(1, spec.frames, 3, spec.size, spec.size, dtype=torch.uint8)
    with torch.no_grad():
        parameters = recognition_parameters(loaded.student, frames)
    return Trained(parameters, gflops, *_tested(run))


def _tested(run: Path) -> tuple[float | None, int]:
    """Top-1 on the test clips as the training's end found it, by one look if it took one, and how many views of each it
    was shown; a student that came without its run has none."""
    summary, recipe = run / "summary.json", run / "recipe.yaml"
    if not summary.is_file() or not recipe.is_file():
        return None, 1
    found = json.loads(summary.read_text(encoding="utf-8"))
    if REALTIME in found:
        return found[REALTIME].get("top1"), 1
    views = OmegaConf.select(OmegaConf.load(recipe), "clips.views") or {}
    return found.get("test", {}).get("top1"), int(views.get("test_clips", 1)) * int(views.get("test_crops", 1))
