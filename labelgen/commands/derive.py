"""The commands that make shard sets and selections of others: ``labelgen select``, ``merge`` and ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sum_factory.labelgen.options import out_option, shards_option
from sum_factory.shared.commands import FAILED
from sum_factory.shared.shards.dataset import ENCODINGS, REFINEMENT

if TYPE_CHECKING:
    from sum_factory.labelgen.sets.merge import Keep


@click.command("select")
@shards_option
@out_option
@click.option("--min-stability", type=click.FLOAT, default=None, help="Least stability score of a mask, from 0 to 1.")
@click.option(
    "--min-predicted-iou", type=click.FLOAT, default=None, help="Least IoU that SAM predicts for a mask, from 0 to 1."
)
@click.option("--min-area", type=click.IntRange(min=0), default=None, help="Least pixels of a mask, in the photo.")
@click.option("--max-area", type=click.IntRange(min=0), default=None, help="Most pixels of a mask, in the photo.")
@click.option(
    "--max-mean-u",
    type=click.FLOAT,
    default=None,
    help="Largest mean of a mask's map u, from 0 to 1; masks without a map are left out.",
)
@click.option("--layer", default=None, help=f"Uncertainty layer that --max-mean-u asks  [default: {REFINEMENT}]")
@click.option(
    "--images", multiple=True, help="Pattern that an image's key must match, such as 'sa_0001/*'; repeatable."
)
@click.option(
    "--image-list",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File of image keys, one per line: others are left out.",
)
def select_command(shards: str, out: str, **conditions: Any) -> None:
    """Choose masks, once, as a selection: a small folder to be read like a shard set. No data are copied."""
    from sum_factory.labelgen.sets.select import Filter, select

    click.echo(select(shards, out, Filter(**conditions)).lines())


@click.command("merge")
@click.argument("urls", nargs=-1, metavar="SHARDS SHARDS...")
@out_option
@click.option(
    "--keep",
    type=click.Choice(["first"]),
    default=None,
    help="Take a photo that several have from the first of them alone; without this it is refused.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    help="Layer to offer, as `labelgen status` names it; repeatable  [default: those that all have]",
)
def merge_command(urls: tuple[str, ...], out: str, keep: Keep | None, layers: tuple[str, ...]) -> None:
    """Join shard sets that were made apart, with the same settings, as a selection of all. No data are copied.

    SHARDS are the folders or URLs of two shard sets or selections, or more.
    """
    from sum_factory.labelgen.sets.merge import merge

    click.echo(merge(urls, out, keep, layers).lines())


@click.command("convert")
@click.option("--shards", required=True, help="Folder of the shard set to convert; it is not touched.")
@click.option("--out", required=True, help="Folder of the new shard set: a path or an fsspec URL.")
@click.option(
    "--encoding", type=click.Choice(ENCODINGS), required=True, help="How the layers of the new shard set lie on disk."
)
@click.pass_context
def convert_command(ctx: click.Context, shards: str, out: str, encoding: str) -> None:
    """Bring a shard set, in the other encoding, into a new folder.

    Run it again after any interruption: what is there stays.

    A unit that is damaged is left out and named; exit status 1 then.
    """
    from sum_factory.labelgen.sets.convert import convert

    summary = convert(shards, out, encoding)
    for problem in summary.problems:
        click.echo(f"problem: {problem}")
    click.echo(summary.lines())
    if summary.problems:
        ctx.exit(FAILED)
