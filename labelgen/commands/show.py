"""The commands that write masks for others to read or to look at: ``labelgen export`` and ``view``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from sum_factory.labelgen.options import shards_option
from sum_factory.labelgen.sets.export_settings import TOLERANCE, ExportFormat, ExportSettings, Photos, Shapes
from sum_factory.shared.commands import photos_from_option
from sum_factory.shared.store.local_files import is_stream

if TYPE_CHECKING:
    from sum_factory.shared.relocation import Relocation


@click.command("export")
@shards_option
@photos_from_option
@click.option(
    "--format",
    type=click.Choice(get_args(ExportFormat)),
    default="coco",
    show_default=True,
    help="What is to read it: COCO's tools, ultralytics (yolo), Pascal VOC's, labelme, Label Studio, CVAT, what reads "
    "a PNG per mask (png), or `datasets` (hf).",
)
@click.option(
    "--shapes",
    type=click.Choice(get_args(Shapes)),
    default=None,
    help="Of coco, labelme, label-studio and cvat: outlines, which people can edit, or every pixel  "
    "[default: bitmaps with coco, else polygons]",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=TOLERANCE,
    show_default=True,
    help="Pixels that an outline may run beside that of its mask.",
)
@click.option(
    "--photos",
    type=click.Choice(get_args(Photos)),
    default=None,
    help="Whether a folder gets the photos, too  [default: copy, but none with png]",
)
@click.option(
    "--max-images-per-file",
    type=click.IntRange(min=1),
    default=None,
    help="Begin another file after so many photos; --out is a folder then  [default: one file; 500 with hf]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="What to write: a file with coco, label-studio and cvat, else a folder. Nothing may be there.",
)
def export_command(shards: str, photos_from: Relocation, out: Path, **options: Any) -> None:
    """Write all masks at the photos' own size for other software, and say what its format cannot hold."""
    from sum_factory.labelgen.sets.export import export
    from sum_factory.shared.shards.selection.opened import open_shards

    summary = export(open_shards(shards, photos_from=photos_from), out, ExportSettings(**options))
    err = is_stream(out)
    click.echo(f"wrote {out}: {summary.images:,} images, {summary.masks:,} masks", err=err)
    for line in summary.lost:
        click.echo(line, err=err)


@click.command("view")
@shards_option
@photos_from_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The HTML page to write.")
@click.option("--limit", default=48, help="Images on the page, spread evenly over the shard set.")
@click.option("--layer-name", default=None, help="Uncertainty layer to show  [default: the first, if there is any]")
def view_command(shards: str, photos_from: Relocation, out: Path, limit: int, layer_name: str | None) -> None:
    """Write a self-contained HTML page of overlays; with an uncertainty layer, of refined masks and doubt too."""
    from sum_factory.labelgen.page.write import write_page
    from sum_factory.shared.shards.selection.opened import open_shards

    shown = write_page(open_shards(shards, photos_from=photos_from), out, limit, layer_name)
    click.echo(f"wrote {out}: {shown} images", err=is_stream(out))
