"""Tables in the form of the paper's: a line for each set, task, and all sets; ours, the published, the difference.

Scores are in percent. "all" is the mean over all sets. Intervals are of 95 %, by bootstrap over images; differences
between models are paired, since the same images are drawn for each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.trainer.evaluate.bootstrap import DRAWS, Values, interval, resampled_means
from sum_factory.trainer.evaluate.published import Prompted, published_mean, published_set
from sum_factory.trainer.evaluate.report import (
    ALL,
    METRICS,
    Results,
    all_rows,
    by_protocol,
    set_means,
    set_tasks,
    shown_rounds,
    table_row,
)
from sum_factory.trainer.evaluate.settings import SQUEEZED

Comparisons = Mapping[str, Sequence[str]]
"""The published columns that each model is compared with."""


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of means, in percent, and its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """A line of a table: the score of a set, or the mean over the sets of a task, or over "all"."""

    prompted: Prompted
    task: str
    dataset: str
    """The set; nothing for a mean."""
    sets: tuple[str, ...]
    """The sets that the score is of."""
    ours: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]
    """Of each model but the first: by how much it is better than the first."""
    published: Mapping[str, float | None]

    @property
    def title(self) -> str:
        """The set, or how many sets the mean is of."""
        return self.dataset or f"mean of {len(self.sets)} set{'s' * (len(self.sets) > 1)}"


def make_lines(results: Results, comparisons: Comparisons, rounds: Sequence[int] | None = None) -> list[Line]:
    """Return the lines for all protocols and metrics, and those rounds that tables show, in this order."""
    rows = {name: list(by_protocol(all_rows(of_model))) for name, of_model in results.items()}
    columns = tuple(dict.fromkeys(column for name in results for column in comparisons.get(name, ())))
    lines = []
    for number, (first, output, reference) in enumerate(next(iter(rows.values()))):
        of_models = {name: each[number][2] for name, each in rows.items()}
        for metric in METRICS:
            for played in shown_rounds(reference, rounds):
                lines += _lines(of_models, Prompted(metric, first, played, output), columns)
    return lines


def _lines(rows: Mapping[str, pa.Table], prompted: Prompted, columns: Sequence[str]) -> Iterator[Line]:
    tasks, key = set_tasks(next(iter(rows.values()))), f"{prompted.metric}@{prompted.round}"
    means = {name: set_means(each) for name, each in rows.items()}
    drawn = {name: _drawn(rows, prompted, name, number) for number, name in enumerate(tasks)}

    def line(task: str, names: list[str], dataset: str) -> Line:
        own = {model: float(np.mean([of_sets[name][key] for name in names])) for model, of_sets in means.items()}
        return Line(
            prompted,
            task,
            dataset,
            tuple(names),
            *_estimates(own, np.mean([drawn[name] for name in names], axis=0)),
            {
                column: published_set(column, prompted, dataset)
                if dataset
                else published_mean(column, prompted, task, names)
                for column in columns
            },
        )

    for task in dict.fromkeys(tasks.values()):
        names = [name for name in tasks if tasks[name] == task]
        yield from (line(task, [name], name) for name in names)
        yield line(task, names, "")
    yield line(ALL, list(tasks), "")


def _drawn(rows: Mapping[str, pa.Table], prompted: Prompted, name: str, number: int) -> Values:
    """Return the means of a set with other images, (draws, models). The same images are drawn for each model, metric
    and round."""
    sums, counts = [], np.zeros(0)
    for table in rows.values():
        wanted = (np.array(table["set"]) == name) & (table["round"].to_numpy() == prompted.round)
        values = table[METRICS[prompted.metric]].to_numpy()[wanted]
        images = _numbered(np.array(table["image"])[wanted])
        sums.append(np.bincount(images, values))
        counts = np.bincount(images).astype(np.float64)
    random = np.random.default_rng([0, number])
    return resampled_means(np.stack(sums)[:, None], counts[None], DRAWS, random)[:, :, 0]


def _numbered(names: npt.NDArray[np.object_]) -> npt.NDArray[np.int64]:
    return np.unique(names.astype(str), return_inverse=True)[1]


def _estimates(means: Mapping[str, float], drawn: Values) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Return the score of each model, and by how much each but the first is better than the first."""
    (first, *_), ours, gains = means, {}, {}
    for k, (name, mean) in enumerate(means.items()):
        ours[name] = _estimate(mean, drawn[:, k])
        if k:
            gains[name] = _estimate(mean - means[first], drawn[:, k] - drawn[:, 0])
    return ours, gains


def _estimate(mean: float, drawn: Values) -> Estimate:
    low, high = interval(drawn)
    return Estimate(100 * mean, 100 * low, 100 * high)


def prompt_text(prompted: Prompted) -> str:
    """Return how the paper calls a prompt: "1 point", "5 points", "1 box"."""
    points = f"{prompted.round} point{'s' * (prompted.round > 1)}"
    if prompted.first == "point":
        return points
    if prompted.first == "near-boundary":
        return f"{points}, the first near the boundary"
    if prompted.first == SQUEEZED:
        return "1 box, photo squeezed"
    more = prompted.round - 1
    return f"1 box, {more} point{'s' * (more > 1)}" if more else "1 box"


def to_csv(lines: Sequence[Line], comparisons: Comparisons) -> str:
    """Return the lines as CSV: the columns of the paper's tables, then ours, the published, and differences."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = _columns(lines, comparisons)
    writer.writerow(["metric", "prompt", "output", "task", "dataset", *(name for name, _ in columns)])
    for line in lines:
        metric, output = line.prompted.metric, line.prompted.output
        start = [metric, prompt_text(line.prompted), output, line.task, line.dataset]
        writer.writerow([*start, *(_number(value(line)) for _, value in columns)])
    return text.getvalue()


Column = tuple[str, Callable[[Line], float | None]]


def _columns(lines: Sequence[Line], comparisons: Comparisons) -> list[Column]:
    """Return names and values of all columns of numbers."""
    first, *others = lines[0].ours
    found: list[Column] = []
    for name in (first, *others):
        found.append((name, lambda line, name=name: line.ours[name].mean))
        found.append((f"{name} low", lambda line, name=name: line.ours[name].low))
        found.append((f"{name} high", lambda line, name=name: line.ours[name].high))
        for column in comparisons.get(name, ()):
            found.append((f"{column} (published)", lambda line, column=column: line.published[column]))
            found.append((f"{name} - published {column}", lambda line, name=name, c=column: _difference(line, name, c)))
    for name in others:
        found.append((f"{name} - {first}", lambda line, name=name: line.gains[name].mean))
        found.append((f"{name} - {first} low", lambda line, name=name: line.gains[name].low))
        found.append((f"{name} - {first} high", lambda line, name=name: line.gains[name].high))
    return found


def _difference(line: Line, model: str, column: str) -> float | None:
    published = line.published[column]
    return None if published is None else line.ours[model].mean - published


def _number(value: float | None) -> str:
    return "" if value is None else f"{round(value, 2) + 0.0:.2f}"


def to_markdown(lines: Sequence[Line], comparisons: Comparisons) -> str:
    """Return a table for each prompt, output and metric."""
    parts = []
    for prompted, group in groupby(lines, key=lambda line: line.prompted):
        cells = _cells(list(group), comparisons)
        parts.append(f"## {_title(prompted)}")
        head = [table_row(cells[0]), table_row(["---", "---", *["---:"] * (len(cells[0]) - 2)])]
        parts.append("\n".join([*head, *map(table_row, cells[1:])]))
    return "\n\n".join(parts) + "\n"


def _title(prompted: Prompted) -> str:
    return f"{prompted.metric}, {prompt_text(prompted)}, output: {prompted.output}"


def _cells(lines: Sequence[Line], comparisons: Comparisons) -> list[list[str]]:
    """Return the cells of a table for people, a head and a row for each line; means of sets are marked by stars."""
    first, *others = lines[0].ours
    head = ["task", "set"]
    for name in (first, *others):
        head.append(name)
        for column in comparisons.get(name, ()):
            head += [f"{column}, published", "difference"]
    head += [f"{name} - {first} (95 %)" for name in others]
    rows = [head]
    for line in lines:
        row = [line.task, line.title]
        for name in (first, *others):
            row.append(f"{line.ours[name].mean:.1f}")
            for column in comparisons.get(name, ()):
                published, difference = line.published[column], _difference(line, name, column)
                row += ["" if published is None else f"{published:.1f}", _signed(difference)]
        row += [_with_interval(line.gains[name]) for name in others]
        rows.append(row if line.dataset else [f"**{cell}**" if cell else "" for cell in row])
    return rows


def _signed(value: float | None) -> str:
    return "" if value is None else f"{round(value, 1) + 0.0:+.1f}"


def _with_interval(estimate: Estimate) -> str:
    return f"{_signed(estimate.mean)} [{_signed(estimate.low)}, {_signed(estimate.high)}]"


def to_latex(lines: Sequence[Line], comparisons: Comparisons) -> str:
    """Return the same tables for LaTeX, with the package booktabs."""
    parts = []
    for prompted, group in groupby(lines, key=lambda line: line.prompted):
        head, *rows = _cells(list(group), comparisons)
        body = [f"{_latex_row(head)}", r"\midrule", *map(_latex_row, rows)]
        columns = "ll" + "r" * (len(head) - 2)
        parts.append(
            "\n".join(
                [
                    f"% {_title(prompted)}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


def _latex(cell: str) -> str:
    bold = cell.startswith("**")
    text = "".join(rf"\{mark}" if mark in "&%$#_{}" else mark for mark in cell.strip("*"))
    text = text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    return rf"\textbf{{{text}}}" if bold else text
