"""What a student keeps when channels go, with its teacher and without: accuracy against time, over three seeds.

    python -m tools.bench_prune --out runs/bench_prune

For each seed the quickstart's teacher and its distilled student; then `distill prune`, in even rounds, twice: with the
run's own objective, and with labels alone (batches of labelled clips, cross-entropy, as the quickstart has it). Every
round is a point of the curve. Each student is exported to LiteRT in INT8 as well. Times are taken in the end, of all
students in turn: in torch, and of the exported files.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from distill.command import guarded
from distill.deploy import export_request, measure_request
from distill.deploy.card import EXPORTS, SUFFIXES, read_export
from distill.deploy.exporting import export
from distill.deploy.measuring import measure
from distill.deploy.prune_request import read
from distill.deploy.pruning import prune, weigh
from distill.errors import UserError
from distill.files import publish_text
from distill.quickstart import teacher_recipe
from distill.recipe import read_recipe
from distill.run_log import Talk
from distill.teaching.caching import cache
from distill.training import train

ALONE = ["objective.kl.weight=0", "objective.reconstruction.weight=0", "clips.unlabelled=false"]
WAYS: dict[str, list[str]] = {"with teacher": [], "labels alone": ALONE}
WHOLE = "whole"


EXPORTED = Path(EXPORTS, f"whole-int8{SUFFIXES['litert']}")  # in a run


def torch_milliseconds(runs: Mapping[str, Path]) -> dict[str, float]:
    return {name: figures["milliseconds"] for name, figures in weigh(runs).items()}


def exported_milliseconds(runs: Mapping[str, Path], out: Path) -> dict[str, float]:
    files = {str(run / EXPORTED): name for name, run in runs.items()}
    measure(measure_request.read([f"files={','.join(files)}", f"out={out}", "threads=1"]))
    rows = json.loads((out / "measure.json").read_text())["rows"]
    return {files[row["path"]]: row["median_ms"] for row in rows}


def export_int8(run: Path) -> float:
    """Top-1 of the exported student on all test clips."""
    if not (run / EXPORTED).exists():
        asked = [f"run={run}", "to=litert", "precision=int8", "split=test", "clips=0", "agreement=0"]
        export(export_request.read(asked))
    return read_export(run / EXPORTED).verified["top1"]


def students(out: Path, seed: int, asked: Sequence[str], changes: Sequence[str]) -> dict[str, Path]:
    """Run folders of one seed: the whole student, and after each round of each way; whatever is there stays."""
    common = ["recipe=quickstart", f"seed={seed}", f"cache.folder={out / 'cache'}", "resume=true", *changes]
    recipe = read_recipe([*common, f"out={out / 'student'}", f"teacher.run={out / 'teacher'}"])
    teacher = teacher_recipe(recipe, out / "teacher")
    cache(teacher)
    train(teacher)
    cache(recipe)
    train(recipe)
    found = {WHOLE: Path(recipe.out)}
    for way, objective in WAYS.items():
        folder = out / way.replace(" ", "_")
        request = read([f"run={recipe.out}", f"out={folder}", "pace=even", "resume=true", *asked, *objective])
        prune(request)
        found |= {f"{way} {amount:.0%}": Path(round_.out) for amount, round_ in request.rounds}
    return found


def scores(runs: Mapping[str, Path]) -> dict[str, float]:
    return {name: json.loads((run / "summary.json").read_text())["test"]["top1"] for name, run in runs.items()}


def bench(folder: Path, seeds: Sequence[int], asked: Sequence[str], changes: Sequence[str]) -> None:
    talk = Talk()
    runs = {seed: students(folder / f"seed{seed}", seed, asked, changes) for seed in seeds}
    top1 = {seed: scores(found) for seed, found in runs.items()}
    small = {seed: {name: export_int8(run) for name, run in found.items()} for seed, found in runs.items()}
    every = {f"{seed} {name}": run for seed, found in runs.items() for name, run in found.items()}
    times = {"torch": torch_milliseconds(every), "LiteRT INT8": exported_milliseconds(every, folder)}
    rows = []
    for name in next(iter(runs.values())):
        milliseconds = [mean(found[f"{seed} {name}"] for seed in seeds) for found in times.values()]
        shares, exported = ([found[seed][name] for seed in seeds] for found in (top1, small))
        percents = [100 * value for value in (*shares, mean(shares), mean(exported))]
        rows.append((name, *(f"{value:.2f}" for value in milliseconds), *(f"{value:.1f}" for value in percents)))
    columns = (*(f"{name} ms" for name in times), *(f"seed {seed}" for seed in seeds), "mean", "mean, INT8")
    talk.table("top-1 on the test split, %, and milliseconds per clip", ("channels gone", *columns), rows)
    publish_text(folder / "bench.json", json.dumps({"top1": top1, "int8_top1": small, "milliseconds": times}, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/bench_prune")
    parser.add_argument("--resume", action="store_true", help="go on with what was begun, whatever the code was")
    parser.add_argument("--amount", type=float, default=0.75, help="share of the channels that is gone in the end")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of training after each round")
    arguments, changes = parser.parse_known_args()
    folder = Path(arguments.out)
    asked = [f"{name}={getattr(arguments, name)}" for name in ("amount", "rounds", "steps")]

    def start() -> None:
        if folder.exists() and not arguments.resume:
            raise UserError(f"{folder} holds figures of an earlier bench; remove it, or say --resume")
        bench(folder, arguments.seeds, asked, changes)

    return guarded(start)


if __name__ == "__main__":
    sys.exit(main())
