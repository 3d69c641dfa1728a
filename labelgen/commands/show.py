"""The commands that write masks for others to read or to look at: ``labelgen export`` and ``view``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sum_factory.labelgen.options import shards_option
from sum_factory.shared.commands import photos_from_option
from sum_factory.shared.store.local_files import is_stream

if TYPE_CHECKING:
    from sum_factory.shared.relocation import Relocation


@click.command("export")
@shards_option
@photos_from_option
@click.option("--format", "format_", type=click.Choice(["coco"]), default="coco", help="What the file is written as.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file of annotations to write."
)
def export_command(shards: str, photos_from: Relocation, format_: str, out: Path) -> None:
    """Write all masks at the photos' own size as a COCO instances file, with where the photos lie."""
    from sum_factory.labelgen.sets.export import export_coco
    from sum_factory.shared.shards.selection.opened import open_shards

    assert format_ == "coco", "click allows no other"
    images, masks = export_coco(open_shards(shards, photos_from=photos_from), out)
    told = f"wrote {out}: {images} images, {masks} masks; file names are relative to the root that its info names"
    click.echo(told, err=is_stream(out))


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
