"""The commands that show masks to others, programs or people: ``labelgen export`` and ``view``."""

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
@click.option("--serve", is_flag=True, help="Serve a page on this machine, over a set of any size, until Ctrl-C.")
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Port of --serve; 0 takes one that is free.")
@click.option(
    "--beside", default=None, metavar="SHARDS", help="With --serve: another set of the same photos, to compare with."
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), default=None, help="The HTML page to write, in one file."
)
@click.option("--limit", default=48, help="With --out: photos on the page, spread evenly over the shard set.")
@click.option("--layer-name", default=None, help="Uncertainty layer to show  [default: the first, if there is any]")
def view_command(
    shards: str,
    photos_from: Relocation,
    serve: bool,
    port: int,
    beside: str | None,
    out: Path | None,
    limit: int,
    layer_name: str | None,
) -> None:
    """Look at masks, filter and choose them: on a page that is served, or in one file.

    With --serve the page shows all photos of the set, reads what is on the screen, and saves what is chosen as a
    selection. With --out it is a file that can be sent to anybody, of a few photos. Both show photos, masks, and, if
    there is an uncertainty layer, refined masks and doubt.
    """
    from functools import partial

    from sum_factory.shared.shards.selection.opened import open_shards

    if serve == (out is not None):
        raise click.UsageError("give --serve, or --out FILE")
    if serve:
        from sum_factory.labelgen.viewer.serve import serve as serve_page

        places = [shards] if beside is None else [shards, beside]
        serve_page([partial(open_shards, place, photos_from=photos_from) for place in places], port, layer_name)
        return
    if beside is not None or port:
        raise click.UsageError("--beside and --port are for --serve")
    from sum_factory.labelgen.page.write import write_page

    assert out is not None
    shown = write_page(open_shards(shards, photos_from=photos_from), out, limit, layer_name)
    click.echo(f"wrote {out}: {shown} images", err=is_stream(out))
