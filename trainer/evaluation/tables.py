"""Tables in the form of the paper's: a line for each set, task, and all sets; ours, the published, the difference.

Scores are in percent. "all" is the mean over all sets. Intervals are of 95 %, by bootstrap over images; differences
between models are paired, since the same images are drawn for each.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.trainer.evaluation.bootstrap import DRAWS, Values, interval, resampled_means
from sum_factory.trainer.evaluation.published import Prompted, published_mean, published_set
from sum_factory.trainer.evaluation.report import (
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
from sum_factory.trainer.evaluation.settings import SQUEEZED

Numbers = npt.NDArray[np.int64]
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
    lines: list[Line] = []
    for number, (first, output, reference) in enumerate(next(iter(rows.values()))):
        played = _Played({name: each[number][2] for name, each in rows.items()})
        for metric in METRICS:
            for shown in shown_rounds(reference, rounds):
                lines += played.lines(Prompted(metric, first, shown, output), columns)
    return lines


class _Played:
    """What several models scored by one protocol."""

    def __init__(self, rows: Mapping[str, pa.Table]) -> None:
        self.tasks = set_tasks(next(iter(rows.values())))
        self.means = {model: set_means(table) for model, table in rows.items()}
        self.sets = {name: [_of_set(table, name) for table in rows.values()] for name in self.tasks}

    def lines(self, prompted: Prompted, columns: Sequence[str]) -> Iterator[Line]:
        """Yield the lines for one metric after one round."""
        drawn = {name: self._drawn(prompted, name, number) for number, name in enumerate(self.tasks)}
        for task in dict.fromkeys(self.tasks.values()):
            names = [name for name in self.tasks if self.tasks[name] == task]
            for name in names:
                found = {column: published_set(column, prompted, name) for column in columns}
                yield self._line(prompted, task, name, [name], drawn, found)
            yield self._mean(prompted, task, names, drawn, columns)
        yield self._mean(prompted, ALL, list(self.tasks), drawn, columns)

    def _mean(
        self, prompted: Prompted, task: str, names: list[str], drawn: Mapping[str, Values], columns: Sequence[str]
    ) -> Line:
        found = {column: published_mean(column, prompted, task, names) for column in columns}
        return self._line(prompted, task, "", names, drawn, found)

    def _line(
        self,
        prompted: Prompted,
        task: str,
        dataset: str,
        names: list[str],
        drawn: Mapping[str, Values],
        published: Mapping[str, float | None],
    ) -> Line:
        key = f"{prompted.metric}@{prompted.round}"
        means = {model: float(np.mean([of_sets[name][key] for name in names])) for model, of_sets in self.means.items()}
        ours, gains = _estimates(means, np.mean([drawn[name] for name in names], axis=0))
        return Line(prompted, task, dataset, tuple(names), ours, gains, published)

    def _drawn(self, prompted: Prompted, name: str, number: int) -> Values:
        """Return the means of a set with other images, (draws, models). The same images are drawn for each model,
        metric and round."""
        of_models = [
            (images[rounds == prompted.round], values[prompted.metric][rounds == prompted.round])
            for images, rounds, values in self.sets[name]
        ]
        sums = np.stack([np.bincount(images, values).astype(np.float64) for images, values in of_models])
        counts = np.bincount(of_models[0][0]).astype(np.float64)
        random = np.random.default_rng([0, number])
        return resampled_means(sums[:, None], counts[None], DRAWS, random)[:, :, 0]


def _of_set(rows: pa.Table, name: str) -> tuple[Numbers, Numbers, dict[str, Values]]:
    """Return of each row of a set the number of its image, its round, and its scores by metric."""
    own = rows.filter(pc.equal(rows["set"], name)).combine_chunks()
    images = own["image"].combine_chunks().dictionary_encode().indices.to_numpy()
    return images, own["round"].to_numpy(), {metric: own[column].to_numpy() for metric, column in METRICS.items()}


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


Value = Callable[[Line], float | None]


def _columns(lines: Sequence[Line], comparisons: Comparisons) -> list[tuple[str, Value]]:
    """Return names and values of all columns of numbers."""
    first, *others = lines[0].ours
    found: list[tuple[str, Value]] = []
    for name in (first, *others):
        found += _spread(name, partial(_ours, name))
        for column in comparisons.get(name, ()):
            found.append((f"{column} (published)", partial(_published, column)))
            found.append((f"{name} - published {column}", partial(_over_published, name, column)))
    for name in others:
        found += _spread(f"{name} - {first}", partial(_gain, name))
    return found


def _spread(title: str, estimate: Callable[[Line], Estimate]) -> list[tuple[str, Value]]:
    """Return the columns of a mean and the ends of its interval."""

    def value_of(field: str) -> Value:
        return lambda line: float(getattr(estimate(line), field))

    return [(title, value_of("mean")), *((f"{title} {end}", value_of(end)) for end in ("low", "high"))]


def _ours(model: str, line: Line) -> Estimate:
    return line.ours[model]


def _gain(model: str, line: Line) -> Estimate:
    return line.gains[model]


def _published(column: str, line: Line) -> float | None:
    return line.published[column]


def _over_published(model: str, column: str, line: Line) -> float | None:
    return _difference(line, model, column)


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
    """Return the cells of a table for people, a head and a row for each line; means of sets are marked by stars.

    A published column that has nothing to say of these lines is left out.
    """
    first, *others = lines[0].ours
    comparisons = {
        name: [column for column in of_model if any(line.published[column] is not None for line in lines)]
        for name, of_model in comparisons.items()
    }
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


_LATEX = {mark: rf"\{mark}" for mark in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
}


def _latex(cell: str) -> str:
    bold = cell.startswith("**")
    text = "".join(_LATEX.get(mark, mark) for mark in cell.strip("*"))
    return rf"\textbf{{{text}}}" if bold else text
