"""Five streams encoded in one call, against five calls: what is won, and what bounds it.

    python -m tools.bench_edge --out runs/bench_edge

TinyAct's encoder, with weights of two steps, in torch and exported for one clip and for five. Every file has processes
of its own, which take turns (as in distill measure), so that ratios are of the same minutes. A clip of one in five is
its share of the call: a call costs something of its own and something for each clip, and the two times tell both. The
tiny network is there to show the former.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.command import guarded
from distill.deploy import export_request
from distill.deploy.card import EXPORTS, SUFFIXES, read_export
from distill.deploy.exporting import export
from distill.deploy.measure_race import Asked, race
from distill.deploy.measure_request import Options
from distill.deploy.measure_runs import trained
from distill.deploy.measure_statistics import Rounds, number, ratio, times
from distill.files import publish_text
from distill.run_log import Talk
from distill.training import train
from tools.bench_export import recipe_of

STREAMS = 5
TINYACT = {"name": "tinyact", "decoder": False, "frames": 16}
NETWORKS: dict[str, dict[str, Any]] = {
    "16x224": {**TINYACT, "size": 224},
    "16x112": {**TINYACT, "size": 112, "strides": [[1, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2]]},
    "tiny": {**TINYACT, "size": 32, "widths": [8, 8, 16, 16], "latent": 32, "hidden": 16},
}
PRECISIONS = {"litert": ("fp32", "int8"), "onnx": ("int8",), "openvino": ("int8",)}
HEAD = (
    "",
    "threads",
    "ms",
    "in five",
    "faster",
    "quartiles",
    "CPU ms",
    "in five",
    "less",
    "quartiles",
    "call's own ms",
)


@dataclass(frozen=True)
class Pair:
    """The same encoder, asked about one clip and about five."""

    kind: str
    one: Asked
    five: Asked


def prepared(name: str, out: Path) -> Path:
    """A run of this network, with its exports."""
    more = {
        "clips": {"source": {"name": "motion", "train": 16, "val": 4, "test": 4}},
        "objective": {"cross_entropy": {"weight": 1}},
        "train": {"steps": 2, "batch": 4},
    }
    recipe = recipe_of(name, NETWORKS[name], out, more)
    train(recipe)
    for batch in (1, STREAMS):
        for format, precisions in PRECISIONS.items():
            asked = [f"run={recipe.out}", f"to={format}", f"precision={','.join(precisions)}", f"batch={batch}"]
            export(export_request.read([*asked, "form=encoder", "cosine=0", "clips=10", "calibration=20"]))
    return Path(recipe.out)


def pairs(run: Path, threads: Sequence[int]) -> Iterator[Pair]:
    for count in threads:
        one, five = (Asked(str(run), "encoder", count, "eager", batch=batch) for batch in (1, STREAMS))
        yield Pair("torch eager", one, five)
        for format, precisions in PRECISIONS.items():
            for precision in precisions:
                names = (f"encoder-{precision}{batch}{SUFFIXES[format]}" for batch in ("", f"-batch{STREAMS}"))
                one, five = (Asked(str(run / EXPORTS / name), "encoder", count) for name in names)
                yield Pair(f"{format} {precision}", one, five)


def own(one: Rounds, five: Rounds, key: str) -> dict[str, float]:
    """Milliseconds of a call that are no clip's: alone a clip takes own + clip, in company own / 5 + clip. Below zero
    where company makes clips dearer."""
    each = [(np.median(one[at][key]) - np.median(five[at][key])) * STREAMS / (STREAMS - 1) for at in one if at in five]
    low, middle, high = np.quantile(each, (0.25, 0.5, 0.75)).tolist()
    return {"median": middle, "low": low, "high": high}


def measured(name: str, run: Path, threads: Sequence[int], options: Options, talk: Talk) -> list[dict[str, Any]]:
    subjects = list(pairs(run, threads))
    records, around = race([asked for pair in subjects for asked in (pair.one, pair.five)], options, talk)
    rows = []
    for pair, one, five in zip(subjects, records[::2], records[1::2], strict=True):
        failed = one.failed or five.failed
        row = {"network": name, "kind": pair.kind, "threads": pair.one.threads, "failed": failed}
        if not failed:
            row |= {"one": times(one.rounds, 1), "five": times(five.rounds, 1), "others_cores": around.others_cores}
            for key, what in (("wall_ms", "faster"), ("cpu_ms", "less_cpu")):
                row[what] = ratio(five.rounds, one.rounds, key)
            row["own_ms"] = own(one.rounds, five.rounds, "cpu_ms")
        rows.append(row)
    return rows


def costs(run: Path) -> dict[str, float]:
    """Of a clip: arithmetic, and the bytes that a call reads whatever it is about."""
    weights = read_export(run / EXPORTS / "encoder-fp32.tflite").bytes
    gflops = trained(run, ["encoder"]).gflops["encoder"]
    return {"gflops": gflops, "weights_mb": weights / 1e6, "flops_per_byte": 1e9 * gflops / weights}


def shown(row: dict[str, Any]) -> list[str]:
    if row["failed"]:
        return [row["kind"], str(row["threads"]), row["failed"]]
    cells = [row["kind"], str(row["threads"])]
    for key, what in (("median_ms", "faster"), ("cpu_ms", "less_cpu")):
        cells += [number(row["one"][key]), number(row["five"][key])]
        cells += [f"{row[what]['median']:.2f}", f"{row[what]['low']:.2f}-{row[what]['high']:.2f}"]
    return [*cells, f"{row['own_ms']['median']:.2g}"]


def bench(out: Path, names: Sequence[str], threads: Sequence[int], options: Options) -> None:
    talk, told = Talk(), dict[str, Any]()
    for name in names:
        run = prepared(name, out)
        cost = costs(run)
        rows = measured(name, run, threads, options, talk)
        told[name] = {**cost, "rows": rows}
        about = ", ".join(f"{number(value)} {key}" for key, value in cost.items())
        talk.table(f"{name} ({about} in fp32): a clip alone, and one of five", HEAD, [shown(row) for row in rows])
        publish_text(out / "bench_edge.json", json.dumps(told, indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/bench_edge")
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    options = Options(rounds=asked.rounds, seconds=0.3)
    return guarded(lambda: bench(Path(asked.out), asked.only, asked.threads, options))


if __name__ == "__main__":
    sys.exit(main())
