"""Line charts as SVG text, which a page of Markdown shows."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INCHES = (6.6, 3.6)


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
    with rc_context({"svg.hashsalt": "charts", "svg.fonttype": "none"}):  # ids that do not change; text stays text
        figure = draw_lines(title, x_label, y_label, lines, diagonal)
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()


def draw_lines(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], diagonal: bool = False) -> Figure:
    """Draw lines by name, with a legend beside them; ``diagonal`` adds y = x. Raises ``ValueError`` without a point."""
    from matplotlib.figure import Figure

    if not any(len(line.x) for line in lines.values()):
        raise ValueError("a chart needs a point")
    figure = Figure(INCHES, layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x_label, ylabel=y_label)
    for name, line in lines.items():
        axes.errorbar(line.x, line.y, line.spread or None, label=name, marker="o", markersize=3, linewidth=1.2)
    if diagonal:
        axes.axline((0, 0), slope=1, color="0.6", linestyle="--")
    axes.grid(axis="y", color="0.9")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure
