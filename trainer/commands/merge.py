"""The command ``trainer merge``."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.shared.sam.settings import WEIGHTS_HELP
from sum_factory.shared.store.local_files import is_stream


@click.command("merge")
@click.option(
    "--weights", required=True, help=f"What was fine-tuned, on human masks alone for example: {WEIGHTS_HELP}."
)
@click.option("--sam", required=True, help=f"The SAM that it was fine-tuned from: {WEIGHTS_HELP}.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Where between both the merged weights lie: 0 is --sam, 1 is --weights.",
)
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .safetensors file to write."
)
def merge_command(weights: str, sam: str, alpha: float, out: Path) -> None:
    """Write weights between SAM and what was fine-tuned from it: (1 - alpha) SAM + alpha fine-tuned (WiSE-FT)."""
    from sum_factory.trainer.merge import merge_weights

    merge_weights(sam, weights, alpha, out)
    click.echo(f"wrote {out}", err=is_stream(out))
