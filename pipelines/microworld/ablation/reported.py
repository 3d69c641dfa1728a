"""What the page reports of runs that are not in this folder: they were done elsewhere, and stay as they are."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sum_factory.pipelines.microworld.ablation.cells import SAM, Cell
from sum_factory.pipelines.microworld.ablation.results import Results
from sum_factory.pipelines.microworld.ablation.settings import SETTINGS
from sum_factory.shared.settings_differ import require_same

CSV, IDENTITY = "ablation.csv", "ablation_world.json"
"""Beside the page: every run's means, and which world they are of."""

Row = dict[str, object]
Run = tuple[str, str, str, str]
"""Setting, method, variant and seed."""


@dataclass(frozen=True)
class Reported:
    """The rows of ``COLUMNS`` of the settings that the page keeps as it has them."""

    rows: tuple[Row, ...] = ()

    @property
    def settings(self) -> frozenset[str]:
        """The settings that are kept."""
        return frozenset(str(row["setting"]) for row in self.rows)

    def has(self, cell: Cell) -> bool:
        """Say whether a run is among those that are kept."""
        return run_of_cell(cell) in {run_of(row) for row in self.rows}

    def merged(self, results: Results) -> list[Row]:
        """Return these rows and those of ``results``, settings in the order of ``SETTINGS``."""
        order = list(SETTINGS)
        return sorted([*results.rows(), *self.rows], key=lambda row: order.index(str(row["setting"])))


def reported_elsewhere(docs: Path, results: Results, identity: Mapping[str, Any]) -> Reported:
    """Return what the CSV in ``docs`` has of settings some of whose runs are not in ``results``; a setting is never put
    together of two folders, since differences are between runs all of whose scores are here, and from one frozen model.

    ``identity`` says which world ``results`` are of. Raises ``SettingsDifferError`` if there are any such settings and
    the page does not report that world.
    """
    path = docs / CSV
    if not path.exists():
        return Reported()
    with path.open(newline="") as file:
        rows: list[Row] = [dict(row) for row in csv.DictReader(file)]
    here = {run_of_cell(cell) for cell in results.tables}
    lacking = {str(row["setting"]) for row in rows if row["method"] != SAM and run_of(row) not in here}
    if lacking:
        stored = json.loads((docs / IDENTITY).read_text()) if (docs / IDENTITY).exists() else {}
        remedy = (
            f"It reports runs of {', '.join(sorted(lacking))} that are not in this folder. Name the folder of another "
            f"page, or delete {path} to begin anew."
        )
        require_same("settings", str(path), stored, json.loads(json.dumps(identity)), remedy)
    return Reported(tuple(row for row in rows if row["setting"] in lacking))


def run_of(row: Row) -> Run:
    """Return which run a row is of."""
    return str(row["setting"]), str(row["method"]), str(row["variant"]), str(row["seed"])


def run_of_cell(cell: Cell) -> Run:
    """Return what the rows of a run say of it."""
    return cell.setting, cell.method, cell.variant, str(cell.seed)
