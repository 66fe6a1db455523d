"""What there is to measure: every run's student in torch, and every exported file, each with so many threads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch.utils.flop_counter import FlopCounterMode

from distill.checkpoint import student_folder
from distill.deploy.card import SUFFIXES, ExportCard, read_export
from distill.deploy.forms import TORCH, load_form
from distill.deploy.measure_race import Asked
from distill.deploy.measure_request import Request
from distill.errors import UserError
from distill.hub import WEIGHTS
from distill.measure import recognition_parameters

EXPORTS = "export"  # folder in a run
HOW = ("eager", "compile", "bf16")  # on a GPU


@dataclass(frozen=True)
class Subject:
    """A row of the table to be."""

    kind: str
    """Runtime and precision, or how torch runs it."""
    asked: Asked
    run: Path | None = None
    card: ExportCard | None = None
    """Of an exported file."""
    bytes: int = 0
    failed: str = ""
    """Why it cannot be measured at all."""


@dataclass(frozen=True)
class Trained:
    """What is known of a run's student without measuring."""

    parameters: int
    """That take part in recognising."""
    gflops: dict[str, float]
    """Of an answer, by form."""
    test_top1: float | None
    """Of the whole student on the run's test clips."""
    test_views: int
    """Of each test clip, whose answers were averaged: 1 is what happens live."""


def subjects(request: Request) -> list[Subject]:
    """In the order of the table: of each run the torch student in every form that was exported, then its files."""
    found: list[Subject] = []
    for run in request.runs:
        files = [(file, *_card(file)) for file in exports(run)]
        forms = dict.fromkeys(["whole", *(card.form for _, card, _ in files if card)])
        for form in forms:
            found += _torch(run, form, request)
        for file, card, failed in files:
            found += _exported(file, run, card, failed, request.options.threads)
    for file in request.files:
        card, failed = _card(file)
        found += _exported(file, _origin(card, request.runs), card, failed, request.options.threads)
    return list({(one.asked, one.run): one for one in found}.values())


def exports(run: Path) -> list[Path]:
    """Exported files of a run."""
    folder = run / EXPORTS
    return sorted(file for file in folder.glob("*") if file.suffix in SUFFIXES.values()) if folder.is_dir() else []


def _card(file: Path) -> tuple[ExportCard | None, str]:
    try:
        return read_export(file), ""
    except UserError as error:
        return None, str(error)


def _origin(card: ExportCard | None, runs: Sequence[Path]) -> Path | None:
    """The run among these that a file came from."""
    told = card.origin.get("run") if card else None
    return next((run for run in runs if told and run.resolve() == Path(told).resolve()), None)


def _torch(run: Path, form: str, request: Request) -> Iterator[Subject]:
    size = (student_folder(run) / WEIGHTS).stat().st_size
    hows = HOW[: 1 + request.options.compile]
    for threads in request.options.threads:
        for how in hows:
            yield Subject(f"{TORCH} {how}", Asked(str(run), form, threads, how), run, bytes=size)
    for how in HOW if torch.cuda.is_available() else ():
        asked = Asked(str(run), form, min(request.options.threads), how, "cuda")
        yield Subject(f"{TORCH} cuda {how}", asked, run, bytes=size)


def _exported(
    file: Path, run: Path | None, card: ExportCard | None, failed: str, threads: Sequence[int]
) -> Iterator[Subject]:
    if card is None:
        yield Subject(file.name, Asked(str(file), "whole", threads[0]), run, failed=failed)
        return
    for count in threads:
        asked = Asked(str(file), card.form, count)
        yield Subject(f"{card.format} {card.precision}", asked, run, card, card.bytes)


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
    """Top-1 on the test clips as the training's end found it, and how many views of each it was shown; a student that
    came without its run has none."""
    summary, recipe = run / "summary.json", run / "recipe.yaml"
    if not summary.is_file() or not recipe.is_file():
        return None, 1
    views = OmegaConf.select(OmegaConf.load(recipe), "clips.views") or {}
    top1 = json.loads(summary.read_text(encoding="utf-8")).get("test", {}).get("top1")
    return top1, int(views.get("test_clips", 1)) * int(views.get("test_crops", 1))
