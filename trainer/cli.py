"""The ``trainer`` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from shared.commands import Commands
from trainer.evaluate.commands import evaluate_command, predict_command
from trainer.export import export_plain_sam
from trainer.loop import fit_on_ranks
from trainer.recipe import Recipe
from trainer.refiner import RefinerRecipe, train_refiner
from trainer.settings import parse_variables, read_settings

recipe_option = click.option("--recipe", required=True, help="A YAML file, or the name of one that ships here.")
out_option = click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the run."
)
var_option = click.option("--var", "variables", multiple=True, help="NAME=value for ${NAME} in the recipe; repeatable.")
set_option = click.option(
    "--set", "changes", multiple=True, help="key=value in place of the recipe's, with dotted keys; repeatable."
)


@click.group(cls=Commands, context_settings={"show_default": True})
@click.version_option(package_name="sum-factory")
def main() -> None:
    """Fine-tune SUM on shards of pseudo-labels and human masks."""


@main.command("refiner")
@recipe_option
@out_option
@var_option
@set_option
@click.option("--sam", default=None, help="The frozen SAM  [default: the recipe's]")
def refiner_command(
    recipe: str, out: Path, variables: tuple[str, ...], changes: tuple[str, ...], sam: str | None
) -> None:
    """Train the mask-refinement module on human masks. Run it again after any interruption."""
    settings = read_settings(recipe, RefinerRecipe, parse_variables(variables), _changed(changes, sam=sam))
    path = train_refiner(settings, out)
    click.echo(f"wrote {path}; use it with `labelgen run --refiner {path}`")


@main.command("fit")
@recipe_option
@out_option
@var_option
@set_option
@click.option("--shards", default=None, help="The shard set  [default: the recipe's]")
@click.option("--sam", default=None, help="The SAM to start from  [default: the recipe's]")
@click.option("--method", default=None, help="A row of the table of methods  [default: the recipe's]")
@click.option("--device", default=None, help="auto, cpu, cuda, cuda:1, mps  [default: the recipe's]")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=1,
    help="Processes of this machine that share each step: one a GPU.",
)
def fit_command(
    recipe: str,
    out: Path,
    variables: tuple[str, ...],
    changes: tuple[str, ...],
    processes: int,
    **chosen: str | None,
) -> None:
    """Train on shards and human masks. Run it again after any interruption: it goes on from its last checkpoint."""
    settings = read_settings(recipe, Recipe, parse_variables(variables), _changed(changes, **chosen))
    click.echo(fit_on_ranks(settings, out, processes).lines())


main.add_command(evaluate_command)
main.add_command(predict_command)


@main.command("export")
@click.option("--weights", required=True, help="A SUM checkpoint (.safetensors), or the folder of a run.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="A .pth file.")
def export_command(weights: str, out: Path) -> None:
    """Write a checkpoint as plain `segment_anything` loads it: without the task prompt."""
    export_plain_sam(weights, out)
    click.echo(f"wrote {out}")


def _changed(changes: tuple[str, ...], **options: Any) -> list[str]:
    """Return the changes to a recipe, those of options last."""
    return [*changes, *(f"{name}={value}" for name, value in options.items() if value is not None)]


if __name__ == "__main__":
    sys.exit(main())
