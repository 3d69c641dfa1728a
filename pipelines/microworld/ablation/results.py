"""Gather the scores of the runs that are done: rows of the CSV, and scores of masks that can be compared in pairs."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.pipelines.microworld.ablation.cells import Cell
from sum_factory.pipelines.microworld.ablation.settings import AnyPlan
from sum_factory.pipelines.microworld.ablation.work import is_done, read_scores
from sum_factory.trainer.evaluation.report import ALL, METRICS, by_protocol, summarise

COLUMNS = ("setting", "method", "variant", "seed", "task", "prompt", "round", "output", "metric", "value")


@dataclass(frozen=True)
class Measure:
    """What is looked at: a metric after ``round`` prompts of which the first was ``prompt``, of one kind of output."""

    metric: str = "mBIoU"
    prompt: str = "point"
    round: int = 3
    output: str = "oracle"


@dataclass(frozen=True)
class MaskScores:
    """A score of each of M masks, float64 (M,), in the order of set, image and mask; and the image and task of each."""

    values: npt.NDArray[np.float64]
    images: tuple[str, ...]
    tasks: tuple[str, ...]

    def mean(self, task: str) -> float:
        """Return the mean over the masks of a task; for "all", the mean of the means of the tasks."""
        names = sorted(set(self.tasks)) if task == ALL else [task]
        tasks = np.array(self.tasks)
        return float(np.mean([self.values[tasks == name].mean() for name in names]))


@dataclass(frozen=True)
class Results:
    """The tables of the runs that are done."""

    tables: Mapping[Cell, pa.Table]

    @classmethod
    def read(cls, plan: AnyPlan, cells: Sequence[Cell]) -> Results:
        """Read what is there of ``cells``. Raises ``SettingsDifferError`` if that is of other settings."""
        return cls({cell: read_scores(plan, cell) for cell in cells if is_done(plan, cell)})

    def runs(self, setting: str, method: str, variant: str) -> dict[int, Cell]:
        """Return the runs of a method that are done, by seed."""
        key = (setting, method, variant)
        return {cell.seed: cell for cell in self.tables if (cell.setting, cell.method, cell.variant) == key}

    def without(self, settings: Collection[str]) -> Results:
        """Return the runs of other settings."""
        return Results({cell: table for cell, table in self.tables.items() if cell.setting not in settings})

    def scores(self, cell: Cell, measure: Measure) -> MaskScores:
        """Return the scores of the masks of a run."""
        table = self.rows_of_masks(cell, measure)
        values = table[METRICS[measure.metric]].to_numpy()
        images = tuple(f"{image}" for image in table["image"].to_pylist())
        return MaskScores(np.asarray(values, np.float64), images, tuple(table["task"].to_pylist()))

    def rows_of_masks(self, cell: Cell, measure: Measure, task: str = ALL) -> pa.Table:
        """Return a row of ``trainer.evaluation.run.SCORES`` for each mask of a task, or of all, by set, image, mask."""
        wanted = {"first": measure.prompt, "round": measure.round, "output": measure.output}
        table = self.tables[cell]
        for name, value in (wanted | ({} if task == ALL else {"task": task})).items():
            table = table.filter(pc.equal(table[name], value))
        return table.sort_by([(name, "ascending") for name in ("set", "image", "mask")])

    def rows(self) -> Iterator[dict[str, object]]:
        """Yield the means over the masks as rows of ``COLUMNS``: by run, task, prompt, round, output and metric.

        The frozen model is in every setting of which something has been run: that of another setting may be one that
        was trained elsewhere.
        """
        for setting in dict.fromkeys(cell.setting for cell in self.tables if not cell.is_frozen):
            for cell, table in self.tables.items():
                if cell.is_frozen or cell.setting == setting:
                    yield from _rows_of(replace(cell, setting=setting), table)


def _rows_of(cell: Cell, table: pa.Table) -> Iterator[dict[str, object]]:
    run = {"setting": cell.setting, "method": cell.method, "variant": cell.variant, "seed": cell.seed}
    for prompt, output, rows in by_protocol(table):
        for task, means in summarise(rows).items():
            for name, value in means.items():
                metric, _, number = name.partition("@")
                yield {
                    **run,
                    "task": task,
                    "prompt": prompt,
                    "round": int(number),
                    "output": output,
                    "metric": metric,
                    "value": f"{value:.6f}",
                }


def to_csv(rows: Iterable[dict[str, object]]) -> str:
    """Return rows of ``COLUMNS`` as CSV with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
