"""The learning curves of a run as a PNG: loss, IoU and the scores of validations over steps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES, DOTS = (4.2, 3.2), 110
"""Width and height of a panel, and dots an inch."""
SMOOTHED = 50
"""A curve is the mean over this part of its steps; what each step gave is drawn faintly behind it."""

Points = tuple[list[int], list[float]]


def draw_curves(lines: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the PNG for the lines of a log (``read_log``), which may be none."""
    from matplotlib.figure import Figure

    panels = {name: curves for name, curves in curves_of(lines).items() if curves}
    figure = Figure((INCHES[0] * max(1, len(panels)), INCHES[1]), DOTS, layout="constrained")
    for number, (title, curves) in enumerate(panels.items(), 1):
        _draw(figure.add_subplot(1, len(panels), number, title=title, xlabel="step"), curves, title != "validation")
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    return picture.getvalue()


def curves_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Points]]:
    """Return the points of each curve, by panel and name.

    Of values by round, the first and the last round are shown; of a validation, boundary IoU after its last round.
    """
    panels: dict[str, dict[str, Points]] = {"loss": {}, "IoU in training": {}, "validation": {}}
    for line in lines:
        for name, value in line.items():
            if name == "loss":
                _add(panels["loss"], "loss", line["step"], value)
            elif isinstance(value, list) and name == "iou":
                _add(panels["IoU in training"], "round 1", line["step"], value[0])
                _add(panels["IoU in training"], f"round {len(value)}", line["step"], value[-1])
            elif name.startswith("iou") and isinstance(value, float):
                _add(panels["IoU in training"], name.replace("_", " "), line["step"], value)
            elif name == "validation":
                last = max(int(key.rpartition("@")[2]) for key in value)
                for key in value:
                    if key.endswith(f"mBIoU@{last}"):
                        _add(panels["validation"], key.replace("_", ", "), line["step"], value[key])
    return panels


def _add(curves: dict[str, Points], name: str, step: int, value: float) -> None:
    steps, values = curves.setdefault(name, ([], []))
    if not steps or steps[-1] != step:
        steps.append(step)
        values.append(value)


def _draw(axes: Axes, curves: Mapping[str, Points], is_smoothed: bool) -> None:
    for number, (name, (steps, values)) in enumerate(curves.items()):
        colour = f"C{number}"
        if is_smoothed:
            window = max(1, len(values) // SMOOTHED)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(steps[window - 1 :], _means(values, window), color=colour, label=name)
        else:
            axes.plot(steps, values, color=colour, marker="o", markersize=3, label=name)
    axes.grid(color="0.9")
    axes.legend(frameon=False, fontsize=8)


def _means(values: Sequence[float], window: int) -> list[float]:
    """Return the mean of each ``window`` values in a row."""
    means: list[float] = np.convolve(values, np.full(window, 1 / window), "valid").tolist()
    return means
