"""Judge the small ablation: training has to beat the frozen model."""

from __future__ import annotations

from sum_factory.pipelines.microworld.ablation.cells import SAM
from sum_factory.pipelines.microworld.ablation.claims import difference
from sum_factory.pipelines.microworld.ablation.results import Measure, Results
from sum_factory.pipelines.microworld.ablation.settings import QUICK_SETTING
from sum_factory.pipelines.microworld.ablation.tables import table
from sum_factory.trainer.evaluation.report import ALL

TRAINED = ("vanilla", "sum")


def judge_quick(results: Results) -> tuple[str, bool]:
    """Return a table, and whether both methods are above SAM in mBIoU over all tasks after 3 points, by more than the
    interval of the difference."""
    found = {method: difference(results, QUICK_SETTING, method, SAM, ALL, Measure()) for method in TRAINED}
    rows = [[method, "not run" if each is None else str(each)] for method, each in found.items()]
    passed = all(each is not None and each.low > 0 for each in found.values())
    sentence = "Both beat SAM." if passed else "FAILED: training does not beat SAM."
    return f"{table(['mBIoU at 3 points, all tasks', 'above SAM, points'], rows)}\n\n{sentence}", passed
