"""Write down what automatic masks are worth, as a table of models side by side: Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.automatic import RECALLS, AutomaticScores, warning_of
from sum_factory.trainer.evaluation.report import ALL, table_row

TABLE_FILE, CSV_FILE, SUMMARY_FILE = "automatic.md", "automatic.csv", "automatic.json"
COUNTS = ("photos", "human masks")
COLUMNS = (
    *COUNTS,
    "masks a photo",
    *(f"recall@{least:g}" for least in RECALLS),
    "predicted IoU",
    "true IoU",
    "calibration error",
)

Row = Mapping[str, str | float | None]


def rows_of(scores: Sequence[AutomaticScores]) -> list[Row]:
    """Return a row for each set and model, and one for each model that is the mean of its sets, named "all".

    A figure that no mask tells is None, and left out of the mean. Numbers of photos and masks are sums there.
    """
    rows = [_row(each) for each in scores]
    for model in _models(scores):
        of_it = [row for row in rows if row["model"] == model]
        if len(of_it) > 1:
            means = {name: _mean([row[name] for row in of_it], sums=name in COUNTS) for name in COLUMNS}
            rows.append({"set": ALL, "task": "", "model": model, **means})
    order = {name: index for index, name in enumerate(dict.fromkeys(row["set"] for row in rows))}
    return sorted(rows, key=lambda row: order[row["set"]])


def _row(scores: AutomaticScores) -> Row:
    figures = (
        scores.photos,
        scores.human_masks,
        scores.masks_a_photo,
        *scores.recall.values(),
        scores.predicted,
        scores.true,
        scores.calibration_error,
    )
    named = {"set": scores.set, "task": scores.task, "model": scores.model}
    return {**named, **dict(zip(COLUMNS, figures, strict=True))}


def _mean(values: Sequence[str | float | None], sums: bool) -> float | None:
    known = [value for value in values if isinstance(value, int | float)]
    return (sum(known) / (1 if sums else len(known))) if known else None


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table; IoU, recall and errors in percent."""
    names = ("set", "task", "model", *COLUMNS)
    lines = [table_row(names), table_row(["---"] * 3 + ["---:"] * len(COLUMNS))]
    lines += [table_row(_shown(name, row[name]) for name in names) for row in rows]
    return "\n".join(lines)


def _shown(name: str, value: str | float | None) -> str:
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.1f}" if name == "masks a photo" else f"{value:.0f}" if name in COUNTS else f"{100 * value:.2f}"


def write_automatic(out: Storage, scores: Sequence[AutomaticScores], provenance: Mapping[str, Any]) -> str:
    """Write ``automatic.md``, ``automatic.csv`` and ``automatic.json``; return the text of the first.

    The first model of the scores is the one before training: of each other it is said if masks have fallen by half.
    Raises ``StorageError``.
    """
    rows, warnings = rows_of(scores), warnings_of(scores)
    text = "\n\n".join(["## Automatic masks", markdown(rows), *warnings]) + "\n"
    out.write(TABLE_FILE, text.encode())
    out.write(CSV_FILE, _csv(rows).encode())
    summary = {**provenance, "warnings": warnings, "results": [asdict(each) for each in scores]}
    out.write(SUMMARY_FILE, (json.dumps(summary, indent=1) + "\n").encode())
    return text


def warnings_of(scores: Sequence[AutomaticScores]) -> list[str]:
    """Return a warning for each model but the first that keeps half the masks of the first, or fewer."""
    (before, *others) = [[each for each in scores if each.model == name] for name in _models(scores)]
    return [warning for after in others for warning in [warning_of(before, after)] if warning is not None]


def _models(scores: Sequence[AutomaticScores]) -> list[str]:
    return list(dict.fromkeys(each.model for each in scores))


def _csv(rows: Sequence[Row]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, ("set", "task", "model", *COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
