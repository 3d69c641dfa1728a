"""Line charts as SVG text, which a page of Markdown shows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (7.2, 4.3)
AXES = (0.09, 0.12, 0.58, 0.79)
"""Left, bottom, width and height of the plot, as shares of the picture: the legend is on its right."""
MARKERS = "osD^v<>PX*phH8d+x1234"
"""One per line, beside its colour, for whoever cannot tell these apart."""
COLOURS = ("petroff10", "Dark2", "Set1")
"""Matplotlib's sequences of colours, one after the other, behind black."""
STYLE: Mapping[Any, Any] = {
    "font.size": 9,
    "font.sans-serif": ["DejaVu Sans"],  # which comes with matplotlib
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "charts",  # ids that do not change
}


@dataclass(frozen=True)
class Line:
    """Points (x, y), and half the height of the bar at each, if there are any."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], diagonal: bool = False) -> str:
    """Return ``draw_lines`` as SVG: the same text for the same lines and version of matplotlib."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(dict(STYLE)):
        figure = draw_lines(title, x_label, y_label, lines, diagonal)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def draw_lines(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], diagonal: bool = False) -> Figure:
    """Draw lines by name, with a legend beside them; ``diagonal`` adds y = x. Raises ``ValueError`` without a point."""
    from matplotlib import color_sequences
    from matplotlib.figure import Figure

    if not any(len(line.x) for line in lines.values()):
        raise ValueError("a chart needs a point")
    colours = ["black", *(colour for name in COLOURS for colour in color_sequences[name])]
    figure, styles = Figure(INCHES), zip(cycle(colours), cycle(MARKERS))
    axes = figure.add_axes(AXES, title=title, xlabel=x_label, ylabel=y_label)
    for (name, line), (colour, marker) in zip(lines.items(), styles, strict=False):
        axes.errorbar(line.x, line.y, line.spread or None, label=name, color=colour, marker=marker, markersize=4)
    if diagonal:
        axes.axline((0, 0), slope=1, color="0.6", linestyle="--")
    axes.grid(axis="y", color="0.9")
    figure.legend(
        loc="upper left", bbox_to_anchor=(AXES[0] + AXES[2], AXES[1] + AXES[3]), frameon=False, labelspacing=0.2
    )
    return figure
