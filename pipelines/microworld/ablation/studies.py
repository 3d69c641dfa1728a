"""What turning the world does: a table and a chart for each thing that is turned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from sum_factory.pipelines.microworld.ablation.cells import FOLLOWED, FULL, STUDIED, STUDY_SETTING, Cell, recipe_of
from sum_factory.pipelines.microworld.ablation.compare import scores_of
from sum_factory.pipelines.microworld.ablation.plots import Line, line_chart
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.rows import Row
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.trainer.evaluation.report import ALL


@dataclass(frozen=True)
class Study:
    """One thing that is turned: variants are called ``key=value``; ``usual`` is the value of all other runs."""

    key: str
    title: str
    usual: Callable[[Plan], float]
    methods: tuple[str, ...] = STUDIED

    @property
    def chart_name(self) -> str:
        """The file name of its chart."""
        return f"ablation_study_{self.key}.svg"


STUDIES = (
    Study(
        "focal", "focal loss to one of Dice", lambda plan: recipe_of(plan, Cell(STUDY_SETTING, "sum")).loss.focal_weight
    ),
    Study(
        "exponent",
        "exponent of the certainty in the focal loss",
        lambda plan: recipe_of(plan, Cell(STUDY_SETTING, "sum")).loss.certainty_exponent,
    ),
    Study("human", "scenes with human masks", lambda plan: float(plan.human)),
    Study("steps", "steps", lambda plan: float(recipe_of(plan, Cell(STUDY_SETTING, "sum")).steps), FOLLOWED),
)


def study_points(plan: Plan, results: Results, study: Study, method: str, group: str) -> dict[float, float]:
    """Return mBIoU after 3 points in percent by the value that was turned: means over the seeds that were run with
    other values; empty if none was."""
    runs: dict[float, dict[int, float]] = {}
    variants = dict.fromkeys(cell.variant for cell in results.tables if cell.variant.startswith(f"{study.key}="))
    values = {variant: float(variant.removeprefix(f"{study.key}=")) for variant in variants}
    for variant, value in {**values, FULL: study.usual(plan)}.items():
        scores = scores_of(results, STUDY_SETTING, Row(method, method, variant), Measure())
        runs[value] = {seed: 100 * each.mean(group) for seed, each in scores.items()}
    turned = [set(by_seed) for value, by_seed in runs.items() if value != study.usual(plan) and by_seed]
    if not turned:
        return {}
    seeds = set.intersection(*turned)
    return {
        value: float(np.mean([by_seed[seed] for seed in seeds]))
        for value, by_seed in sorted(runs.items())
        if seeds and seeds <= by_seed.keys()
    }


def study_rows(plan: Plan, results: Results, groups: tuple[str, ...]) -> list[list[object]]:
    """Return the rows of the table: what was turned, its value, the method, and mBIoU by task."""
    rows: list[list[object]] = []
    for study in STUDIES:
        for method in study.methods:
            columns = [study_points(plan, results, study, method, group) for group in groups]
            rows += [
                [study.title, f"{value:g}", method, *(f"{column[value]:.1f}" for column in columns)]
                for value in columns[0]
            ]
    return rows


def study_charts(plan: Plan, results: Results) -> Mapping[str, str]:
    """Return charts of mBIoU over all tasks as SVG, by file name, of the studies of which something was run."""
    charts = {}
    for study in STUDIES:
        found = {method: study_points(plan, results, study, method, ALL) for method in study.methods}
        lines = {method: Line(list(points), list(points.values())) for method, points in found.items() if points}
        if lines:
            charts[study.chart_name] = line_chart(study.title, study.title, "mBIoU after 3 points, all tasks, %", lines)
    return charts
