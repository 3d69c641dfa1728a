"""Curves of mIoU and mBIoU over rounds, for each task and all sets, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping

import pyarrow as pa

from sum_factory.trainer.evaluate.report import METRICS, Means, Results, all_rows, by_protocol, summarise

INCHES, DOTS = (4.0, 2.8), 110
"""Width and height of a panel, and dots an inch."""
MARKERS = "osD^v<>PX*"
STYLE = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "curves"}
"""Text stays text, and ids do not change: the same scores give the same bytes."""


def draw_rounds(results: Results) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of pictures, two for each protocol of more than one round."""
    by_model = {name: list(by_protocol(all_rows(of_model))) for name, of_model in results.items()}
    for number, (first, _, rows) in enumerate(next(iter(by_model.values()))):
        if _last(rows) > 1:
            means = {name: summarise(each[number][2]) for name, each in by_model.items()}
            for kind in ("png", "svg"):
                yield f"curves_{first}.{kind}", _draw(means, _last(rows), kind)


def _last(rows: pa.Table) -> int:
    return max(rows["round"].unique().to_pylist())


def _draw(means: Mapping[str, Means], last: int, kind: str) -> bytes:
    """Return a picture: a row of panels for each task and for all, a column for each metric, a line for each model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups, rounds = list(next(iter(means.values()))), range(1, last + 1)
    picture = io.BytesIO()
    with rc_context(dict(STYLE)):
        size = INCHES[0] * len(METRICS), INCHES[1] * len(groups)
        figure = Figure(size, DOTS, layout="constrained")
        panels = figure.subplots(len(groups), len(METRICS), squeeze=False, sharex=True)
        for row, group in zip(panels, groups, strict=True):
            for axes, metric in zip(row, METRICS, strict=True):
                axes.set(title=f"{group}, {metric}", xlabel="round", ylabel="%", xticks=list(rounds))
                axes.grid(axis="y", color="0.9")
                for place, (name, of_model) in enumerate(means.items()):
                    values = [100 * of_model[group][f"{metric}@{number}"] for number in rounds]
                    axes.plot(rounds, values, label=name, marker=MARKERS[place % len(MARKERS)], markersize=4)
        panels[0][0].legend(frameon=False)
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(picture, format=kind, metadata=metadata)
    return picture.getvalue()
