"""The ablation from top to bottom: prepare, do the runs that are not done, and write down what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click

from sum_factory.pipelines.microworld.ablation.cells import STUDY_SETTING, cells_of, identity_of_world
from sum_factory.pipelines.microworld.ablation.pictures import write_pictures
from sum_factory.pipelines.microworld.ablation.prepare import prepare
from sum_factory.pipelines.microworld.ablation.report import (
    IMAGES_FOLDER,
    PICTURES,
    blocks_of,
    fill,
    shows_pictures,
    write_charts,
)
from sum_factory.pipelines.microworld.ablation.reported import CSV, IDENTITY, reported_elsewhere
from sum_factory.pipelines.microworld.ablation.results import Results, to_csv
from sum_factory.pipelines.microworld.ablation.settings import Plan, SettingName
from sum_factory.pipelines.microworld.ablation.work import run_cells
from sum_factory.pipelines.microworld.ablation.world import describe_world, is_prepared
from sum_factory.shared.progress import Stage
from sum_factory.shared.store.storage import Storage

PAGE = "ablation_tables.md"


def run_ablation(plan: Plan, processes: int, docs: Path | None = None) -> Results:
    """Prepare, do all runs that are not done, and write what came out into ``plan.out``, and into ``docs``."""
    refiner = prepare(plan, processes, click.echo)
    run_cells(plan, cells_of(plan), processes)
    return write_results(plan, refiner, docs)


def write_results(plan: Plan, refiner: Path, docs: Path | None) -> Results:
    """Write the CSV of the runs that are done, and with ``docs`` the page there."""
    with Stage("reading scores"):
        results = Results.read(plan, cells_of(plan))
        Storage(str(plan.out)).write(CSV, to_csv(results.rows()).encode())
    if docs is not None:
        write_page(plan, refiner, docs, results)
    return results


def write_page(plan: Plan, refiner: Path, docs: Path, results: Results) -> None:
    """Write tables and charts of ``results`` into the page in ``docs``, and the CSV beside it.

    A setting that the page reports and whose runs are not all in this folder is left as it is: one may be run on one
    machine and the next on another. The world that is described is that of ``STUDY_SETTING``. Raises
    ``SettingsDifferError`` if what the page reports is of a world of other settings.
    """
    identity = identity_of_world(plan)
    kept = reported_elsewhere(docs, results, identity)
    for setting in sorted(kept.settings):
        click.echo(f"{setting}: the page keeps what it has, of runs that are not in {plan.out}")
    reported = replace(
        plan, settings=tuple(each for each in get_args(SettingName) if each in {*plan.settings, *kept.settings})
    )
    shown = results.without(kept.settings)
    described = STUDY_SETTING not in kept.settings and is_prepared(plan, refiner)
    world = describe_world(plan, refiner) if described else None
    with Stage("making tables and charts"):
        page = fill((docs / PAGE).read_text(), blocks_of(reported, shown, world, kept), str(docs / PAGE))
        write_charts(plan, shown, world, docs / IMAGES_FOLDER)
    if results.tables and shows_pictures(reported, kept):
        with Stage("drawing pictures"):
            write_pictures(reported, results, docs / IMAGES_FOLDER / PICTURES)
    storage = Storage(str(docs))
    storage.write(CSV, to_csv(kept.merged(shown)).encode())
    storage.write(PAGE, page.encode())
    storage.write(IDENTITY, (json.dumps(identity, indent=1) + "\n").encode())
