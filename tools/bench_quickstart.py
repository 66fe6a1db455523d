"""The quickstart's claims over three seeds: `make bench`.

Every seed draws other clips, other labels, other weights. Exits with 1 when a claim fails, after printing all figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from distill.probing.classifiers import PROBES
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
        **{f"{run} {probe}": probes[run][probe]["top1"] for run in probes for probe in PROBES},
    }


def failures(found: dict[str, float]) -> list[str]:
    """The claims that one seed's figures break."""
    broken = []
    if found["teacher"] < TEACHER:
        broken.append("teacher")
    if found["distilled"] - found["labels only"] < MARGIN:
        broken.append("distilled over labels only")
    for probe in PROBES:
        if found[f"distilled {probe}"] - found[f"reconstruction {probe}"] < MARGIN:
            broken.append(f"{probe}: distilled over reconstruction")
    return broken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", default="runs/bench")
    arguments, changes = parser.parse_known_args()
    talk, found = Talk(), {}
    for seed in arguments.seeds:
        out = Path(arguments.out) / f"seed{seed}"
        recipe = read_recipe(["recipe=quickstart", f"seed={seed}", f"out={out}", "resume=true", *changes])
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
    (Path(arguments.out) / "bench.json").write_text(json.dumps(found, indent=1))
    return int(any(broken.values()))


if __name__ == "__main__":
    sys.exit(main())
