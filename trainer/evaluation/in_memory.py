"""Judge a model on sets of human masks, and hand the scores back: one model, one process, nothing written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.report import Means, all_rows, report_text, set_means, summarise
from sum_factory.trainer.evaluation.run import SetScores, evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.evaluation.suites import Suite, read_suite
from sum_factory.trainer.predict import Predictor, load_model
from sum_factory.trainer.settings import check_settings


@dataclass(frozen=True)
class Scores:
    """What a model scored on sets of human masks."""

    sets: tuple[SetScores, ...]
    """Each set with a row for each of its masks and rounds."""

    @property
    def rows(self) -> pa.Table:
        """All rows: set, task, image, mask, round, iou, boundary_iou, predicted_iou, area and size."""
        return all_rows(self.sets)

    @cached_property
    def by_set(self) -> Means:
        """The means over the masks of each set, by its name: mIoU@1 and mBIoU@1 after the first round, and so on."""
        return set_means(self.rows)

    @cached_property
    def by_task(self) -> Means:
        """The means over the sets of each task, and over all sets under "all"."""
        return summarise(self.rows)

    def __str__(self) -> str:
        return report_text({"model": list(self.sets)})


def evaluate(
    model: Predictor | str | Path,
    sets: Sequence[SetSettings | Mapping[str, Any]] | str | Path,
    protocol: Protocol | None = None,
    *,
    variables: Mapping[str, str] | None = None,
    max_masks: int | None = None,
    seed: int = 0,
) -> Scores:
    """Prompt a model as a user would, on sets of human masks; return IoU and boundary IoU after each round.

    ``model`` is what ``load_model`` gives or takes. ``sets`` are settings of sets, each with a name, also as mappings
    such as ``{"name": "mine", "kind": "folder-pairs", "images": "a", "masks": "b", "task": "salient"}``; or a suite, by
    the path of its YAML file or its name, whose ``${NAME}`` ``variables`` fill. ``protocol`` is by default six
    rounds from a point. At most ``max_masks`` of a photo are judged, drawn by ``seed``. Each photo is judged as by
    ``trainer evaluate``, which shares photos among processes and goes on after a kill. Raises ``SumError``.
    """
    if isinstance(sets, str | Path):
        chosen = read_suite(sets, variables or {}).sets
    else:
        chosen = check_settings({"sets": list(sets)}, Suite, "sets").sets
    predictor = model if isinstance(model, Predictor) else load_model(model)
    judged = evaluate_sets(predictor.weights, chosen, [protocol or Protocol()], max_masks, seed, predictor.precision)
    return Scores(tuple(judged))
