"""Evaluate the model that is being trained, to tell which checkpoint is the best."""

from __future__ import annotations

import pyarrow as pa

from sum_factory.shared.precision import Precision
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.trainer.evaluation.report import ALL, summarise
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.run.distributed import ALONE, Ranks
from sum_factory.trainer.run.settings import ValidationSettings


def validate(
    model: LoadedSam, settings: ValidationSettings, task_always: bool, precision: Precision, ranks: Ranks = ALONE
) -> tuple[float, dict[str, float]]:
    """Return the score, which is mBIoU over all sets after the last round, and the values to log, by task.

    With ``task_always`` the model is told the task in every round, as in its training, else in the first. All processes
    share the photos, and each returns the score of all.
    """
    protocol = Protocol(rounds=settings.rounds, task_rounds=settings.rounds if task_always else 1)
    results = evaluate_sets(model, settings.sets, [protocol], settings.max_masks, precision=precision, ranks=ranks)
    means = summarise(pa.concat_tables([result.rows for result in results]))
    scores = {f"{task}_{name}": value for task, values in means.items() for name, value in values.items()}
    return scores[score_name(settings)], scores


def score_name(settings: ValidationSettings) -> str:
    """Return the name, among the values to log, of the score that decides which checkpoint is the best."""
    return f"{ALL}_mBIoU@{settings.rounds}"
