"""What the page has of runs that were done elsewhere stays, and is never mixed with what is not of its world."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.microworld.ablation.cells import FROZEN, Cell
from pipelines.microworld.ablation.reported import reported_elsewhere
from pipelines.microworld.ablation.results import Results, to_csv
from shared.errors import SourceError

Make = Callable[..., Results]


@pytest.fixture
def page_csv(tmp_path: Path, results_of: Make) -> Path:
    """The CSV of a page that reports the frozen model and two seeds of two methods in "small"."""
    path = tmp_path / "ablation.csv"
    path.write_text(to_csv(results_of({"sam": 0.5, "vanilla": 0.55, "sum": 0.6}, seeds=2).rows()))
    return path


def rows_of(path: Path, setting: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader(path.read_text().splitlines()) if row["setting"] == setting]


def test_settings_of_other_folders_stand_beside_those_of_this_one(page_csv: Path, results_of: Make) -> None:
    results = Results(
        {**results_of({"sum": 0.7}, setting="medium").tables, **results_of({"sum": 0.4}, setting="large").tables}
        | results_of({"sam": 0.5}).tables
    )
    kept = reported_elsewhere(page_csv, results)
    assert kept.settings == {"small"}
    assert kept.has(Cell("small", "vanilla", seed=1))
    assert not kept.has(Cell("small", "vanilla", seed=2))
    merged = list(csv.DictReader(to_csv(kept.merged(results, ("small", "medium", "large"))).splitlines()))
    assert [*dict.fromkeys(row["setting"] for row in merged)] == ["none", "small", "medium", "large"]
    assert [row for row in merged if row["setting"] in ("none", "small")] == [
        *rows_of(page_csv, "none"),
        *rows_of(page_csv, "small"),
    ]
    assert [row for row in merged if row["setting"] == "medium"] == [
        row for row in csv.DictReader(to_csv(results.rows()).splitlines()) if row["setting"] == "medium"
    ]


def test_setting_is_never_put_together_of_two_folders(page_csv: Path, results_of: Make) -> None:
    whole = results_of({"sam": 0.5, "vanilla": 0.56, "sum": 0.61}, seeds=2)
    assert reported_elsewhere(page_csv, whole).settings == frozenset()
    part = Results({cell: table for cell, table in whole.tables.items() if cell != Cell("small", "sum", seed=1)})
    kept = reported_elsewhere(page_csv, part)
    assert kept.merged(part.without(kept.settings), ("small",)) == [
        *part.without({"small"}).rows(),
        *rows_of(page_csv, "small"),
    ]


def test_page_of_another_world_is_refused(page_csv: Path, results_of: Make) -> None:
    for levels in ({"sam": 0.5001}, {"sum": 0.7}):
        with pytest.raises(SourceError, match=r"ablation.csv: expected runs of the world of this folder.*small"):
            reported_elsewhere(page_csv, results_of(levels, setting="medium"))


def test_page_of_which_every_run_is_here_is_replaced_in_any_world(page_csv: Path, results_of: Make) -> None:
    again = results_of({"sam": 0.4, "vanilla": 0.5, "sum": 0.5}, seeds=2)
    assert FROZEN in again.tables
    assert reported_elsewhere(page_csv, again).rows == ()
    assert reported_elsewhere(page_csv.parent / "none.csv", again).rows == ()
