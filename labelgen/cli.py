"""The ``labelgen`` command."""

from __future__ import annotations

import sys
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from labelgen.automask import AutomaskSettings, settings_for
from labelgen.engine.stop import stop_on_signals
from labelgen.export import export_coco
from labelgen.merge import Keep, merge
from labelgen.migrate import migrate
from labelgen.options import (
    automask_options,
    encoding_option,
    out_option,
    refiner_options,
    shards_option,
    work_options,
)
from labelgen.progress import RunSummary
from labelgen.repair import diagnose, take_back
from labelgen.run import RunSettings, UncertaintyRunSettings, add_uncertainty, run
from labelgen.select import Filter, select
from labelgen.status import frames_of, status_of
from labelgen.uncertainty import SOURCES, UncertaintySettings
from labelgen.view.page import write_page
from shared.commands import FAILED, Commands
from shared.sam.checkpoint import identify_weights
from shared.sam.runtime import Runtime
from shared.shards.collect import LEAST_AGE, left_overs, remove
from shared.shards.dataset import OUTPUTS
from shared.shards.encodings import ENCODINGS
from shared.shards.shard_set import REFINEMENT, ShardSet
from shared.shards.verify import verify
from shared.shards.view import open_shards

FINISHED_WITH_IMAGE_ERRORS = 3
TAKEN_BACK = 3


@click.group(cls=Commands, context_settings={"show_default": True})
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Label photos with a frozen SAM, once; train from the labels as often as you like."""


@main.command("run")
@click.option("--images", required=True, multiple=True, help="Folder, tar, list file, image, or pattern; repeatable.")
@shards_option
@refiner_options
@click.option("--layer-name", default=REFINEMENT, help="Name of the uncertainty layer that --refiner makes.")
@click.option("--keep-images", is_flag=True, help="Keep the photos too, at SAM's input side, for training to read.")
@click.option("--keep-logits", is_flag=True, help="Keep the masks' full logits, for maps to be made of them later.")
@click.option("--keep-embeddings", is_flag=True, help="Keep what the image encoder makes, for refiners to come.")
@click.option("--unit-size", type=click.IntRange(min=1), default=RunSettings.unit_size, help="Images a unit.")
@click.option("--bf16", is_flag=True, help="Run the image encoder in bfloat16: faster, masks differ slightly.")
@encoding_option
@work_options
@automask_options
def run_command(
    device: str, bf16: bool, compile_: bool, sam: str, model_type: str | None, grace: float, **options: Any
) -> None:
    """Label images into a shard set. Run it again after any interruption: what is done stays done."""
    thresholds = {setting.name: options.pop(setting.name) for setting in fields(AutomaskSettings)}
    settings = RunSettings(
        sam=sam,
        model_type=model_type,
        automask=settings_for(str(identify_weights(sam, model_type)["model_type"]), **thresholds),
        runtime=Runtime(device, bf16, compile_),
        **options,
    )
    with stop_on_signals(grace, _tell) as stop:
        _finish(run(settings, stop=stop))


@main.command("uncertainty")
@shards_option
@refiner_options
@click.option("--source", type=click.Choice(SOURCES), default=REFINEMENT, help="Where the uncertainty comes from.")
@click.option("--layer-name", default=None, help="Name of the layer  [default: that of the source]")
@click.option(
    "--use-kept",
    type=click.Choice(OUTPUTS),
    multiple=True,
    help="Make the maps from a layer that `labelgen run --keep-...` made, as far as it goes; may be repeated.",
)
@encoding_option
@work_options
def uncertainty_command(
    source: str, min_refine_area: int, device: str, compile_: bool, grace: float, **options: Any
) -> None:
    """Add a layer of uncertainty maps to masks that are there: another refiner's, or another source's."""
    settings = UncertaintyRunSettings(
        uncertainty=UncertaintySettings(source, min_refine_area),
        runtime=Runtime(device, compile=compile_),
        **options,
    )
    with stop_on_signals(grace, _tell) as stop:
        _finish(add_uncertainty(settings, stop=stop))


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _finish(summary: RunSummary) -> None:
    """Print what a run did; exit with status 1 if units are left, else with 3 if images were skipped."""
    click.echo(summary.lines())
    if not summary.is_whole:
        left = summary.units - summary.units_before - summary.units_done
        why = "" if summary.stopped is None else f"stopped {summary.stopped}: "
        _tell(f"{why}{left} of {summary.units} units are left; the same command goes on with them")
        click.get_current_context().exit(FAILED)
    if summary.errors:
        click.echo(f"{len(summary.errors)} images were skipped; the manifest says why (`labelgen status`)")
        click.get_current_context().exit(FINISHED_WITH_IMAGE_ERRORS)


@main.command()
@shards_option
def status(shards: str) -> None:
    """Say how much of a shard set is done, layer by layer, and which images were skipped."""
    for line in status_of(open_shards(shards), shards):
        click.echo(line)


@main.command("select")
@shards_option
@out_option
@click.option("--min-stability", type=click.FLOAT, default=None)
@click.option("--min-predicted-iou", type=click.FLOAT, default=None)
@click.option("--min-area", type=click.IntRange(min=0), default=None, help="Pixels of the photo.")
@click.option("--max-area", type=click.IntRange(min=0), default=None)
@click.option("--max-mean-u", type=click.FLOAT, default=None, help="Leaves masks without a map out too.")
@click.option("--layer", default=None, help=f"Uncertainty layer that --max-mean-u asks  [default: {REFINEMENT}]")
@click.option("--images", multiple=True, help="Pattern for image keys, such as 'sa_0001/*'; repeatable.")
@click.option("--image-list", type=click.Path(dir_okay=False, path_type=Path), default=None, help="Keys, one a line.")
def select_command(shards: str, out: str, **conditions: Any) -> None:
    """Choose masks, once, as a view: a small folder to be read like a shard set. No data are copied."""
    click.echo(select(shards, out, Filter(**conditions)).lines())


@main.command("merge")
@click.argument("sources", nargs=-1, metavar="SHARDS SHARDS...")
@out_option
@click.option("--keep", type=click.Choice(["first"]), default=None, help="Of a photo in several, take the first alone.")
@click.option(
    "--layer",
    "layers",
    multiple=True,
    help="Layer to offer, as `status` names it; repeatable  [default: those that all have]",
)
def merge_command(sources: tuple[str, ...], out: str, keep: Keep | None, layers: tuple[str, ...]) -> None:
    """Join shard sets that were made apart, with the same settings, as a view of all. No data are copied."""
    click.echo(merge(sources, out, keep, layers).lines())


@main.command("migrate")
@click.option("--shards", required=True, help="Folder of the shard set to bring over; it is not touched.")
@click.option("--out", required=True, help="Folder of the new shard set: a path or an fsspec URL.")
@click.option("--encoding", type=click.Choice(ENCODINGS), default=None, help="[default: that of the shard set]")
@click.pass_context
def migrate_command(ctx: click.Context, shards: str, out: str, encoding: str | None) -> None:
    """Bring a shard set of format version 1, or in another encoding, into a new folder.

    Run it again after any interruption: what is there stays.

    A unit that is damaged is left out and named; exit status 1 then.
    """
    summary = migrate(shards, out, encoding)
    for problem in summary.problems:
        click.echo(f"problem: {problem}")
    click.echo(summary.lines())
    if summary.problems:
        ctx.exit(FAILED)


@main.command("verify")
@shards_option
@click.pass_context
def verify_command(ctx: click.Context, shards: str) -> None:
    """Check counts and checksums, and that every frame decodes. Exit status 1 if anything is wrong."""
    shard_set = open_shards(shards)
    checks = list(verify(shard_set))
    problems = [problem for check in checks for problem in check.problems]
    for problem in problems:
        click.echo(f"problem: {problem}")
    for layer in shard_set.dataset.layers:
        sound = [check.record for check in checks if check.record is not None and check.layer == layer]
        missing = len(shard_set.dataset.unit_ids) - len(shard_set.committed(layer))
        click.echo(
            f"layer {layer}: {len(sound)} units sound with {sum(r.masks for r in sound)} {frames_of(layer)}, "
            f"{missing} units not made yet"
        )
    click.echo(f"{len(problems)} problems")
    if problems:
        ctx.exit(FAILED)


@main.command()
@shards_option
@click.option("--dry-run", is_flag=True, help="Only say what would be taken back.")
@click.pass_context
def repair(ctx: click.Context, shards: str, dry_run: bool) -> None:
    """Take back the units that `verify` finds broken, so that the same command makes them again.

    Their files are moved to the folder `quarantine` of the shard set. Exit status 0 if the shard set is sound, 3 if all
    that was wrong is taken back, 1 if something is left.
    """
    shard_set = ShardSet.open(shards)
    diagnosis = diagnose(shard_set)
    for broken in diagnosis.broken:
        for problem in broken.problems:
            click.echo(f"{'would take' if dry_run else 'taking'} back {broken.name}: {problem}")
    for problem in diagnosis.left:
        click.echo(f"left: {problem}")
    if diagnosis.broken:
        place = "nothing was changed" if dry_run else f"moved to {take_back(shard_set.storage, diagnosis.broken)}"
        click.echo(f"{len(diagnosis.broken)} broken, {place}; to make them again: the same {diagnosis.commands()}")
    elif not diagnosis.left:
        click.echo("sound, nothing to take back")
    if diagnosis.left:
        ctx.exit(FAILED)
    if diagnosis.broken:
        ctx.exit(TAKEN_BACK)


@main.command()
@shards_option
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=LEAST_AGE / timedelta(hours=1),
    help="Hours since a file was written; what is younger may belong to a run that is still at work.",
)
@click.option("--dry-run", is_flag=True, help="Only name what would be removed.")
def gc(shards: str, older_than: float, dry_run: bool) -> None:
    """Remove what runs that died have left: temporary files, and data without a manifest. Nothing else is touched."""
    shard_set = open_shards(shards)
    limit = datetime.now(UTC) - timedelta(hours=older_than)
    removed = size = younger = 0
    for left in left_overs(shard_set):
        if left.modified > limit:
            younger += 1
        elif dry_run or remove(shard_set.storage, left):
            click.echo(f"{'would remove' if dry_run else 'removed'} {left.name}: {left.kind}, {left.size} bytes")
            removed, size = removed + 1, size + left.size
    click.echo(f"{removed} files, {size} bytes {'would be removed' if dry_run else 'removed'}")
    if younger:
        click.echo(f"{younger} files younger than {older_than:g} h were left: a run may be at work on them")


@main.command("export")
@shards_option
@click.option("--format", "format_", type=click.Choice(["coco"]), default="coco")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
def export_command(shards: str, format_: str, out: Path) -> None:
    """Write all masks at the photos' own size as a COCO instances file."""
    assert format_ == "coco", "click allows no other"
    images, masks = export_coco(open_shards(shards), out)
    click.echo(f"wrote {out}: {images} images, {masks} masks")


@main.command()
@shards_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True)
@click.option("--limit", default=48, help="Images on the page, spread evenly over the shard set.")
@click.option("--layer-name", default=None, help="Uncertainty layer to show  [default: the first, if there is any]")
def view(shards: str, out: Path, limit: int, layer_name: str | None) -> None:
    """Write a self-contained HTML page of overlays; with an uncertainty layer, of refined masks and doubt too."""
    shown = write_page(open_shards(shards), out, limit, layer_name)
    click.echo(f"wrote {out}: {shown} images")


if __name__ == "__main__":
    sys.exit(main())
