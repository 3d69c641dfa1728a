"""Tables in Markdown and lines of charts, of runs that are held beside each other: in the micro-world or on photos."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, verdict
from sum_factory.pipelines.microworld.ablation.plots import Line
from sum_factory.pipelines.microworld.ablation.results import Measure
from sum_factory.pipelines.microworld.ablation.rows import Row, pairs_of
from sum_factory.trainer.evaluation.report import ALL, table_row

ROUNDS_SHOWN, SINGLE_ROUNDS_SHOWN = (1, 3, 5), (1, 3)


class Comparison(ABC):
    """Runs in ``rows``, of which ``groups`` of masks are looked at after up to ``rounds`` prompts; the last group is
    "all", called ``everything`` in words."""

    rows: Sequence[Row]
    groups: Sequence[str]
    rounds: int
    everything: str

    @abstractmethod
    def means(self, row: Row, measure: Measure, group: str) -> dict[int, float]:
        """Return the means over the masks of a group, 0 to 1, of the runs of a row that have such a round, by seed."""

    @abstractmethod
    def difference(self, better: Row, worse: Row, measure: Measure, group: str) -> Difference | None:
        """Return ``better`` minus ``worse``, by seed; None if they have no seed in common. The frozen model has no
        seed, and is compared with every run of the other."""

    def measures(self, metric: str) -> dict[str, Measure]:
        """Return what is looked at beside the points of an oracle's choice, too, by the title of its column."""
        points = {f"{number} pt": Measure(metric, "point", number) for number in ROUNDS_SHOWN if number <= self.rounds}
        singles = {f"{number} pt, single": Measure(metric, "point", number, "single") for number in SINGLE_ROUNDS_SHOWN}
        return {**points, "box": Measure(metric, "box", 1, "single"), **singles}


def means_table(compared: Comparison, metric: str) -> str:
    """Return the means after 3 points by group, with the standard deviation over seeds."""
    rows: list[list[object]] = []
    for row in compared.rows:
        values = [compared.means(row, Measure(metric), group) for group in compared.groups]
        if values[0]:
            rows.append([row.title, len(values[0]), *(spread_text(percents(each)) for each in values)])
    return table([f"{metric}, 3 points", "seeds", *compared.groups], rows)


def prompts_table(compared: Comparison, metric: str) -> str:
    """Return the means over everything by prompt, oracle and single output."""
    measures = compared.measures(metric)
    rows: list[list[object]] = []
    for row in compared.rows:
        values = [compared.means(row, measure, ALL) for measure in measures.values()]
        if values[0]:
            rows.append([row.title, *(spread_text(percents(each)) for each in values)])
    return table([f"{metric}, {compared.everything}", *measures], rows)


def differences_table(compared: Comparison, metric: str) -> str:
    """Return paired differences after 3 points by group, and over everything with their verdict."""
    rows: list[list[object]] = []
    for better, worse in pairs_of(compared.rows):
        found = [compared.difference(better, worse, Measure(metric), group) for group in compared.groups]
        if found[-1] is not None:
            rows.append([f"{better.title} above {worse.title}", *(each or "" for each in found), verdict(found[-1])])
    return table([f"{metric}, 3 points", *compared.groups, ""], rows)


def differences_by_prompt_table(compared: Comparison, metric: str) -> str:
    """Return paired differences over everything by prompt, oracle and single output."""
    measures = {title: each for title, each in compared.measures(metric).items() if each != Measure(metric)}
    rows: list[list[object]] = []
    for better, worse in pairs_of(compared.rows):
        found = [compared.difference(better, worse, measure, ALL) for measure in measures.values()]
        if any(found):
            rows.append([f"{better.title} above {worse.title}", *(each or "" for each in found)])
    return table([f"{metric}, {compared.everything}", *measures], rows)


def curves(compared: Comparison, group: str) -> dict[str, Line]:
    """Return mBIoU over points, of the rows of which something was run: means in percent, and the standard deviation
    over seeds."""
    numbers = range(1, compared.rounds + 1)
    lines = {}
    for row in compared.rows:
        rounds = [percents(compared.means(row, Measure(round=number), group)) for number in numbers]
        if rounds[0]:
            lines[row.title] = Line(numbers, [float(np.mean(each)) for each in rounds], [*map(spread, rounds)])
    return lines


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(map(table_row, [header, ["---"] * len(header), *rows]))


def percents(by_seed: Mapping[int, float]) -> list[float]:
    """Return shares in percent."""
    return [100 * each for each in by_seed.values()]


def percent(share: float) -> str:
    """Return a share in percent, as text."""
    return f"{100 * share:.1f} %"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 if there is one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def spread_text(values: Sequence[float]) -> str:
    """Return the mean, with the standard deviation where there are several values."""
    if not values:
        return ""
    return f"{np.mean(values):.1f}" + (f" ± {spread(values):.1f}" if len(values) > 1 else "")
