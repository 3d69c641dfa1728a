"""What the page reports of runs that are not in this folder: they were done elsewhere, and stay as they are."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.microworld.ablation.cells import FROZEN, Cell
from pipelines.microworld.ablation.results import Results
from shared.errors import SourceError

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

    def merged(self, results: Results, settings: Sequence[str]) -> list[Row]:
        """Return these rows and those of ``results``: the frozen model, ``settings`` in their order, then others."""
        order = [FROZEN.setting, *settings, *sorted(self.settings - set(settings))]
        return sorted([*results.rows(), *self.rows], key=lambda row: order.index(str(row["setting"])))


def reported_elsewhere(path: Path, results: Results) -> Reported:
    """Return what the CSV at ``path`` has of settings some of whose runs are not in ``results``; a setting is never put
    together of two, since differences are between runs whose every score is here.

    Raises ``SourceError`` if there is any and its frozen model did not score what that of ``results`` does: then its
    runs are those of another world.
    """
    if not path.exists():
        return Reported()
    with path.open(newline="") as file:
        rows: list[Row] = [dict(row) for row in csv.DictReader(file)]
    here = {run_of_cell(cell) for cell in results.tables}
    lacking = {str(row["setting"]) for row in rows if run_of(row) not in here} - {FROZEN.setting}
    if not lacking:
        return Reported()
    if of_frozen(rows) != of_frozen(results.rows()):
        raise SourceError(
            f"{path}: expected runs of the world of this folder, found others, whose SAM scores otherwise, of the "
            f"settings {', '.join(sorted(lacking))}; give the folder of another page, or delete {path} to begin anew"
        )
    return Reported(tuple(row for row in rows if row["setting"] in lacking))


def run_of(row: Row) -> Run:
    """Return which run a row is of."""
    return str(row["setting"]), str(row["method"]), str(row["variant"]), str(row["seed"])


def run_of_cell(cell: Cell) -> Run:
    """Return what the rows of a run say of it."""
    return cell.setting, cell.method, cell.variant, str(cell.seed)


def of_frozen(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of the frozen model as the CSV has them."""
    return [{key: str(value) for key, value in row.items()} for row in rows if run_of(row) == run_of_cell(FROZEN)]
