"""Do the runs: each trains, is evaluated and leaves its scores in one file, which says that it is done."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.multiprocessing.spawn import spawn

from sum_factory.pipelines.microworld.ablation.cells import (
    Cell,
    identity_of,
    protocols_of,
    recipe_of,
    sets_of,
)
from sum_factory.pipelines.microworld.ablation.settings import AnyPlan
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.cores import divide_cores, usable_cores
from sum_factory.shared.precision import resolve
from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.sam.runtime import Runtime, pick_device
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.store.locks import try_lock
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.evaluation.run import evaluate_sets, load_weights
from sum_factory.trainer.training import fit

SCORES_FILE = "scores.parquet"
IDENTITY = b"ablation"
REMEDY = "Give the settings of the runs that are there, or another --out folder; or delete the folder of this run."


def run_cells(plan: AnyPlan, cells: Sequence[Cell], processes: int, say: Callable[[str], None] = click.echo) -> None:
    """Do the runs that are not done, in so many processes, each on its share of the cores.

    Any number of these commands may work on one folder: a run is locked by the process that does it, and whoever
    finds it locked takes another. Locks are the kernel's and go with the process; a run that was killed goes on
    from its last checkpoint. Raises ``SettingsDifferError`` if one was done with other settings.
    """
    pending = [cell for cell in cells if not is_done(plan, cell)]
    say(f"{len(cells) - len(pending)} of {len(cells)} runs present, {len(pending)} to do")
    if not pending:
        return
    if processes == 1:
        torch.set_num_threads(usable_cores())  # scores made again have the same bits, whatever was run here before
        _work(plan, pending)
    else:
        spawn(_work_in_process, (plan, pending, processes), processes)  # type: ignore[no-untyped-call]
    left = [cell.name for cell in pending if not is_done(plan, cell)]
    if left:
        say(f"{len(left)} runs are another process's: {', '.join(left)}; give the command again when it is through")


def is_done(plan: AnyPlan, cell: Cell) -> bool:
    """Say whether the scores of a cell are there. Raises ``SettingsDifferError`` if they are of another run."""
    path = cell.folder(plan) / SCORES_FILE
    if not path.exists():
        return False
    stored = json.loads(pq.read_schema(path).metadata[IDENTITY])
    wanted = json.loads(json.dumps(identity_of(plan, cell)))
    if not cell.is_frozen:
        recipe = recipe_of(plan, cell)
        resolve(recipe.precision, pick_device(recipe.device)).require_recorded(str(path), stored.get("precision"))
    require_same("settings", str(path), stored, wanted, REMEDY)
    return True


def read_scores(plan: AnyPlan, cell: Cell) -> pa.Table:
    """Return the rows of ``trainer.evaluation.run.SCORES`` of a cell that is done."""
    return pq.read_table(cell.folder(plan) / SCORES_FILE)


def run_cell(plan: AnyPlan, cell: Cell, say: Callable[[str], None] = click.echo) -> None:
    """Train and evaluate one cell, from its last checkpoint on if there is one."""
    out = cell.folder(plan)
    weights = plan.sam
    if not cell.is_frozen:
        weights = str(out)
        say(f"{cell.name}: {fit(recipe_of(plan, cell), out, lambda text: None).lines()}")
    model = load_weights(weights, Runtime())
    scores = evaluate_sets(model, sets_of(plan, cell), protocols_of(plan, cell), plan.most_masks)
    rows = pa.concat_tables([each.rows for each in scores])
    _write(out, rows, identity_of(plan, cell))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    say(f"{cell.name}: {len(rows)} scores")


def _write(out: Path, rows: pa.Table, identity: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    pq.write_table(rows.replace_schema_metadata({IDENTITY: json.dumps(identity)}), buffer, compression="zstd")
    Storage(str(out)).write(SCORES_FILE, buffer.getvalue())


def _work_in_process(number: int, plan: AnyPlan, cells: Sequence[Cell], processes: int) -> None:
    torch.set_num_threads(divide_cores(usable_cores(), processes))
    SPEAKER.plain = True  # bars of several processes would overwrite each other
    parent = os.getppid()
    _work(plan, cells, lambda: os.getppid() == parent)


def _work(plan: AnyPlan, cells: Sequence[Cell], wanted: Callable[[], bool] = lambda: True) -> None:
    """Do one run after the other that no other process is at, while it is ``wanted``: not after the command died."""
    tune_malloc()
    say = partial(SPEAKER.say, file=sys.stdout)
    for number, cell in enumerate(cells, 1):
        if not wanted():
            return
        with _claim(plan.out / "locks" / cell.name) as claimed:
            if claimed and not is_done(plan, cell):
                with Stage(f"run {number} of {len(cells)}, {cell.name}"):
                    run_cell(plan, cell, say)


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Hold a lock meanwhile; False if another process holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        yield try_lock(file)
