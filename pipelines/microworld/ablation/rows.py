"""The rows of tables: methods and their variants, and which of them are held beside each other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sum_factory.pipelines.microworld.ablation.cells import FULL, SAM


@dataclass(frozen=True)
class Row:
    """A row of the tables: a method, or a variant of it by its name."""

    title: str
    method: str
    variant: str = FULL


FROZEN_ROW = Row("SAM, frozen", SAM, "frozen")
OURS = Row("sum", "sum")


def row_of(method: str) -> Row:
    """Return the row of a method; the frozen model is one."""
    return FROZEN_ROW if method == SAM else Row(method, method)


def pairs_of(rows: Iterable[Row]) -> Iterator[tuple[Row, Row]]:
    """Yield which rows are compared: each with the frozen model, and SUM with each."""
    rows = list(rows)
    yield from ((row, FROZEN_ROW) for row in rows if row != FROZEN_ROW)
    if OURS in rows:
        yield from ((OURS, other) for other in rows if other not in (OURS, FROZEN_ROW))
