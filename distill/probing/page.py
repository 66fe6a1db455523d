"""The page about judged latents, for browsers and as Markdown: each section appears when its data are there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import charts
from distill import report_figures as figures
from distill.clips.manifest import SPLITS
from distill.errors import UserError
from distill.evaluate import counts
from distill.files import publish_text
from distill.pages import percent, render
from distill.probing.base import Array
from distill.probing.judged import Judged
from distill.surroundings import surroundings

PAIRS, WORST = 10, 10
SHARES_OF_VARIANCE = (0.5, 0.9)
TICKS = 8  # on an axis there is no room for more
Section = dict[str, Any]
# What is told about answers to test clips: key -> (name, what it means, whether more is better)
MEASURES = {
    "top1": ("Top-1", "the share of clips whose true class was the first answer.", True),
    "top5": ("Top-5", "the share of clips whose true class was among the first five answers.", True),
    "balanced_accuracy": (
        "Balanced accuracy",
        "the share of right answers within each class, averaged over classes: rare classes count as much as common "
        "ones.",
        True,
    ),
    "f1_macro": (
        "F1",
        "the harmonic mean of a class's recall (the share of its clips that are found) and its precision (the share of "
        "answers with its name that are right), averaged over classes; high only where both are.",
        True,
    ),
    "log_loss": (
        "Log-loss",
        "how surprised the classifier's probabilities are by the truth, in nats; lower is better, and a confident "
        "mistake costs most. Only for classifiers that give probabilities.",
        False,
    ),
}


def write_pages(folder: Path, title: str, judged: Sequence[Judged], chance: float) -> Path:
    """Write `folder`/probe.html and the same as probe.md; `chance` is the top-1 of guessing."""
    if not judged:
        raise UserError(f"a page about probes in {folder} needs at least one table of latents")
    probed = [one for one in judged if one.probes]
    told = {
        "title": title,
        "lead": list(lead(probed, chance)),
        "results": results(probed, chance),
        "details": [details(one) for one in probed],
        "measures": [(name, words) for key, (name, words, _) in MEASURES.items() if _anywhere(key, probed)],
        "latents": latents(judged),
        "curves": curves(probed, chance),
        "confusions": [confusion(one) for one in probed],
        "classes": by_class(probed),
        "maps": maps(judged),
        "searches": [search(one) for one in probed],
        "origins": [(_spoken(one.name), list(_lines(one.table.about))) for one in judged if one.table.about],
        "made": surroundings(),
    }
    publish_text(folder / "probe.md", render("probe.md", **told))
    path = folder / "probe.html"
    publish_text(path, render("probe.html", **told))
    return path


def best(one: Judged) -> str:
    """The classifier that is right most often."""
    return max(one.probes, key=lambda name: float(one.probes[name]["test"]["top1"]))


def _top1(one: Judged) -> float:
    """Of the best classifier."""
    return float(one.probes[best(one)]["test"]["top1"])


def lead(probed: Sequence[Judged], chance: float) -> Iterator[str]:
    """What came out, in a sentence."""
    if not probed:
        return
    ranked = sorted(probed, key=lambda one: (one.teaches, -_top1(one)))
    links = ["correctly from the latents of", *["from those of"] * (len(ranked) - 1)]
    parts = [
        f"{percent(_top1(one))} {link} {_spoken(one.name)} ({_spoken(best(one))}){_mark(one, ranked[0])}"
        for link, one in zip(links, ranked, strict=True)
    ]
    clips = {found["test"]["clips"] for one in probed for found in one.probes.values()}
    of = f"{clips.pop():,}" if len(clips) == 1 else "the"
    yield f"Of {of} test clips, classifiers name {'; '.join(parts)}. Guessing would give {percent(chance)}."


def _mark(one: Judged, first: Judged) -> str:
    """What a teacher is to the best student."""
    if not one.teaches or first.teaches:
        return ""
    return ", the mark to reach" if _top1(one) > _top1(first) else ", the mark, which is reached"


def results(probed: Sequence[Judged], chance: float) -> Section | None:
    """Top-1 of every classifier on every table."""
    if not probed:
        return None
    lost = [(_spoken(one.name), len(one.table.splits["test"].unanswered)) for one in probed]
    return {
        "tables": [(_spoken(one.name), one.teaches and len(probed) > 1) for one in probed],
        "rows": [
            {"name": _spoken(name), "about": about, "cells": [_result(one, name) for one in probed]}
            for name, about in _classifiers(probed).items()
        ],
        "chance": chance,
        "unanswered": [(name, count) for name, count in lost if count],
    }


def _result(one: Judged, name: str) -> Section | None:
    if name not in one.probes:
        return None
    test = one.probes[name]["test"]
    low, high = test["interval"]
    return {
        "top1": test["top1"],
        "interval": f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}",
        "best": test["top1"] == _top1(one) and len(one.probes) > 1,
    }


def details(one: Judged) -> Section:
    """Every measure of every classifier on one table."""
    keys = [key for key in MEASURES if _anywhere(key, [one])]
    tests = [found["test"] for found in one.probes.values()]
    top = {key: _top(key, [test[key] for test in tests if key in test]) for key in keys}
    rows = [
        {
            "name": _spoken(name),
            "figures": [_figure(key, found["test"].get(key), top[key]) for key in keys],
            "chosen_at": _deviating(found["folds"]),
            "folds": f"{found['folds']['count']} folds" if found["folds"]["count"] > 1 else "hold-out",
            "setting": _setting(found["setting"]),
            "seconds": _seconds(found["cost"]["seconds"]),
            "expected": _seconds(found["cost"]["expected"]),
        }
        for name, found in one.probes.items()
    ]
    return {"name": _spoken(one.name), "columns": [MEASURES[key][0] for key in keys], "rows": rows}


def _top(key: str, values: Sequence[float]) -> float | None:
    """The best of them, if there is a choice."""
    return (max if MEASURES[key][2] else min)(values) if len(values) > 1 else None


def _figure(key: str, value: float | None, top: float | None) -> Section | None:
    if value is None:
        return None
    return {"text": f"{value:.3f}" if key == "log_loss" else percent(value), "best": value == top}


def _deviating(scores: Mapping[str, Any]) -> str:
    """A mean over folds and their standard deviation."""
    spread = f" ± {100 * scores['std']:.1f}" if len(scores["scores"]) > 1 else ""
    return percent(scores["mean"]).replace("%", f"%{spread}")


def latents(judged: Sequence[Judged]) -> Section:
    """What the latents are like, whatever a classifier makes of them."""
    sums = [np.cumsum(one.latents["variances"]) for one in judged]
    widest = max(judged, key=lambda one: float(one.latents["effective_rank"]))
    title = f"{_spoken(widest.name)}: effective rank {widest.latents['effective_rank']:.1f} of {widest.table.width:,}"
    title += ", the highest" if len(judged) > 1 else ""
    looks = [(charts.colour(place), charts.marker(place)) for place in range(len(judged))]
    longest = max(map(len, sums))
    chart = figures.share_chart(
        [(*look, list(enumerate(shares.tolist(), 1))) for look, shares in zip(looks, sums, strict=True)],
        ("principal axes, the largest first (log scale)", "cumulative share of the variance (%)"),
        f"Variance of the latents over their principal axes. {title}",
        ticks=[*(2**power for power in range(longest.bit_length()) if 2**power < longest), longest],
    )
    return {
        "rows": [_latents(one, shares) for one, shares in zip(judged, sums, strict=True)],
        "splits": [split for split in SPLITS if any(split in one.latents["rows"] for one in judged)],
        "title": title,
        "chart": chart,
        "legend": _legend([one.name for one in judged]),
    }


def _legend(names: Sequence[str]) -> list[tuple[str, str, str]]:
    return [(_spoken(name), charts.colour(place), charts.sign(place)) for place, name in enumerate(names)]


def _latents(one: Judged, shares: Array) -> Section:
    facts = one.latents
    needed = [int(np.searchsorted(shares, share)) + 1 for share in SHARES_OF_VARIANCE]
    return {
        "name": _spoken(one.name),
        "width": f"{facts['width']:,}",
        "rank": f"{facts['effective_rank']:.1f}",
        "axes": [f"{axes}" if axes <= len(shares) else f"over {len(shares)}" for axes in needed],
        "between": facts["between"],
        "spread": f"{facts['spread']:.2f}",
        "rows": facts["rows"],
    }


def curves(probed: Sequence[Judged], chance: float) -> Section | None:
    """Top-1 over how many rows a classifier learned from."""
    drawn = [(_spoken(one.name), lines) for one in probed if (lines := _learning(one))]
    if not drawn:
        return None
    names = list(dict.fromkeys(name for _, lines in drawn for name in lines))
    highest = max(share for _, lines in drawn for points in lines.values() for _, share in points)
    return {
        "legend": _legend(names),
        "tables": [_curves(table, lines, names, chance, highest) for table, lines in drawn],
    }


def _learning(one: Judged) -> dict[str, list[tuple[int, float]]]:
    found = {name: [(at["rows"], at["top1"]) for at in probe["curve"]] for name, probe in one.probes.items()}
    return {name: points for name, points in found.items() if len(points) > 1}


def _curves(
    table: str,
    lines: Mapping[str, Sequence[tuple[int, float]]],
    names: Sequence[str],
    chance: float,
    highest: float,
) -> Section:
    top = max(lines, key=lambda name: lines[name][-1][1])
    (before, low), (after, high) = lines[top][-2:]
    title = f"{table}: {_spoken(top)} ends highest at {percent(high)}, {100 * (high - low):+.1f} points"
    title += f" from {before:,} to {after:,} rows"
    ticks = sorted({rows for points in lines.values() for rows, _ in points})
    chart = figures.share_chart(
        [
            (charts.colour(place), charts.marker(place), lines[name])
            for place, name in enumerate(names)
            if name in lines
        ],
        ("training rows (log scale)", "top-1 (%)"),
        f"Top-1 over training rows, {title}",
        chance,
        ticks=ticks[:: -(-len(ticks) // TICKS)],
        highest=highest,
    )
    shares = {name: dict(points) for name, points in lines.items()}
    rows = [(f"{tick:,}", [shares[name].get(tick) for name in lines]) for tick in ticks]
    return {"name": table, "title": title, "chart": chart, "names": [_spoken(name) for name in lines], "rows": rows}


def confusion(one: Judged) -> Section:
    """What the best classifier takes for what."""
    name, classes, test = best(one), one.table.classes, one.table.splits["test"]
    confused = one.probes[name]["confused"][:PAIRS]
    table = figures.confusion_table(counts(test.label, one.said[name], len(classes)), classes, by_pairs=True)
    pairs = [(pair["true"], pair["said"], pair["count"], pair["of"]) for pair in confused]
    return {**table, "name": f"{_spoken(one.name)}, {_spoken(name)}", "pairs": pairs}


def by_class(probed: Sequence[Judged]) -> Section | None:
    """How well each table's best classifier tells each class, the worst first."""
    tables = [{row["name"]: row for row in one.probes[best(one)]["classes"] if row["support"]} for one in probed]
    clips = {name: row["support"] for table in tables for name, row in table.items()}
    cells = {name: [table.get(name) for table in tables] for name in clips}
    worst = sorted(cells, key=lambda name: float(np.mean([cell["f1"] for cell in cells[name] if cell])))
    if not worst:
        return None
    rows = [(name, clips[name], cells[name]) for name in worst]
    names = [f"{_spoken(one.name)}, {_spoken(best(one))}" for one in probed]
    return {"tables": names, "worst": rows[:WORST], "rest": rows[WORST:]}


def maps(judged: Sequence[Judged]) -> Section | None:
    """The test latents in two dimensions; of many classes a dozen have colours, taken evenly from the list."""
    there = [one for one in judged if len(one.table.splits["test"].label)]
    if not there:
        return None
    classes = there[0].table.classes
    coloured = _evenly(np.unique(there[0].table.splits["test"].label), len(charts.COLOURS))
    group, legend = figures.class_colours(coloured, classes)
    drawn = [found for one in there if (found := _map(one, group, coloured))]
    return {"maps": drawn, **legend} if drawn else None


def _map(one: Judged, group: Array, coloured: Array) -> Section | None:
    test = one.table.splits["test"]
    shown = np.isin(test.label, coloured)
    room = figures.POINTS // 2 if not shown.all() else figures.POINTS  # half for the classes that have colours
    rows = np.sort(np.concatenate([figures.thinned(np.flatnonzero(part), room) for part in (shown, ~shown)]))
    latent, name = test.latent[rows], _spoken(one.name)
    if len(rows) < 5 or not 0 < latent.std() < np.inf:
        return None
    tsne, axes = (
        figures.latent_map(latent, group[test.label[rows]], f"{kind} of {name}'s latents", principal)
        for kind, principal in (("Map", False), ("Principal axes", True))
    )
    return {"title": name, "tsne": tsne, "axes": axes}


def search(one: Judged) -> Section:
    """Every setting that was tried, the best first."""
    found = [
        (
            _spoken(name),
            [
                (_setting(tried["setting"]), _deviating(tried), tried["setting"] == probe["setting"])
                for tried in sorted(probe["grid"], key=lambda tried: -tried["mean"])
            ],
        )
        for name, probe in one.probes.items()
    ]
    return {"name": _spoken(one.name), "classifiers": found, "settings": sum(len(rows) for _, rows in found)}


def _classifiers(probed: Sequence[Judged]) -> dict[str, str]:
    """All that were asked, and what they are."""
    return {name: found["about"] for one in probed for name, found in one.probes.items()}


def _anywhere(key: str, probed: Sequence[Judged]) -> bool:
    return any(key in found["test"] for one in probed for found in one.probes.values())


def _spoken(name: str) -> str:
    return name.replace("_", " ")


def _setting(setting: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={_number(value)}" for key, value in setting.items()) or "\N{EN DASH}"


def _number(value: Any) -> str:
    return repr(float(f"{value:.4g}")).removesuffix(".0") if isinstance(value, float) else str(value)


def _seconds(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _evenly(values: Array, most: int) -> Array:
    found: Array = values[np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)]
    return found


def _lines(about: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """What is known of a table's making, a line for each thing."""
    for key, value in about.items():
        if isinstance(value, Mapping):
            yield from _lines(value, f"{above}{key}.")
        else:
            yield f"{above}{key}: {value}"
