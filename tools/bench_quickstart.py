"""The quickstart's claims over three seeds: `make bench`.

Every seed draws other clips, other labels, other weights. Exits with 2 when a claim fails, after printing all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from distill.command import guarded
from distill.errors import UserError
from distill.files import publish_text
from distill.quickstart import quickstart
from distill.recipe import read_recipe
from distill.run_log import Talk

TEACHER = 0.90  # least top-1 of the teacher
MARGIN = 0.05  # least lead of distilled over labels-only, and of distilled over reconstruction-only latents


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """What the claims are about, as top-1 shares."""
    probes = summary["probe"]
    student = summary["student"]
    return {
        "teacher": summary["teacher"]["top1"],
        "labels only": student["labels_only"]["top1"],
        "distilled": student["distilled"]["top1"],
        **{f"{run} {probe}": top1 for run, found in probes.items() for probe, top1 in found.items()},
    }


def failures(found: dict[str, float]) -> list[str]:
    """The claims that one seed's figures break."""
    broken = []
    if found["teacher"] < TEACHER:
        broken.append("teacher")
    if found["distilled"] - found["labels only"] < MARGIN:
        broken.append("distilled over labels only")
    for probe in [key.removeprefix("reconstruction ") for key in found if key.startswith("reconstruction ")]:
        if found[f"distilled {probe}"] - found[f"reconstruction {probe}"] < MARGIN:
            broken.append(f"{probe}: distilled over reconstruction")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/bench")
    parser.add_argument("--resume", action="store_true", help="go on with seeds that were begun, whatever the code was")
    arguments, changes = parser.parse_known_args()
    return guarded(lambda: bench(Path(arguments.out), arguments.seeds, arguments.resume, changes))


def bench(folder: Path, seeds: Sequence[int], resume: bool, changes: Sequence[str]) -> None:
    talk, found = Talk(), {}
    for seed in seeds:
        out = folder / f"seed{seed}"
        if out.exists() and not resume:
            raise UserError(f"{out} holds figures of an earlier bench; remove it, or say --resume")
        recipe = read_recipe(["recipe=quickstart", f"seed={seed}", f"out={out}", *changes])
        quickstart(recipe)
        found[seed] = figures(json.loads((out / "summary.json").read_text()))
    rows = [
        (
            name,
            *(f"{100 * found[seed][name]:.1f}" for seed in found),
            f"{100 * mean(f[name] for f in found.values()):.1f}",
        )
        for name in next(iter(found.values()))
    ]
    talk.table("top-1 on the test split, %", ("", *(f"seed {seed}" for seed in found), "mean"), rows)
    broken = {seed: failures(numbers) for seed, numbers in found.items()}
    for seed, claims in broken.items():
        talk.say(f"seed {seed}: {'every claim holds' if not claims else 'broken: ' + '; '.join(claims)}")
    publish_text(folder / "bench.json", json.dumps(found, indent=1))
    if any(broken.values()):
        raise UserError("a claim of the README does not hold; see above")


if __name__ == "__main__":
    sys.exit(main())
