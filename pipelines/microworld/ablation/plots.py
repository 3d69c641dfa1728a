"""Line charts as SVG text, which a page of Markdown shows and a diff can read."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

COLOURS = ("#222222", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#bcbd22", "#e377c2")
WIDTH, HEIGHT = 500, 320
LEFT, TOP, BOTTOM = 52, 30, 44
PLOT_WIDTH = 280
STEPS = (1, 2, 5)


@dataclass(frozen=True)
class Line:
    """Points (x, y), and half the height of the bar at each, if there are any."""

    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] = ()


def line_chart(title: str, x_label: str, y_label: str, lines: Mapping[str, Line], diagonal: bool = False) -> str:
    """Draw lines by name, with a legend beside them; ``diagonal`` adds y = x. Raises ``ValueError`` without a point."""
    bars = [spread for line in lines.values() for spread in (line.spread or [0.0] * len(line.y))]
    y_values = [y for line in lines.values() for y in line.y]
    x_values = [x for line in lines.values() for x in line.x]
    if not x_values:
        raise ValueError("a chart needs a point")
    x_axis = _Axis.over(x_values, LEFT, LEFT + PLOT_WIDTH)
    low = [y - bar for y, bar in zip(y_values, bars, strict=True)]
    high = [y + bar for y, bar in zip(y_values, bars, strict=True)]
    y_axis = _Axis.over([*low, *high], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT, 16, title, "start", 13),
        _text(LEFT + PLOT_WIDTH / 2, HEIGHT - 8, x_label, "middle"),
        f'<g transform="rotate(-90 12 {HEIGHT / 2})">{_text(12, HEIGHT / 2, y_label, "middle")}</g>',
    ]
    for value in y_axis.ticks:
        y = y_axis.place(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}h{PLOT_WIDTH}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 5, y + 4, f"{value:g}", "end"))
    for value in x_axis.ticks:
        parts.append(_text(x_axis.place(value), HEIGHT - BOTTOM + 15, f"{value:g}", "middle"))
    if diagonal:
        ends = [max(x_axis.low, y_axis.low), min(x_axis.high, y_axis.high)]
        parts.append(_path([(x_axis.place(v), y_axis.place(v)) for v in ends], "#999999", "4 3"))
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x_axis.place(x), y_axis.place(y)) for x, y in zip(line.x, line.y, strict=True)]
        parts.append(_path(points, colour))
        for (x, y), value, bar in zip(points, line.y, line.spread or [0.0] * len(points), strict=True):
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{colour}"/>')
            if bar > 0:
                parts.append(_path([(x, y_axis.place(value - bar)), (x, y_axis.place(value + bar))], colour))
        row = TOP + 8 + 15 * number
        parts.append(f'<path d="M{LEFT + PLOT_WIDTH + 8} {row - 4}h12" stroke="{colour}" stroke-width="2"/>')
        parts.append(_text(LEFT + PLOT_WIDTH + 24, row, name, "start", 10))
    return "\n".join([*parts, "</svg>"]) + "\n"


@dataclass(frozen=True)
class _Axis:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``, with round numbers at the ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> _Axis:
        span = (max(values) - min(values)) or 1.0
        sizes = [base * 10.0**power for power in range(-6, 7) for base in STEPS]
        step = next(size for size in sizes if span / size <= 6)
        first, last = round(min(values) / step - 0.499999), round(max(values) / step + 0.499999)
        ticks = tuple(round(number * step, 9) for number in range(first, max(last, first + 1) + 1))
        return cls(ticks[0], ticks[-1], start, end, ticks)

    def place(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _path(points: Sequence[tuple[float, float]], colour: str, dashes: str = "") -> str:
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="M{steps}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>'


def _text(x: float, y: float, text: str, anchor: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{html.escape(text)}</text>'
