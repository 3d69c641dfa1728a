"""The commands that train, and bring what was trained elsewhere: ``trainer refiner``, ``fit`` and ``export``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sum_factory.shared.commands import photos_from_option, threads_option
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.precision import precision_option
from sum_factory.shared.sam.settings import TASKS, WEIGHTS_HELP
from sum_factory.shared.store.local_files import is_stream

if TYPE_CHECKING:
    from sum_factory.shared.relocation import Relocation


def _folder(_context: click.Context, _option: click.Parameter, path: Path) -> Path:
    """Refuse what is there and is no folder: click itself lets pipes and devices pass."""
    if path.exists() and not path.is_dir():
        raise click.BadParameter(f"{path} is there, and is no folder")
    return path


recipe_option = click.option("--recipe", required=True, help="A YAML file, or the name of one that ships here.")
out_option = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    callback=_folder,
    required=True,
    help="Folder of the run: checkpoints, log and weights.",
)
var_option = click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Fills ${NAME} in the recipe; NAME alone takes its value from the environment; repeatable.",
)
set_option = click.option(
    "--set", "changes", multiple=True, help="key=value in place of the recipe's, with dotted keys; repeatable."
)
target_option = click.option(
    "--target",
    default=None,
    help="What masks are compared with: authors, bits, coverage or points  [default: the recipe's]",
)
training_precision_option = precision_option(
    None, "auto is bf16 where the device has instructions for it, else fp32  [default: the recipe's]"
)


below_option = click.option(
    "--sam", default=None, help="The SAM that weights of a variant sit on  [default: where it lay in training]"
)


@click.command("refiner")
@recipe_option
@out_option
@var_option
@set_option
@click.option("--sam", default=None, help=f"Weights of the frozen SAM: {WEIGHTS_HELP}  [default: the recipe's]")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=None,
    help="Of weights with a task prompt, the task whose masks are refined  [default: the recipe's]",
)
@target_option
@training_precision_option
@threads_option
def refiner_command(
    recipe: str,
    out: Path,
    variables: tuple[str, ...],
    changes: tuple[str, ...],
    threads: int | None,
    **chosen: str | None,
) -> None:
    """Train the mask-refinement module on human masks. Run it again after any interruption."""
    import torch

    from sum_factory.trainer.refiner import RefinerRecipe, train_refiner
    from sum_factory.trainer.settings import parse_variables, read_settings

    torch.set_num_threads(threads or usable_cores())
    settings = read_settings(recipe, RefinerRecipe, parse_variables(variables), _changed(changes, **chosen))
    path = train_refiner(settings, out)
    click.echo(f"wrote {path}; use it with `labelgen run --refiner {path}`")


@click.command("fit")
@recipe_option
@out_option
@var_option
@set_option
@click.option("--shards", default=None, help="Shard set or selection with the labels  [default: the recipe's]")
@photos_from_option
@click.option("--sam", default=None, help=f"Weights to start from: {WEIGHTS_HELP}  [default: the recipe's]")
@click.option(
    "--method",
    default=None,
    help="Which labels are trained on and what certainty weighs: sum, vanilla, ...  [default: the recipe's]",
)
@click.option(
    "--variant",
    default=None,
    help="Which weights are trained: full, decoder, lora, adapter, sam-adapter or hq; --set variant_settings.KEY=VALUE "
    "changes the settings of one that has any  [default: the recipe's]",
)
@target_option
@click.option("--device", default=None, help="auto, cpu, cuda, cuda:1 or mps  [default: the recipe's]")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=None,
    help="Processes of this machine that share each step: one a GPU  "
    "[default: 1 on a GPU; one a core on a CPU, or as many as the run began with]",
)
@training_precision_option
@threads_option
def fit_command(
    recipe: str,
    out: Path,
    variables: tuple[str, ...],
    changes: tuple[str, ...],
    processes: int | None,
    threads: int | None,
    photos_from: Relocation,
    **chosen: str | None,
) -> None:
    """Train on shards and human masks. Run it again after any interruption: it goes on from its last checkpoint."""
    from sum_factory.trainer.fit import fit_on_ranks
    from sum_factory.trainer.recipe import Recipe
    from sum_factory.trainer.settings import parse_variables, read_settings

    moved = json.dumps(dict(photos_from.pairs)) if photos_from else None
    settings = read_settings(recipe, Recipe, parse_variables(variables), _changed(changes, photos_from=moved, **chosen))
    click.echo(fit_on_ranks(settings, out, processes, threads).lines())


@click.command("export")
@click.option("--weights", required=True, help=f"A SUM checkpoint or SAM weights: {WEIGHTS_HELP}.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The .pth file to write.")
@click.option(
    "--task",
    type=click.Choice(TASKS),
    default=TASKS[0],
    show_default=True,
    help="The task whose vector becomes part of the weights: plain SAM has no task prompt.",
)
@below_option
def export_command(weights: str, out: Path, task: str, sam: str | None) -> None:
    """Write weights as plain `segment_anything` loads them, for one task; of HQ-SAM, as its own software does."""
    from sum_factory.trainer.export import export_plain_sam

    export_plain_sam(weights, out, task, sam)
    click.echo(f"wrote {out}", err=is_stream(out))


def _changed(changes: tuple[str, ...], **options: Any) -> list[str]:
    """Return the changes to a recipe, those of options last."""
    return [*changes, *(f"{name}={value}" for name, value in options.items() if value is not None)]
