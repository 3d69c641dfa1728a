"""What the page has of runs that were done elsewhere stays, and is never mixed with what is not of its world."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sum_factory.pipelines.microworld.ablation.cells import Cell
from sum_factory.pipelines.microworld.ablation.report import blocks_of
from sum_factory.pipelines.microworld.ablation.reported import CSV, IDENTITY, Row, reported_elsewhere
from sum_factory.pipelines.microworld.ablation.results import Results, to_csv
from sum_factory.pipelines.microworld.ablation.settings import Plan
from sum_factory.shared.errors import SettingsDifferError

Make = Callable[..., Results]
WORLD = {"human": 8, "thin_widths": (5, 6), "sam": "abc"}


@pytest.fixture
def docs(tmp_path: Path, results_of: Make) -> Path:
    """A folder whose page reports the frozen model and two seeds of two methods in "small"."""
    results = results_of({"sam": 0.5, "vanilla": 0.55, "sum": 0.6}, seeds=2)
    (tmp_path / CSV).write_text(to_csv(results.rows()))
    (tmp_path / IDENTITY).write_text(json.dumps(WORLD))
    return tmp_path


def reported(docs: Path, setting: str) -> list[dict[str, str]]:
    return [row for row in csv.DictReader((docs / CSV).read_text().splitlines()) if row["setting"] == setting]


def as_text(rows: list[Row]) -> list[dict[str, str]]:
    return list(csv.DictReader(to_csv(rows).splitlines()))


def test_settings_of_other_folders_stand_beside_those_of_this_one(docs: Path, results_of: Make) -> None:
    large, medium = (
        results_of({"sam": 0.5, "sum": level}, setting=each) for each, level in (("large", 0.4), ("medium", 0.7))
    )
    results = Results({**large.tables, **medium.tables})
    kept = reported_elsewhere(docs, results, WORLD)
    assert kept.settings == {"small"}
    assert kept.has(Cell("small", "vanilla", seed=1))
    assert not kept.has(Cell("small", "vanilla", seed=2))
    merged = as_text(kept.merged(results))
    assert [*dict.fromkeys(row["setting"] for row in merged)] == ["small", "medium", "large"]
    assert [row for row in merged if row["setting"] == "small"] == reported(docs, "small")
    assert [row for row in merged if row["setting"] != "small"] == as_text([*medium.rows(), *large.rows()])


def test_page_leaves_settings_that_are_kept_and_what_is_of_them(docs: Path, results_of: Make, tmp_path: Path) -> None:
    results = results_of({"sam": 0.5, "sum": 0.7}, setting="medium")
    kept = reported_elsewhere(docs, results, WORLD)
    plan = Plan(
        tmp_path, settings=("small", "medium"), methods=("vanilla", "sum"), variants=(), seeds=(0, 1), studies=False
    )
    blocks = blocks_of(plan, results, None, kept)
    assert set(blocks) == {"progress", "means medium", "differences medium", "claims medium"}
    assert "| small | 1 | 2 of 2 |" in blocks["progress"]
    assert "| medium | 0 | 1 of 2 |" in blocks["progress"]
    assert "| sum | 1 |" in blocks["means medium"]


def test_setting_is_never_put_together_of_two_folders(docs: Path, results_of: Make) -> None:
    whole = results_of({"sam": 0.5, "vanilla": 0.56, "sum": 0.61}, seeds=2)
    assert reported_elsewhere(docs, whole, WORLD).rows == ()
    part = Results({cell: table for cell, table in whole.tables.items() if cell != Cell("small", "sum", seed=1)})
    kept = reported_elsewhere(docs, part, WORLD)
    merged = as_text(kept.merged(part.without(kept.settings)))
    assert merged == reported(docs, "small")


def test_page_of_another_world_is_refused(docs: Path, results_of: Make) -> None:
    results = results_of({"sam": 0.5, "sum": 0.7}, setting="medium")
    with pytest.raises(
        SettingsDifferError, match=r"ablation.csv: was made with other settings:\n  human: there 8, asked for 9"
    ):
        reported_elsewhere(docs, results, {**WORLD, "human": 9})
    (docs / IDENTITY).unlink()
    with pytest.raises(SettingsDifferError, match=r"human: there \(not set\)"):
        reported_elsewhere(docs, results, WORLD)


def test_page_of_which_every_run_is_here_is_replaced_whatever_its_world(docs: Path, results_of: Make) -> None:
    again = results_of({"sam": 0.4, "vanilla": 0.5, "sum": 0.5}, seeds=2)
    assert reported_elsewhere(docs, again, {"human": 9}).rows == ()
    assert reported_elsewhere(docs / "none", again, {}).rows == ()
