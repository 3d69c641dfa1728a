"""Average scores as Sec. 4.1 of the paper does, and write them down: Parquet, JSON and a Markdown table.

Scores are averaged over the masks of each set, then over the sets of each task. "all" is the mean over all sets, not
over the tasks: a task with many sets weighs more in it than one with few.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.run import MODEL_SCORES, SetScores

ALL = "all"
SHOWN = (1, 3, 5)
"""Rounds of which the table has columns, beside the last."""
MASKS_FILE, SUMMARY_FILE, TABLE_FILE = "masks.parquet", "summary.json", "table.md"
METRICS = {"mIoU": "iou", "mBIoU": "boundary_iou"}

Results = dict[str, list[SetScores]]
"""The scores of each model on each set, by the model's name."""
Means = dict[str, dict[str, float]]
"""For each set, or task, the mean of each metric at each round: ``{"salient": {"mIoU@1": 0.78, ...}, ...}``."""


def set_means(rows: pa.Table) -> Means:
    """Return the means over the masks of each set, in the order of the rows.

    ``rows`` are ``SCORES`` of one protocol. Raises ``ValueError`` if they are of several, or if there are none.
    """
    if len(list(by_protocol(rows))) != 1:
        raise ValueError("expected the rows of one protocol")
    columns = [(column, "mean") for column in METRICS.values()]
    grouped = rows.group_by(["set", "round"], use_threads=False).aggregate(columns)
    means: Means = {}
    for row in grouped.sort_by("round").to_pylist():
        for metric, column in METRICS.items():
            means.setdefault(row["set"], {})[f"{metric}@{row['round']}"] = row[f"{column}_mean"]
    return {name: means[name] for name in rows["set"].unique().to_pylist()}


def summarise(rows: pa.Table) -> Means:
    """Return the means over the sets of each task, and over all sets under "all". ``rows`` as for ``set_means``."""
    means, tasks = set_means(rows), set_tasks(rows)
    groups = {task: [name for name in means if tasks[name] == task] for task in dict.fromkeys(tasks.values())}
    groups[ALL] = list(means)
    return {
        group: {key: sum(means[name][key] for name in names) / len(names) for key in means[names[0]]}
        for group, names in groups.items()
    }


def set_tasks(rows: pa.Table) -> dict[str, str]:
    """Return the task of each set, in the order of the rows."""
    pairs = rows.select(["set", "task"]).group_by(["set", "task"], use_threads=False).aggregate([])
    return {row["set"]: row["task"] for row in pairs.to_pylist()}


def by_protocol(rows: pa.Table) -> Iterator[tuple[str, str, pa.Table]]:
    """Yield the first prompt and the output of each protocol, and its rows."""
    pairs = rows.select(["first", "output"]).group_by(["first", "output"], use_threads=False).aggregate([])
    for pair in pairs.to_pylist():
        of_it = pc.and_(pc.equal(rows["first"], pair["first"]), pc.equal(rows["output"], pair["output"]))
        yield pair["first"], pair["output"], rows.filter(of_it)


def markdown_table(rows: pa.Table, rounds: Sequence[int] | None = None) -> str:
    """Return the means in percent as a table: the sets of each task, their mean, and the mean of all sets.

    ``rows`` as for ``set_means``; ``rounds`` are the columns, by default the 1st, 3rd, 5th and last.
    """
    means, tasks, groups = set_means(rows), set_tasks(rows), summarise(rows)
    keys = [f"{metric}@{number}" for metric in METRICS for number in shown_rounds(rows, rounds)]
    lines = [table_row(["task", "set", *keys]), table_row(["---", "---", *["---:"] * len(keys)])]
    for group, values in groups.items():
        inside = [name for name in means if tasks[name] == group] if group != ALL else []
        lines += [table_row([group, name, *_percent(means[name], keys)]) for name in inside]
        count = len(inside) or len(means)
        title = f"mean of {count} set{'s' * (count > 1)}"
        lines.append(table_row([f"**{group}**", f"**{title}**", *[f"**{cell}**" for cell in _percent(values, keys)]]))
    return "\n".join(lines)


def shown_rounds(rows: pa.Table, rounds: Sequence[int] | None = None) -> list[int]:
    """Return which of ``rounds`` were played, by default of the 1st, 3rd, 5th and last."""
    last = int(pc.max(rows["round"]).as_py())
    shown = sorted({*SHOWN, last}) if rounds is None else rounds
    return [number for number in shown if number <= last]


def _percent(values: Mapping[str, float], keys: Sequence[str]) -> list[str]:
    return [f"{100 * values[key]:.2f}" for key in keys]


def table_row(cells: Iterable[object]) -> str:
    """Return a row of a table in Markdown."""
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def report_text(results: Results, rounds: Sequence[int] | None = None) -> str:
    """Return a table for each model and protocol, and what a reader has to know beside: task prompts, masks left out.

    A single model is not named.
    """
    parts = []
    for name, of_model in results.items():
        if len(results) > 1:
            parts.append(f"# {name}")
        for first, output, of_it in by_protocol(all_rows(of_model)):
            parts += [f"## First prompt: {first}, output: {output}", markdown_table(of_it, rounds)]
        notes = [result.note for result in of_model if result.note is not None]
        notes += [f"{r.settings.name}: {r.empty} empty masks were left out" for r in of_model if r.empty]
        if notes:
            parts.append("\n".join(f"- {note}" for note in notes))
    return "\n\n".join(parts) + "\n"


def all_rows(results: Sequence[SetScores]) -> pa.Table:
    """Return the rows of all sets."""
    return pa.concat_tables([result.rows for result in results])


def model_rows(results: Results) -> pa.Table:
    """Return the rows of all models and sets, ``MODEL_SCORES``."""
    tables = []
    for name, of_model in results.items():
        rows = all_rows(of_model)
        tables.append(rows.add_column(0, MODEL_SCORES.field("model"), pa.array([name] * len(rows), pa.string())))
    return pa.concat_tables(tables)


def write_rows(out: Storage, results: Results, provenance: Mapping[str, Any]) -> None:
    """Write the rows of all models, ``provenance`` into the metadata. Raises ``StorageError``."""
    metadata = {"sum_factory": json.dumps(provenance)}
    buffer = io.BytesIO()
    pq.write_table(model_rows(results).replace_schema_metadata(metadata), buffer, compression="zstd")
    out.write(MASKS_FILE, buffer.getvalue())


def write_summary(
    out: Storage,
    results: Results,
    provenance: Mapping[str, Any],
    rounds: Sequence[int] | None = None,
    remark: str = "",
) -> str:
    """Write ``summary.json`` and ``table.md``, with a remark at its end; return its text. Raises ``StorageError``."""
    summary = {
        **provenance,
        "sets": [_describe(dict(zip(results, of_set, strict=True))) for of_set in zip(*results.values(), strict=True)],
        "results": [
            {"model": name, "first": first, "output": output, "sets": set_means(rows), "tasks": summarise(rows)}
            for name, of_model in results.items()
            for first, output, rows in by_protocol(all_rows(of_model))
        ],
    }
    text = report_text(results, rounds) + remark
    out.write(SUMMARY_FILE, (json.dumps(summary, indent=1) + "\n").encode())
    out.write(TABLE_FILE, text.encode())
    return text


def _describe(results: Mapping[str, SetScores]) -> dict[str, Any]:
    """Return what one set had; the prompted task by model, if there are several."""
    result, prompted = next(iter(results.values())), {name: each.prompted_task for name, each in results.items()}
    return {
        "name": result.settings.name,
        "task": result.settings.task,
        "prompted_task": prompted if len(prompted) > 1 else result.prompted_task,
        "images": result.images,
        "masks": result.masks,
        "empty_masks": result.empty,
    }
