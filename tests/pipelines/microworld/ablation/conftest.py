"""Scores that are known, as a run leaves them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pyarrow as pa
import pytest

from sum_factory.pipelines.microworld.ablation.cells import FROZEN, Cell
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.trainer.evaluation.run import SCORES

SCENES = 12
TASKS_OF_MASKS = ("salient", "entity", "entity", "part")


def scores_table(level: float, rounds: int = 3) -> pa.Table:
    """Return scores of four masks in each scene for both outputs and a box: ``level``, a little more for each scene,
    and more on parts."""
    rows = []
    for prompt, output, last in (("point", "oracle", rounds), ("point", "single", rounds), ("box", "single", 1)):
        for number in range(1, last + 1):
            for scene in range(SCENES):
                for mask, task in enumerate(TASKS_OF_MASKS):
                    value = level + 0.01 * scene + (0.1 if task == "part" else 0.0)
                    rows.append(
                        {
                            "set": task,
                            "task": task,
                            "image": f"{scene:06d}",
                            "mask": mask,
                            "first": prompt,
                            "output": output,
                            "round": number,
                            "iou": value + 0.05,
                            "boundary_iou": value,
                            "predicted_iou": 0.5,
                            "area": 100,
                            "height": 64,
                            "width": 64,
                        }
                    )
    return pa.Table.from_pylist(rows, SCORES)


@pytest.fixture
def table_of() -> Callable[[float], pa.Table]:
    """Give the function that makes the scores of a run of a known level."""
    return scores_table


@pytest.fixture
def results_of() -> Callable[..., Results]:
    """Give the function that makes results of known levels."""
    return make_results


def make_results(levels: Mapping[str, float], seeds: int = 1, setting: str = "small") -> Results:
    """Return results of a setting: a level for each method, for each seed 0.001 more; "sam" has one seed."""
    tables = {}
    for method, level in levels.items():
        for seed in range(1 if method == "sam" else seeds):
            cell = FROZEN if method == "sam" else Cell(setting, method, seed=seed)
            tables[cell] = scores_table(level + 0.001 * seed)
    return Results(tables)
