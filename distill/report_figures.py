"""The report's pictures: charts, confusion tables, film strips.

Nothing here knows of runs or recipes. N clips; T frames; S pixels.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.image import imsave
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from distill import charts
from distill.evaluate import confused_pairs
from distill.outputs import ClipSpec

POINTS = 600  # more hide one another, and t-SNE takes its time
STRIP_FRAMES, STRIP_SIDE, PIXEL_ART_SIDE = 8, 112, 64
CONFUSION_CLASSES, PAIRS = 20, 3


def loss_chart(
    steps: Sequence[float],
    raw: Mapping[str, Sequence[float]],
    weighted: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
    alt: str,
) -> Markup:
    """Every term over the steps: raw as a wide pale line, weighted as a thin one on top."""
    figure, axes = charts.chart(3.8, 2.6, "training step", "loss (no unit)")
    for name in raw:
        axes.plot(steps, raw[name], color=colours[name], linewidth=4.5, alpha=0.3, solid_capstyle="round")
        axes.plot(steps, weighted[name], color=colours[name], linewidth=1.3)
    _log_scale(axes, np.array([*raw.values(), *weighted.values()], np.float64))
    return charts.svg(figure, alt)


def share_chart(
    curves: Sequence[tuple[str, str, Sequence[tuple[float, float]]]],
    axis_names: tuple[str, str],
    alt: str,
    chance: float | None = None,
    ticks: Sequence[float] = (),
    highest: float = 0.0,
    width: float = 3.8,
) -> Markup:
    """Shares as curves of (colour, marker, points), and what guessing gives. `ticks` are for a logarithmic axis: the
    numbers it shows, and where curves have their markers. `highest` is of all the charts that stand together."""
    figure, axes = charts.chart(width, 2.9, *axis_names)
    if chance is not None:
        _guessing(axes, chance)
    for colour, marker, points in curves:
        across, shares = np.array(points).T
        marked = np.flatnonzero(np.isin(across, ticks)) if len(ticks) else None
        axes.plot(across, 100 * shares, color=colour, linewidth=1.6, marker=marker, markersize=3, markevery=marked)
    if len(ticks):
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.set_ylim(0, min(100, max(axes.get_ylim()[1], 20, 105 * highest)))
    return charts.svg(figure, alt)


def _guessing(axes: Axes, chance: float) -> None:
    axes.axhline(100 * chance, color=charts.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        "guessing",
        (1, 100 * chance),
        (-2, 3),
        xycoords=("axes fraction", "data"),
        ha="right",
        textcoords="offset points",
        color=charts.MUTED,
        fontsize=8,
    )


def class_colours(label: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
    """The most frequent classes' places in a legend, -1 for any other class, and that legend; -1 in `label` is none."""
    counts = np.bincount(label[label >= 0], minlength=len(classes))
    shown = np.sort(np.argsort(-counts, kind="stable")[: len(charts.COLOURS)])
    group = np.full(len(classes) + 1, -1)  # its last place serves the label -1
    group[shown] = np.arange(len(shown))
    legend = [(classes[name], charts.colour(place), charts.sign(place)) for place, name in enumerate(shown)]
    return group, {"legend": legend, "others": len(classes) - len(shown)}


def thinned(rows: np.ndarray, most: int = POINTS) -> np.ndarray:
    """At most so many of the rows, evenly."""
    return rows[:: max(1, -(-len(rows) // most))]


def latent_map(latent: np.ndarray, group: np.ndarray, alt: str, principal: bool = False) -> Markup:
    """t-SNE of latents [N,L], or their two principal axes; `group` [N] is the place of a clip's class in the legend,
    -1 = in grey."""
    place = _principal_axes(latent) if principal else _neighbourhoods(latent)
    kind = "principal" if principal else "t-SNE"
    figure, axes = charts.chart(3.5, 3.3, f"{kind} axis 1 (no unit)", f"{kind} axis 2 (no unit)")
    for number in np.unique(group):
        shown = place[group == number]
        known = number >= 0
        axes.scatter(
            shown[:, 0],
            shown[:, 1],
            s=13,
            linewidths=0,
            alpha=0.85,
            color=charts.colour(number) if known else charts.LINE,
            marker=charts.marker(number) if known else "o",
        )
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    return charts.svg(figure, alt)


def _neighbourhoods(latent: np.ndarray) -> np.ndarray:
    neighbours = min(30.0, (len(latent) - 1) / 3)
    # On a machine that does other work too, more threads than one make this ten times slower: they wait by spinning.
    with threadpool_limits(1):
        kind = TSNE(perplexity=neighbours, init="pca", random_state=0, max_iter=500)
        return np.asarray(kind.fit_transform(_standardised(latent)))


def _principal_axes(latent: np.ndarray) -> np.ndarray:
    return np.asarray(PCA(2, random_state=0).fit_transform(_standardised(latent)))


def neighbour_share(latent: np.ndarray, label: np.ndarray) -> float:
    """Share of clips whose nearest other clip is of their own class."""
    _, nearest = NearestNeighbors(n_neighbors=2).fit(_standardised(latent)).kneighbors()
    return float((label[nearest[:, 0]] == label).mean())


def confusion_table(table: np.ndarray, classes: Sequence[str], by_pairs: bool = False) -> dict[str, Any]:
    """Counts [true class, answer] as rows of (count, share of the true class, right). Of many classes those with the
    most errors, in their order, or those of the most frequent mix-ups, so that these stand side by side."""
    wrong = table * (1 - np.eye(len(classes), dtype=np.int64))
    shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:CONFUSION_CLASSES])
    if by_pairs and len(classes) > CONFUSION_CLASSES:
        mixed = dict.fromkeys(name for *pair, _ in confused_pairs(table, wrong.size) for name in pair)
        shown = np.array(list(mixed)[:CONFUSION_CLASSES], np.int64)
    totals = table.sum(1).clip(min=1)
    rows = [
        (classes[true], [(table[true, said], table[true, said] / totals[true], true == said) for said in shown])
        for true in shown
    ]
    return {
        "classes": [classes[place] for place in shown],
        "of": len(classes),
        "chosen": "of the most frequent mix-ups" if by_pairs else "with the most errors",
        "rows": rows,
        "right": np.trace(table),
        "all": table.sum(),
        "pairs": [
            (classes[true], classes[said], count, int(totals[true]))
            for true, said, count in confused_pairs(table, PAIRS)
        ],
    }


def strips(videos: Sequence[Tensor]) -> tuple[list[str], bool]:
    """Videos uint8 [T,3,S,S] as film strips of one size, and whether they are to be shown pixel by pixel."""
    frames = min(STRIP_FRAMES, *(len(video) for video in videos))
    spec = ClipSpec(frames, min(STRIP_SIDE, *(video.shape[-1] for video in videos)))
    return [strip(spec.fit(video[None])[0]) for video in videos], spec.size <= PIXEL_ART_SIDE


def strip(frames: Tensor) -> str:
    """Frames uint8 [T,3,S,S] side by side, as the address of an embedded image."""
    gap = frames.new_full((*frames.shape[:3], 1), 128)
    picture = torch.cat([frames, gap], 3).permute(2, 0, 3, 1).flatten(1, 2)[:, :-1]
    # Small pictures are shown pixel by pixel, where JPEG's blocks would show too.
    kind, options = ("png", {}) if frames.shape[-1] <= PIXEL_ART_SIDE else ("jpeg", {"quality": 88})
    data = io.BytesIO()
    imsave(data, picture.contiguous().numpy(), format=kind, pil_kwargs=options)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _standardised(latent: np.ndarray) -> np.ndarray:
    return np.asarray(StandardScaler().fit_transform(latent.astype(np.float64)))


def _log_scale(axes: Axes, values: np.ndarray) -> None:
    """Where every value is positive; losses of different kinds lie decades apart."""
    values = values[np.isfinite(values)]
    if not values.size or values.min() <= 0:
        return
    axes.set_yscale("log")
    axes.set_ylabel("loss (no unit, log scale)")
    decades = np.log10(values.max() / values.min())
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
