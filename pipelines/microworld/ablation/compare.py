"""Hold the runs of a setting beside each other: every task counts once."""

from __future__ import annotations

from sum_factory.pipelines.microworld.ablation.bootstrap import Difference, paired_difference
from sum_factory.pipelines.microworld.ablation.cells import variants_of
from sum_factory.pipelines.microworld.ablation.results import MaskScores, Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import FROZEN_ROW, Row, row_of
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.pipelines.microworld.ablation.tables import Comparison
from sum_factory.pipelines.microworld.sets import SCENE_TASKS
from sum_factory.trainer.evaluation.report import ALL

GROUPS = (*SCENE_TASKS, ALL)


class SettingRuns(Comparison):
    """The runs of a setting, and the frozen model."""

    groups = GROUPS
    everything = "all tasks"

    def __init__(self, plan: Plan, results: Results, setting: str) -> None:
        self.results, self.setting = results, setting
        self.rounds = plan.rounds
        self.rows = rows_of(plan)

    def means(self, row: Row, measure: Measure, group: str) -> dict[int, float]:
        scores = scores_of(self.results, self.setting, row, measure)
        return {seed: each.mean(group) for seed, each in scores.items()}

    def difference(self, better: Row, worse: Row, measure: Measure, group: str) -> Difference | None:
        return difference_of(self.results, self.setting, better, worse, group, measure)


def rows_of(plan: Plan) -> list[Row]:
    """Return the rows of the tables, in their order: each method, and below it its variants."""
    rows, variants = [FROZEN_ROW], variants_of(plan)
    for method in plan.methods:
        rows.append(row_of(method))
        rows += [Row(each.title, method, each.name) for each in variants if each.method == method]
    return rows


def difference_of(
    results: Results, setting: str, better: Row, worse: Row, task: str, measure: Measure
) -> Difference | None:
    """Return ``better`` minus ``worse`` in a setting, by seed; None if they have no seed in common.

    The frozen model has no seed, and is compared with every run of the other.
    """
    first, second = (scores_of(results, setting, row, measure) for row in (better, worse))
    if better == FROZEN_ROW:
        first = {seed: only for only in first.values() for seed in second}
    if worse == FROZEN_ROW:
        second = {seed: only for only in second.values() for seed in first}
    return paired_difference(first, second, task)


def scores_of(results: Results, setting: str, row: Row, measure: Measure) -> dict[int, MaskScores]:
    """Return the scores of a row's runs by seed, of those that have such a round; the frozen model is the same in every
    setting."""
    runs = results.runs("none" if row == FROZEN_ROW else setting, row.method, row.variant)
    scores = {seed: results.scores(cell, measure) for seed, cell in runs.items()}
    return {seed: each for seed, each in scores.items() if len(each.values)}
