"""Evaluate the model that is being trained, to tell which checkpoint is the best."""

from __future__ import annotations

import pyarrow as pa

from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.trainer.evaluate.report import ALL, summarise
from sum_factory.trainer.evaluate.run import evaluate_sets
from sum_factory.trainer.evaluate.settings import Protocol
from sum_factory.trainer.run.settings import ValidationSettings


def validate(model: LoadedSam, settings: ValidationSettings, precision: Precision) -> tuple[float, dict[str, float]]:
    """Return the score, which is mBIoU over all sets after the last round, and the values to log, by task."""
    protocol = Protocol(rounds=settings.rounds)
    results = evaluate_sets(model, settings.sets, [protocol], settings.max_masks, precision=precision)
    means = summarise(pa.concat_tables([result.rows for result in results]))
    key = f"mBIoU@{settings.rounds}"
    scores = {f"{task}_{name}": value for task, values in means.items() for name, value in values.items()}
    return means[ALL][key], scores
