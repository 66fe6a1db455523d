"""What all charts share: SVG that follows the page's light or dark theme, its colours and markers. No torch here."""

from __future__ import annotations

import io
import re
from xml.sax.saxutils import quoteattr

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins that become the page's CSS variables, so that one SVG serves both themes.
INK, MUTED, LINE = "#010203", "#040506", "#070809"
THEME = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"}
# Of middling lightness: readable on white and on near-black.
COLOURS = (
    *("#4269d0", "#e58606", "#3ca951", "#ff725c", "#a463f2", "#00a2b3"),
    *("#e56db1", "#9c6b4e", "#8a9a00", "#7f8ea3", "#2f7f5f", "#c23b5a"),
)
MARKERS = {"o": "●", "^": "▲", "s": "■"}  # as drawn, and as written in a legend


def colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def marker(place: int) -> str:
    return list(MARKERS)[place % len(MARKERS)]


def sign(place: int) -> str:
    """The marker in a legend."""
    return MARKERS[marker(place)]


def chart(width: float, height: float, across: str, up: str) -> tuple[Figure, Axes]:
    """An empty chart with quiet axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(across, color=MUTED, fontsize=8.5)
    axes.set_ylabel(up, color=MUTED, fontsize=8.5)
    axes.tick_params(colors=MUTED, labelsize=8, length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(MUTED)
    return figure, axes


def svg(figure: Figure, alt: str) -> Markup:
    """The figure as an inline element that scales with the page and speaks to screen readers."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    page = io.StringIO()
    # Ids are shared by all the charts of a page, hence a salt of each chart's own.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": alt}):
        figure.savefig(page, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = page.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'<g id="[a-zA-Z_]+\d*(\.[\w-]+)?">', "<g>", text)
    text = re.sub(r"(font: [\d.]+px) [^;\"]+", r"\1 system-ui, sans-serif", text)
    for stand_in, variable in THEME.items():
        text = text.replace(stand_in, variable)
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label={quoteattr(alt)} ', 1))
