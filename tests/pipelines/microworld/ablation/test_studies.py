"""Studies, from runs whose scores are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

from sum_factory.pipelines.microworld.ablation.cells import Cell, cells_of, recipe_of
from sum_factory.pipelines.microworld.ablation.report import studies_block
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.pipelines.microworld.ablation.studies import STUDIES, study_charts, study_points, study_rows

TableOf = Callable[[float], pa.Table]
FOCAL, HUMAN, STEPS = (next(study for study in STUDIES if study.key == key) for key in ("focal", "human", "steps"))
LEVELS = {"focal=5": 0.3, "focal=60": 0.5, "human=60": 0.2, "full": 0.4}


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path)


@pytest.fixture
def results(table_of: TableOf) -> Callable[[int], Results]:
    """Give runs of SUM: with other values of one seed, with the usual ones of so many, each 0.1 above the last."""
    return lambda seeds: make_results(table_of, seeds)


def make_results(table_of: TableOf, seeds: int) -> Results:
    usual = {Cell("small", "sum", seed=seed): table_of(LEVELS["full"] + 0.1 * seed) for seed in range(seeds)}
    turned = {Cell("small", "sum", name): table_of(level) for name, level in LEVELS.items() if name != "full"}
    return Results({**turned, **usual})


def test_points_are_by_value_and_of_the_seeds_that_were_turned(plan: Plan, results: Callable[[int], Results]) -> None:
    entity = {value: 100 * (level + 0.01 * np.arange(12).mean()) for value, level in {5: 0.3, 20: 0.4, 60: 0.5}.items()}
    found = study_points(plan, results(3), FOCAL, "sum", "entity")
    assert list(found) == [5, 20, 60]
    assert found == pytest.approx(entity)
    assert list(study_points(plan, results(1), HUMAN, "sum", "entity")) == [60, plan.human]


def test_what_was_not_run_is_left_out(plan: Plan, results: Callable[[int], Results], table_of: TableOf) -> None:
    assert study_points(plan, results(1), FOCAL, "vanilla", "all") == {}
    only_usual = Results({Cell("small", "sum"): table_of(0.4)})
    assert study_points(plan, only_usual, FOCAL, "sum", "all") == {}
    assert study_rows(plan, only_usual, ("all",)) == []
    assert study_charts(plan, only_usual) == {}


def points_in(chart: str) -> int:
    """Count the markers that lie in the plot: those of ticks are not cut at its edge."""
    svg = "{http://www.w3.org/2000/svg}"
    groups = [group for group in ElementTree.fromstring(chart).iter(f"{svg}g") if "clip-path" in group.attrib]
    return sum(len(group.findall(f"{svg}use")) for group in groups)


def test_every_study_has_rows_and_a_chart(plan: Plan, results: Callable[[int], Results]) -> None:
    rows = study_rows(plan, results(1), ("entity", "all"))
    assert [(row[0], row[1]) for row in rows] == [
        (FOCAL.title, "5"), (FOCAL.title, "20"), (FOCAL.title, "60"), (HUMAN.title, "60"), (HUMAN.title, "1500"),
    ]  # fmt: skip
    charts = study_charts(plan, results(1))
    assert set(charts) == {FOCAL.chart_name, HUMAN.chart_name}
    assert [points_in(chart) for chart in charts.values()] == [3, 2]
    block = studies_block(plan, results(1))
    assert f"![{FOCAL.title}](images/{FOCAL.chart_name})\n![{HUMAN.title}](images/{HUMAN.chart_name})" in block


def test_runs_of_fewer_steps_make_a_curve_of_human_only_too(tmp_path: Path, table_of: TableOf) -> None:
    plan = Plan(tmp_path, seeds=(0,), fit_changes=("steps=200",))
    cells = [cell for cell in cells_of(plan) if cell.variant.startswith("steps=")]
    assert [(cell.method, recipe_of(plan, cell).steps) for cell in cells] == [
        (method, steps) for steps in (60, 120) for method in ("human-only", "vanilla", "sum")
    ]
    tables = {cell: table_of(0.1) for cell in (*cells, Cell("small", "human-only"))}
    assert list(study_points(plan, Results(tables), STEPS, "human-only", "entity")) == [60, 120, 200]
