"""The ablation on photos from top to bottom: prepare, do the runs that are not done, and write down what came out."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.pipelines.microworld.ablation.reported import CSV
from sum_factory.pipelines.microworld.ablation.results import to_csv
from sum_factory.pipelines.microworld.ablation.work import run_cells
from sum_factory.pipelines.photos.ablation.compare import read_results
from sum_factory.pipelines.photos.ablation.plan import PhotosPlan, cells_of_photos
from sum_factory.pipelines.photos.ablation.prepare import prepare_photos
from sum_factory.pipelines.photos.ablation.report import blocks_of, write_photos_page
from sum_factory.shared.progress import Stage
from sum_factory.shared.store.storage import Storage


def run_photos(plan: PhotosPlan, processes: int, docs: Path | None = None, report_only: bool = False) -> str:
    """Do what is not done, write all means into ``plan.out`` and the page into ``docs``; return its tables."""
    cells = cells_of_photos(plan)
    if not report_only:
        prepare_photos(plan, processes, click.echo)
        run_cells(plan, cells, processes)
    with Stage("reading scores"):
        results = read_results(plan, cells)
        Storage(str(plan.out)).write(CSV, to_csv(results.rows()).encode())
    if docs is not None:
        write_photos_page(plan, results, docs)
    blocks = blocks_of(plan, results)
    return "\n\n".join(blocks[name] for name in ("means", "differences"))
