"""Train the refiner that ships beside the packaged SAM, and write it as it ships.

    python -m pipelines.microworld.packaged_refiner --out runs/vit_micro_refiner --photos fine.yaml --var DATA=/data

It learns from exact masks of scenes that nothing else in this project draws, and from those of photos beside them, if a
suite of sets is given. Resumable; ten minutes on two cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click
from safetensors.torch import load_file

from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.errors import SumError
from sum_factory.shared.sam.checkpoint import read_header, to_safetensors
from sum_factory.shared.sam.refiner import PACKAGED_FILE
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.sets import SetSettings
from sum_factory.trainer.evaluation.suites import read_suite
from sum_factory.trainer.refiner import RefinerRecipe, train_refiner
from sum_factory.trainer.settings import parse_variables, read_settings

SEED = 6_000_023
"""The world of its scenes."""
SCENES, STEPS = 1_200, 450
KEPT_OF_PHOTOS = 2_000
"""Embeddings of photos that are kept, at most."""


def write_packaged_refiner(
    out: Path, scenes: int, changes: Sequence[str] = (), photo_sets: Sequence[SetSettings] = ()
) -> Path:
    """Train the refiner in ``out``; return the file to ship, whose weights are half-precision floats.

    Raises ``SumError`` for sets that cannot be used.
    """
    write_sets(out / "scenes", SEED, scenes)
    variables = {"SCENES": str(out / "scenes")}
    settings = (f"steps={STEPS}", f"kept_embeddings={3 * scenes + KEPT_OF_PHOTOS}", "checkpoint.every=25", *changes)
    recipe = read_settings("refiner_microworld", RefinerRecipe, variables, settings)
    trained = train_refiner(replace(recipe, human=(*recipe.human, *photo_sets)), out)
    halves = {name: weight.half() for name, weight in load_file(trained).items()}
    Storage(str(out)).write(PACKAGED_FILE, to_safetensors(halves, read_header(trained)))
    return out / PACKAGED_FILE


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--photos", "suite", help="A YAML file of sets of photos whose masks are learnt from, too.")
@click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Fills ${NAME} in --photos; repeatable.")
@click.option("--set", "changes", multiple=True, help="key=value for the recipe refiner_microworld; repeatable.")
def main(out: Path, suite: str | None, variables: tuple[str, ...], changes: tuple[str, ...]) -> None:
    """Train the packaged refiner."""
    try:
        sets = () if suite is None else read_suite(suite, parse_variables(variables)).sets
        click.echo(f"wrote {write_packaged_refiner(out, SCENES, changes, sets)}")
    except SumError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
