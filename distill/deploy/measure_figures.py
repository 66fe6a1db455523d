"""The charts of the page about measured students: accuracy against latency, and latency round by round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from distill import charts

LARGEST, SMALLEST = 420, 26  # area of a marker, in square points
WIDE = 2.5  # from here on between the least and the most, an axis is logarithmic


@dataclass(frozen=True)
class Point:
    """Something that was measured."""

    ms: float
    top1: float
    bytes: int
    colour: str
    marker: str
    hollow: bool
    """Its top-1 is of other clips or views than those of the others."""


def trade_chart(points: Sequence[Point], front: Sequence[int], lines: Sequence[Sequence[Point]], alt: str) -> Markup:
    """Top-1 over milliseconds; what lies on the front is numbered along it, and stands on a line. Pale `lines` join
    what belongs together."""
    figure, axes = charts.chart(7.4, 4.0, "ms for an answer, median", "top-1 (%)")
    most = max(point.bytes for point in points) or 1
    for joined in lines:
        along = sorted((point.ms, 100 * point.top1) for point in joined)
        axes.plot(*zip(*along, strict=True), color=joined[0].colour, linewidth=1.2, alpha=0.35, zorder=1)
    line = [points[place] for place in front]
    axes.step(
        [at.ms for at in line],
        [100 * at.top1 for at in line],
        where="post",
        color=charts.MUTED,
        linewidth=1.2,
        zorder=1,
    )
    for point in points:
        axes.scatter(
            point.ms,
            100 * point.top1,
            s=max(SMALLEST, LARGEST * point.bytes / most),
            marker=point.marker,
            facecolors="none" if point.hollow else point.colour,
            edgecolors=point.colour,
            linewidths=1.4,
            alpha=0.8,
        )
    for number, at in enumerate(line, 1):
        up = 5 + np.sqrt(max(SMALLEST, LARGEST * at.bytes / most)) / 2
        axes.annotate(
            str(number),
            (at.ms, 100 * at.top1),
            (0, up),
            textcoords="offset points",
            ha="center",
            color=charts.INK,
            fontsize=9.5,
            fontweight="bold",
        )
    axes.margins(0.1, 0.22)
    _milliseconds(axes, [point.ms for point in points], "x")
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.autoscale_view()
    return charts.svg(figure, alt)


def rounds_chart(lines: Sequence[tuple[str, dict[int, float]]], alt: str) -> Markup:
    """Median milliseconds of each round, in these colours."""
    figure, axes = charts.chart(4.6, 2.7, "round", "ms for an answer, median")
    for colour, found in lines:
        axes.plot([at + 1 for at in found], list(found.values()), color=colour, linewidth=1.4, marker="o", markersize=2)
    _milliseconds(axes, [ms for _, found in lines for ms in found.values()], "y")
    return charts.svg(figure, alt)


def _milliseconds(axes: Axes, values: Sequence[float], side: str) -> None:
    """A logarithmic axis for what differs by factors, from zero for what does not."""
    least, most = min(values), max(values)
    axis = axes.xaxis if side == "x" else axes.yaxis
    if most < WIDE * least:
        (axes.set_xlim if side == "x" else axes.set_ylim)(0, 1.12 * most)
        axis.set_major_locator(MaxNLocator(6))
        return
    (axes.set_xscale if side == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0,) if most > 1000 * least else (1.0, 2.0, 5.0)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
