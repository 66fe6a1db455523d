"""The pruning job: rounds of cutting a trained student and letting it learn again, and what each round bought."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from accelerate import Accelerator

from distill.checkpoint import load_student, read_card, save_student
from distill.clips.clipset import ClipSet
from distill.deploy.channels import cut_channels
from distill.deploy.magnitude import cut_weights
from distill.deploy.prune_request import Request
from distill.errors import UserError
from distill.evaluate import HIGHER_IS_BETTER, collect, evaluate
from distill.files import publish_text
from distill.hub import CONFIG, WEIGHTS, read_config
from distill.measure import measure
from distill.outputs import Student
from distill.parts import recognising
from distill.recipe import Recipe
from distill.rehearsal import check_recipe
from distill.run_log import Talk, percent
from distill.training import alone_in, check_run, is_finished, look, start, train
from distill.widths import widths_of

FACTS, BEFORE = "prune.json", "before"
PASSES, REPEATS = 5, 8  # over all students in turn, when their times are compared; and of each in a pass
Figures = dict[str, Any]


def prune(request: Request) -> dict[str, Any]:
    """Make a trained student smaller, and let it learn again from the teacher's cache what that cost.

    distill prune run=runs/ucf101 out=runs/ucf101_half amount=0.5 rounds=3 steps=300
    distill prune run=runs/ucf101 out=runs/ucf101_sparse method=magnitude amount=0.9 rounds=5 steps=200

    Each round cuts (method) and trains with the run's own recipe, whose keys may follow: optim.lr=1e-4, say,
    objective.kl.weight=0 to learn again without the teacher, or train.quantise=int8 to get ready for INT8 on the way.
    Weights of the objective that moved are where they arrived. Leaves an ordinary run folder, and prune.json, which
    says what every round cost and bought. With resume=true it goes on where it stopped.
    """
    rounds = request.rounds
    for _, recipe in rounds:
        check_recipe(recipe)
        check_run(recipe)
    _check_asked(request)
    accelerator = start(request.recipe)
    talk, source = Talk(accelerator.is_main_process), Path(request.options.run)
    clips = look(request.recipe, accelerator)
    whole = load_student(source)
    folders = {BEFORE: source}
    with alone_in(Path(request.out, "cut"), accelerator):
        _write(request, accelerator, {})
        for number, (amount, recipe) in enumerate(rounds, 1):
            talk.say(f"\n== round {number} of {len(rounds)}: {percent(amount)} of the {_what(request)} gone")
            if not is_finished(recipe):
                _cut(request, amount, source, recipe, whole, clips, accelerator)
            train(recipe)
            source = folders[f"round {number}"] = Path(recipe.out)
        before = _judge(whole, clips, request.recipe, accelerator)
        if accelerator.is_main_process:
            found = weigh(folders)
            found[BEFORE]["test"] = before
            _write(request, accelerator, found)
            _show(request, talk, found)
        accelerator.wait_for_everyone()
    return {}


def _what(request: Request) -> str:
    return {"channels": "channels", "magnitude": "weights"}[request.options.method]


def _check_asked(request: Request) -> None:
    """What is in the folder was made with the same options; train looks at the recipe."""
    path = Path(request.out, FACTS)
    if not path.exists():
        return
    try:
        asked: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["asked"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say what was asked for ({error}); choose another out=") from error
    changed = [name for name, value in asdict(request.options).items() if asked.get(name) != value]
    if changed:
        raise UserError(f"{request.out} was made with another {changed[0]}; choose another out=, or delete the folder")
    if not request.recipe.resume:
        raise UserError(f"{request.out} already holds a pruned run; say resume=true to go on, or choose another out=")


def _write(request: Request, accelerator: Accelerator, found: Mapping[str, Figures]) -> None:
    if accelerator.is_main_process:
        facts = {"asked": asdict(request.options), "threads": torch.get_num_threads(), "rounds": found}
        publish_text(Path(request.out, FACTS), json.dumps(facts, indent=1) + "\n")


def _cut(
    request: Request,
    amount: float,
    source: Path,
    recipe: Recipe,
    whole: Student,
    clips: ClipSet,
    accelerator: Accelerator,
) -> None:
    """Keep the student that the round's training begins with, and how good it is as yet, in RUN/cut."""
    folder, options = Path(recipe.out, "cut"), request.options
    if (folder / "student" / CONFIG).exists() and (folder / "student" / WEIGHTS).exists():
        return
    student, card = load_student(source), read_card(source)
    if options.method == "channels":
        cut, card = cut_channels(student, card, widths_of(whole), amount, options.multiple, options.keep)
    else:
        cut, card = cut_weights(student, card, amount, options.scope, options.keep)
    test = _judge(cut, clips, recipe, accelerator)
    if accelerator.is_main_process:
        save_student(folder, cut.cpu(), card, {"test": test})
    accelerator.wait_for_everyone()


def _judge(student: Student, clips: ClipSet, recipe: Recipe, accelerator: Accelerator) -> dict[str, float]:
    """On the test clips, as training judges in the end."""
    held_out = clips.manifest.of("test")
    return evaluate(collect(student.to(accelerator.device), clips, held_out, recipe.train.batch, accelerator))


def weigh(runs: Mapping[str, Path]) -> dict[str, Figures]:
    """How big, how fast and how good the students of these runs are; their times are taken in turn."""
    students = {name: load_student(run) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    found: dict[str, Figures] = {}
    for _ in range(PASSES):
        for name, student in students.items():
            figures = measure(student, REPEATS)
            times[name].append(figures["milliseconds"])
            found[name] = {key: figures[key] for key in ("parameters", "gflops", "megabytes")}
    for name, run in runs.items():
        weights = [value for part in recognising(students[name]).values() for value in part.parameters(recurse=False)]
        packed = zlib.compress(b"".join(value.detach().numpy().tobytes() for value in weights), 9)
        found[name] |= {
            "nonzero": sum(int(value.count_nonzero()) for value in weights),
            "compressed_megabytes": len(packed) / 1e6,
            "milliseconds": median(times[name]),
        }
        if (run / "cut" / "student" / CONFIG).exists():
            found[name]["cut"] = read_config(run / "cut" / "student")["facts"]["summary"]["test"]
            found[name]["test"] = json.loads((run / "summary.json").read_text(encoding="utf-8"))["test"]
    return found


def _show(request: Request, talk: Talk, found: Mapping[str, Figures]) -> None:
    """A line for each round, and what the whole has bought."""
    first, last = found[BEFORE], list(found.values())[-1]
    metric = next(name for name in HIGHER_IS_BETTER if name in first["test"])
    head = ("parameters", "not 0", "GFLOPs", "MB", "MB, zlib", "ms", f"{metric} when cut", f"{metric} in the end")
    rows = [
        (
            name,
            f"{row['parameters']:,}",
            f"{row['nonzero']:,}",
            f"{row['gflops']:.4g}",
            f"{row['megabytes']:.3g}",
            f"{row['compressed_megabytes']:.3g}",
            f"{row['milliseconds']:.2f}",
            _score(row.get("cut", {}).get(metric)),
            _score(row["test"][metric]),
        )
        for name, row in found.items()
    ]
    talk.table(request.out, ("", *head), rows)
    faster = first["milliseconds"] / last["milliseconds"]
    told = f"{faster:.2f} times as fast in torch on {torch.get_num_threads()} threads"
    if request.options.method == "magnitude":
        told += "; zeros are computed with like any number, so only the compressed file gets smaller"
    talk.say(f"{told}; distill export and distill measure say how it runs elsewhere")


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
