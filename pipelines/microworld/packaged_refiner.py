"""Train the refiner that ships beside the packaged SAM, and write it as it ships.

    python -m pipelines.microworld.packaged_refiner --out runs/vit_micro_refiner

It learns from exact masks of scenes that nothing else in this project draws. Resumable; half an hour on two cores.
"""

from __future__ import annotations

from pathlib import Path

import click
from safetensors.torch import load_file

from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.shared.sam.checkpoint import read_header, to_safetensors
from sum_factory.shared.sam.refiner import PACKAGED_FILE
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.refiner import RefinerRecipe, train_refiner
from sum_factory.trainer.settings import read_settings

SEED = 6_000_023
"""The world of its scenes."""
SCENES, STEPS = 1_200, 450


def write_packaged_refiner(out: Path, scenes: int = SCENES, changes: tuple[str, ...] = ()) -> Path:
    """Train the refiner in ``out``; return the file to ship, whose weights are half-precision floats."""
    write_sets(out / "scenes", SEED, scenes)
    variables = {"SCENES": str(out / "scenes")}
    settings = (f"steps={STEPS}", f"kept_embeddings={3 * scenes}", "checkpoint.every=25", *changes)
    trained = train_refiner(read_settings("refiner_microworld", RefinerRecipe, variables, settings), out)
    halves = {name: weight.half() for name, weight in load_file(trained).items()}
    Storage(str(out)).write(PACKAGED_FILE, to_safetensors(halves, read_header(trained)))
    return out / PACKAGED_FILE


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--set", "changes", multiple=True, help="key=value for the recipe refiner_microworld; repeatable.")
def main(out: Path, changes: tuple[str, ...]) -> None:
    """Train the packaged refiner."""
    click.echo(f"wrote {write_packaged_refiner(out, changes=changes)}")


if __name__ == "__main__":
    main()
