"""Hold the scores of runs on photos beside each other: every set counts once, as in the paper's means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, paired_difference
from sum_factory.pipelines.microworld.ablation.cells import Cell
from sum_factory.pipelines.microworld.ablation.results import MaskScores, Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, Row, row_of
from sum_factory.pipelines.microworld.ablation.tables import Comparison
from sum_factory.pipelines.photos.ablation.plan import SETTING, PhotosPlan
from sum_factory.trainer.evaluation.report import ALL, METRICS

TASKS = ("salient", "entity", "part")


FILLED_ROW = Row("human-only, filled", "human-only", "filled")


class PhotoRuns(Comparison):
    """The runs on photos, and the frozen model."""

    everything = "all sets"

    def __init__(self, plan: PhotosPlan, results: Results) -> None:
        self.results = results
        self.rounds = plan.rounds
        self.rows = list(rows_of(plan))
        self.groups = groups_of(results)

    def means(self, row: Row, measure: Measure, group: str) -> dict[int, float]:
        scores = scores_of_row(self.results, row, measure, group)
        return {seed: each.mean(ALL) for seed, each in scores.items()}

    def difference(self, better: Row, worse: Row, measure: Measure, group: str) -> Difference | None:
        return difference_of(self.results, better, worse, measure, group)


def read_results(plan: PhotosPlan, cells: Sequence[Cell]) -> Results:
    """Read the scores that are there; photos are called by set and key, and sets that count as one have one name.

    Raises ``SettingsDifferError`` for scores of other settings.
    """
    name_of = {name: joined for joined in plan.joined for name in joined.split("+")}
    return Results({cell: _joined(table, name_of) for cell, table in Results.read(plan, cells).tables.items()})


def _joined(table: pa.Table, name_of: Mapping[str, str]) -> pa.Table:
    sets, images = table["set"].to_pylist(), table["image"].to_pylist()
    columns = {
        "set": [name_of.get(name, name) for name in sets],
        "image": [f"{name}/{image}" for name, image in zip(sets, images, strict=True)],
    }
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values))
    return table


def rows_of(plan: PhotosPlan) -> Iterator[Row]:
    """Yield the rows of the tables, in their order."""
    yield FROZEN_ROW
    for method in plan.methods:
        yield row_of(method)
        if method == "human-only":
            yield FILLED_ROW


def runs_of(results: Results, row: Row) -> dict[int, Cell]:
    """Return the runs of a row that are done, by seed."""
    return results.runs("none" if row == FROZEN_ROW else SETTING, row.method, row.variant)


def groups_of(results: Results) -> tuple[str, ...]:
    """Return the tasks that have scores, and "all"."""
    there = {task for table in results.tables.values() for task in pc.unique(table["task"]).to_pylist()}
    return (*(task for task in TASKS if task in there), ALL)


def scores_of_row(results: Results, row: Row, measure: Measure, group: str) -> dict[int, MaskScores]:
    """Return the scores of the runs of a row by seed, of those that have such a round.

    What ``MaskScores`` calls the tasks are sets here: its mean over all of them is that of the group.
    """
    found = {seed: set_scores(results, cell, measure, group) for seed, cell in runs_of(results, row).items()}
    return {seed: each for seed, each in found.items() if len(each.values)}


def set_scores(results: Results, cell: Cell, measure: Measure, group: str) -> MaskScores:
    """Return the scores of the masks of a task, or of all, by set."""
    table = results.rows_of_masks(cell, measure, group)
    values = np.asarray(table[METRICS[measure.metric]].to_numpy(), np.float64)
    return MaskScores(values, tuple(table["image"].to_pylist()), tuple(table["set"].to_pylist()))


def difference_of(results: Results, better: Row, worse: Row, measure: Measure, group: str) -> Difference | None:
    """Return the mean difference of two rows and its interval; None if they have no seed in common.

    The frozen model has no seed, and is compared with every run of the other.
    """
    first, second = (scores_of_row(results, row, measure, group) for row in (better, worse))
    if worse == FROZEN_ROW:
        second = {seed: only for only in second.values() for seed in first}
    return paired_difference(first, second, ALL, within_tasks=True)
