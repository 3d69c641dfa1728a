"""Curves of mIoU and mBIoU over rounds, for each task and all sets, as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sum_factory.trainer.evaluation.report import METRICS, Means, Results, all_rows, by_protocol, summarise

INCHES, DOTS = (4.0, 2.8), 110
"""Width and height of a panel, and dots an inch."""
MARGINS = {"left": 0.05, "right": 0.99, "bottom": 0.1, "top": 0.94, "wspace": 0.25, "hspace": 0.35}
MARKERS = "osD^v<>PX*"
STYLE: Mapping[Any, Any] = {"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "curves"}
"""Text stays text, and ids do not change: the same scores give the same bytes."""


def draw_rounds(results: Results) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of pictures, two for each protocol of more than one round.

    They are called by the first prompt, and by the output, too, if that prompt was played with several.
    """
    by_model = {name: list(by_protocol(all_rows(of_model))) for name, of_model in results.items()}
    played = next(iter(by_model.values()))
    prompts = [first for first, _, _ in played]
    for number, (first, output, rows) in enumerate(played):
        last = max(rows["round"].unique().to_pylist())
        if last > 1:
            means = {name: summarise(each[number][2]) for name, each in by_model.items()}
            name = f"curves_{first}" if prompts.count(first) == 1 else f"curves_{first}_{output}"
            yield from _draw(name, means, range(1, last + 1))


def _draw(name: str, means: Mapping[str, Means], rounds: Sequence[int]) -> Iterator[tuple[str, bytes]]:
    """Yield a picture in both forms: a row for each metric, a column for each task and for all, a line for each
    model."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    groups = list(next(iter(means.values())))
    with rc_context(dict(STYLE)):
        figure = Figure((INCHES[0] * len(groups), INCHES[1] * len(METRICS)), DOTS)
        panels = figure.subplots(len(METRICS), len(groups), squeeze=False, sharex=True)
        for row, metric in zip(panels, METRICS, strict=True):
            for axes, group in zip(row, groups, strict=True):
                axes.set(title=f"{group}, {metric}", xlabel="round", ylabel="%", xticks=list(rounds))
                axes.grid(axis="y", color="0.9")
                for place, (model, of_model) in enumerate(means.items()):
                    values = [100 * of_model[group][f"{metric}@{number}"] for number in rounds]
                    axes.plot(rounds, values, label=model, marker=MARKERS[place % len(MARKERS)], markersize=4)
        panels[0][0].legend(frameon=False)
        figure.subplots_adjust(**MARGINS)
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=metadata)
            yield f"{name}.{kind}", picture.getvalue()
