"""Averages against loops in plain Python, and the files of a report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.sets import FolderPairsSettings
from sum_factory.trainer.data.sets import Task as TaskName
from sum_factory.trainer.evaluation.report import (
    markdown_table,
    report_text,
    set_means,
    summarise,
    write_rows,
    write_summary,
)
from sum_factory.trainer.evaluation.run import SCORES, SetScores

TASKS: dict[str, TaskName] = {"a": "salient", "b": "part", "c": "part", "d|e": "entity", "f": "part"}


def rows_of(
    name: str, task: str, masks: int, rounds: int = 6, first: str = "point", output: str = "oracle"
) -> pa.Table:
    """Random scores of a set, each mask and round."""
    random = np.random.default_rng(len(name) + 7 * ord(name[0]) + 31 * len(first))
    rows = [
        {
            "set": name,
            "task": task,
            "image": f"image{k // 2}",
            "mask": k % 2,
            "first": first,
            "output": output,
            "round": number,
            "iou": random.random(),
            "boundary_iou": random.random(),
            "predicted_iou": random.random(),
            "area": 10,
            "height": 20,
            "width": 30,
        }
        for k in range(masks)
        for number in range(1, rounds + 1)
    ]
    return pa.Table.from_pylist(rows, SCORES)


@pytest.fixture
def rows() -> pa.Table:
    """Sets of different sizes, so that every wrong order of averaging shows."""
    return pa.concat_tables([rows_of(name, task, 2 + 3 * place) for place, (name, task) in enumerate(TASKS.items())])


def result(name: str, task: TaskName, prompted: str | None = None, empty: int = 0) -> SetScores:
    settings = FolderPairsSettings(kind="folder-pairs", images=Path("i"), masks=Path("m"), task=task, name=name)
    return SetScores(settings, prompted, 3, 4, empty, rows_of(name, task, 4))


def naive(rows: pa.Table, column: str, number: int, sets: list[str]) -> float:
    """Mean over the masks of each set, then over the sets."""
    means = []
    for name in sets:
        values = [row[column] for row in rows.to_pylist() if row["set"] == name and row["round"] == number]
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize(("metric", "column"), [("mIoU", "iou"), ("mBIoU", "boundary_iou")])
def test_means_go_over_masks_then_sets_and_all_is_over_sets(rows: pa.Table, metric: str, column: str) -> None:
    summary = summarise(rows)
    assert list(summary) == ["salient", "part", "entity", "all"]
    for number in range(1, 7):
        for task in ("salient", "part", "entity"):
            sets = [name for name, of in TASKS.items() if of == task]
            assert summary[task][f"{metric}@{number}"] == pytest.approx(naive(rows, column, number, sets))
        everything = summary["all"][f"{metric}@{number}"]
        assert everything == pytest.approx(naive(rows, column, number, list(TASKS)))
        of_tasks = np.mean([summary[task][f"{metric}@{number}"] for task in ("salient", "part", "entity")])
        assert everything != pytest.approx(of_tasks)
        for name in TASKS:
            assert set_means(rows)[name][f"{metric}@{number}"] == pytest.approx(naive(rows, column, number, [name]))


def test_published_means_of_sam_follow_from_its_published_sets() -> None:
    published = {
        "salient": [93.7, 51.0, 85.1, 79.4, 81.6, 81.1],
        "entity": [75.4, 77.2, 79.6],
        "part": [66.6, 40.6, 58.6, 44.7, 50.7],
    }
    tables = []
    for task, values in published.items():
        for place, value in enumerate(values):
            row = rows_of(f"{task}{place}", task, 1, rounds=1).to_pylist()[0]
            tables.append(pa.Table.from_pylist([{**row, "iou": value / 100}], SCORES))
    summary = summarise(pa.concat_tables(tables))
    found = {group: 100 * values["mIoU@1"] for group, values in summary.items()}
    # as published, from sets that were not rounded; the mean of the three tasks would be 69.4
    assert found == pytest.approx({"salient": 78.7, "entity": 77.4, "part": 52.2, "all": 69.0}, abs=0.06)


def test_several_protocols_are_not_averaged_together(rows: pa.Table) -> None:
    for other in (rows_of("a", "salient", 2, first="box"), rows_of("a", "salient", 2, output="single")):
        with pytest.raises(ValueError, match="one protocol"):
            summarise(pa.concat_tables([rows, other]))
    with pytest.raises(ValueError, match="one protocol"):
        summarise(rows.slice(0, 0))


def cells(line: str) -> list[str]:
    """The cells of a line of a table, without bold."""
    return [cell.strip().strip("*").replace("\0", "|") for cell in line.replace("\\|", "\0").strip("|").split("|")]


def test_table_groups_sets_by_task_and_ends_with_all(rows: pa.Table) -> None:
    header, rule, *lines = markdown_table(rows).splitlines()
    rounds = ["1", "3", "5", "6"]
    assert cells(header) == ["task", "set", *[f"mIoU@{k}" for k in rounds], *[f"mBIoU@{k}" for k in rounds]]
    assert cells(rule) == ["---", "---", *["---:"] * 8]
    assert [cells(line)[:2] for line in lines] == [
        ["salient", "a"],
        ["salient", "mean of 1 set"],
        ["part", "b"],
        ["part", "c"],
        ["part", "f"],
        ["part", "mean of 3 sets"],
        ["entity", "d|e"],
        ["entity", "mean of 1 set"],
        ["all", "mean of 5 sets"],
    ]
    numbers = {tuple(cells(line)[:2]): [float(cell) for cell in cells(line)[2:]] for line in lines}
    assert numbers["part", "c"][1] == pytest.approx(100 * naive(rows, "iou", 3, ["c"]), abs=0.006)
    assert numbers["part", "mean of 3 sets"][3] == pytest.approx(
        100 * naive(rows, "iou", 6, ["b", "c", "f"]), abs=0.006
    )
    assert numbers["all", "mean of 5 sets"][4] == pytest.approx(
        100 * naive(rows, "boundary_iou", 1, list(TASKS)), abs=0.006
    )


def test_table_shows_the_rounds_that_were_played_or_asked_for(rows: pa.Table) -> None:
    def columns(table: str) -> list[str]:
        return [cell for cell in cells(table.splitlines()[0]) if cell.startswith("mIoU")]

    assert columns(markdown_table(rows, [2, 4])) == ["mIoU@2", "mIoU@4"]
    assert columns(markdown_table(rows_of("a", "part", 2, rounds=4))) == ["mIoU@1", "mIoU@3", "mIoU@4"]
    assert columns(markdown_table(rows_of("a", "part", 2, rounds=1))) == ["mIoU@1"]
    assert columns(markdown_table(rows_of("a", "part", 2, rounds=9))) == ["mIoU@1", "mIoU@3", "mIoU@5", "mIoU@9"]


def test_text_has_a_table_a_protocol_and_says_what_was_left_out() -> None:
    one = result("a", "salient", "salient")
    both = pa.concat_tables([rows_of("b", "part", 4), rows_of("b", "part", 4, first="box")])
    other = SetScores(result("b", "part").settings, "unspecified", 3, 4, 2, both)
    text = report_text({"sum": [one, other]})
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "## First prompt: point, output: oracle",
        "## First prompt: box, output: oracle",
    ]
    notes = [line for line in text.splitlines() if line.startswith("- ")]
    assert notes == [
        "- b: these weights were never trained for the task 'part'; prompted as 'unspecified'",
        "- b: 2 empty masks were left out",
    ]
    assert "- " not in report_text({"sum": [one, result("c", "part", None)]}).replace("| ---", "")


def test_files_hold_every_row_the_means_and_where_they_come_from(tmp_path: Path) -> None:
    results = [result("a", "salient", "salient"), result("b", "part", "unspecified", empty=5)]
    provenance = {"weights": {"sha256": "abc"}, "seed": 3}
    write_rows(Storage(str(tmp_path)), {"sum": results}, provenance)
    text = write_summary(Storage(str(tmp_path)), {"sum": results}, provenance)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks.parquet", "summary.json", "table.md"]
    table = pq.read_table(io.BytesIO((tmp_path / "masks.parquet").read_bytes()))
    assert table.to_pylist() == [{"model": "sum", **row} for r in results for row in r.rows.to_pylist()]
    assert json.loads(table.schema.metadata[b"sum_factory"]) == provenance
    assert (tmp_path / "table.md").read_text() == text
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["weights"], summary["seed"]) == ({"sha256": "abc"}, 3)
    (played,) = summary["results"]
    rows = pa.concat_tables([r.rows for r in results])
    assert (played["first"], played["output"]) == ("point", "oracle")
    assert played["tasks"] == summarise(rows)
    assert played["sets"] == set_means(rows)
    assert summary["sets"][1] == {
        "name": "b",
        "task": "part",
        "prompted_task": "unspecified",
        "images": 3,
        "masks": 4,
        "empty_masks": 5,
    }
