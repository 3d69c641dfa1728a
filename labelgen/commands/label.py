"""The commands that make layers: ``labelgen run``, ``import`` and ``uncertainty``."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, get_args

import click

from sum_factory.labelgen.engine.stop import stop_on_signals
from sum_factory.labelgen.importing.settings import Format
from sum_factory.labelgen.options import (
    automask_options,
    encoding_option,
    extend_option,
    import_options,
    refiner_options,
    shards_option,
    work_options,
)
from sum_factory.labelgen.settings import REFINEMENT_SOURCE, SOURCES, UNIT_SIZE, UncertaintySettings
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.commands import FAILED, photos_from_option
from sum_factory.shared.exactness import Exactness, exactness_option
from sum_factory.shared.names import printable_lines
from sum_factory.shared.sam.settings import TASKS, WEIGHTS_HELP
from sum_factory.shared.shards.dataset import OUTPUTS, REFINEMENT

if TYPE_CHECKING:
    from sum_factory.labelgen.progress import RunSummary

FINISHED_WITH_IMAGE_ERRORS = 3
images_option = click.option(
    "--images",
    required=True,
    multiple=True,
    help="Folder, tar, zip, list file, pattern or image, at a path or URL; repeatable.",
)
unit_size_option = click.option(
    "--unit-size",
    type=click.IntRange(min=1),
    default=UNIT_SIZE,
    help="Photos per unit: they are committed, and lost, together.",
)


@click.command("run")
@images_option
@shards_option
@refiner_options
@click.option("--layer-name", default=REFINEMENT, help="Name of the uncertainty layer that --refiner makes.")
@click.option(
    "--keep-photos", is_flag=True, help="Keep the photos too, at SAM's input side: training then reads no originals."
)
@click.option("--keep-logits", is_flag=True, help="Keep SAM's logits of each mask, to make other maps from later.")
@click.option(
    "--keep-embeddings", is_flag=True, help="Keep what the image encoder makes of each photo, for later refiners."
)
@click.option(
    "--stretch",
    is_flag=True,
    help="Stretch photos of more than 8 bits a channel from their darkest to their brightest values: for 12-bit data.",
)
@extend_option
@unit_size_option
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    help="Of weights with a task prompt, such as SUM's own, the task that every point is prompted with.",
)
@exactness_option(
    "exact: segment_anything's masks, in fp32. encoder-bf16: the image encoder in bf16. fast: all in bf16, and TF32."
)
@encoding_option
@work_options
@automask_options
def run_command(
    device: str,
    exactness: Exactness,
    compile_: bool,
    sam: str,
    model_type: str | None,
    grace: float,
    **options: Any,
) -> None:
    """Label images into a shard set. Run it again after any interruption: what is done stays done."""
    from sum_factory.labelgen.run import run
    from sum_factory.labelgen.run_settings import RunSettings
    from sum_factory.shared.sam.runtime import Runtime

    thresholds = {setting.name: options.pop(setting.name) for setting in fields(AutomaskSettings)}
    settings = RunSettings(
        sam=sam,
        model_type=model_type,
        automask=thresholds,
        runtime=Runtime(device, exactness, compile_),
        **options,
    )
    with stop_on_signals(grace, _tell) as stop:
        _finish(run(settings, stop=stop))


@click.command("import")
@click.option(
    "--format",
    type=click.Choice(get_args(Format)),
    required=True,
    help="sa1b: a JSON file per photo, as in SA-1B. coco: files of COCO instances, with RLE or polygons. labelme: its "
    "JSON files, one per photo. label-studio: projects, exported as JSON.",
)
@click.option(
    "--annotations",
    required=True,
    multiple=True,
    type=click.Path(),
    help="Of sa1b and labelme a folder of JSON files, or a tar with them; of others the file; on a disk; repeatable.",
)
@images_option
@shards_option
@exactness_option("At which level SAM is to run when maps are made.")
@unit_size_option
@extend_option
@encoding_option
@import_options
def import_command(grace: float, **options: Any) -> None:
    """Make a shard set of masks that are there already, such as those of SA-1B. No model is run.

    Run it again after any interruption: what is done stays done. `labelgen uncertainty` adds maps of doubt. Exit status
    3 if photos were skipped, or if photos that have annotations are not there.
    """
    from sum_factory.labelgen.importing.run import import_masks
    from sum_factory.labelgen.importing.settings import ImportSettings

    with stop_on_signals(grace, _tell) as stop:
        summary = import_masks(ImportSettings(**options), stop=stop)
    _finish(summary.run)
    if summary.missing:
        click.get_current_context().exit(FINISHED_WITH_IMAGE_ERRORS)


@click.command("uncertainty")
@shards_option
@photos_from_option
@refiner_options
@click.option(
    "--source",
    type=click.Choice(SOURCES),
    default=REFINEMENT_SOURCE,
    help="What makes the maps: a refiner, two models that differ, SAM's own confidence or entropy, or the label's.",
)
@click.option(
    "--teacher", default=None, help=f"Another SAM, for --source discrepancy without --refiner: {WEIGHTS_HELP}."
)
@click.option("--layer-name", default=None, help="Name of the layer  [default: that of the source]")
@click.option(
    "--use-kept",
    type=click.Choice(OUTPUTS),
    multiple=True,
    help="Make the maps from a layer that `labelgen run --keep-...` made, as far as it goes; repeatable.",
)
@exactness_option("The level that SAM runs at; it must be that of the masks  [default: that of the masks]", None)
@encoding_option
@work_options
def uncertainty_command(
    source: str, min_refine_area: int, device: str, compile_: bool, grace: float, **options: Any
) -> None:
    """Add a layer of uncertainty maps to masks that are there: another refiner's, or another source's."""
    from sum_factory.labelgen.run import add_uncertainty
    from sum_factory.labelgen.run_settings import UncertaintyRunSettings
    from sum_factory.shared.sam.runtime import Runtime

    settings = UncertaintyRunSettings(
        uncertainty=UncertaintySettings(source, min_refine_area),
        runtime=Runtime(device, compile=compile_),
        **options,
    )
    with stop_on_signals(grace, _tell) as stop:
        _finish(add_uncertainty(settings, stop=stop))


def _tell(line: str) -> None:
    click.echo(printable_lines(line), err=True)


def _finish(summary: RunSummary) -> None:
    """Print what a run did; exit with status 1 if units are left, else with 3 if images were skipped."""
    click.echo(printable_lines(summary.lines()))
    if not summary.is_whole:
        left = summary.units - summary.units_before - summary.units_done
        why = "" if summary.stopped is None else f"stopped {summary.stopped}: "
        more = "" if summary.is_planned else ", and images that were not listed yet"
        _tell(f"{why}{left} of {summary.units} units are left{more}; the same command goes on with them")
        click.get_current_context().exit(FAILED)
    if summary.errors or summary.errors_before:
        before = f", {summary.errors_before} of them before" if summary.errors_before else ""
        click.echo(
            f"{len(summary.errors) + summary.errors_before} images were skipped{before}; the manifest says why "
            "(`labelgen status`), and the same command with --retry-errors all tries them again"
        )
        click.get_current_context().exit(FINISHED_WITH_IMAGE_ERRORS)
