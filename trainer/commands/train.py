"""The commands that train: ``trainer refiner`` and ``fit``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sum_factory.shared.commands import photos_from_option, threads_option
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.precision import precision_option
from sum_factory.shared.sam.settings import TASKS, WEIGHTS_HELP

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
tracker_option = click.option(
    "--tracker",
    default=None,
    help="What shows the run while it goes: tensorboard, wandb, mlflow or none  [default: the recipe's]",
)
training_precision_option = precision_option(
    None, "auto is bf16 where the device has instructions for it, else fp32  [default: the recipe's]"
)


below_option = click.option(
    "--sam", default=None, help="The SAM that weights of a variant sit on  [default: where it lay in training]"
)


hq_option = click.option(
    "--hq-output",
    type=click.Choice(["hq", "hq+sam"]),
    default="hq",
    show_default=True,
    help="Of HQ-SAM, the mask of its own token, which training teaches, or the sum of its logits and SAM's.",
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
@tracker_option
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
@tracker_option
@click.option("--device", default=None, help="auto, cpu, cuda, cuda:1 or mps  [default: the recipe's]")
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    default=None,
    help="Processes of this machine that share each step: one per GPU  "
    "[default: 1 on a GPU; one per core on a CPU, or as many as the run began with]",
)
@click.option(
    "--launcher",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="What starts the processes: this command, on this machine; or Ray Train, on a cluster or on this machine.",
)
@click.option("--ray-address", default=None, help="Ray cluster to use; default: start one here")
@click.option(
    "--gpus-per-worker", type=click.FloatRange(min=0), default=0.0, show_default=True, help="With --launcher ray"
)
@click.option(
    "--cpus-per-worker",
    type=click.FloatRange(min=0, min_open=True),
    default=None,
    help="With --launcher ray  [default: 1 on a cluster, a share of --threads here]",
)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="With --launcher ray, how often all workers are started again if one fails; torchrun has one of its own.",
)
@training_precision_option
@threads_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Open all data, take one step, and tell what was found, the memory and the time of the run; write nothing.",
)
def fit_command(
    recipe: str,
    out: Path,
    variables: tuple[str, ...],
    changes: tuple[str, ...],
    processes: int | None,
    threads: int | None,
    photos_from: Relocation,
    dry_run: bool,
    launcher: str,
    ray_address: str | None,
    gpus_per_worker: float,
    cpus_per_worker: float | None,
    max_restarts: int,
    **chosen: str | None,
) -> None:
    """Train on shards and human masks. Run it again after any interruption: it goes on from its last checkpoint."""
    from sum_factory.trainer.dry_run import rehearse
    from sum_factory.trainer.launch import OnRay, fit_on_ranks, on_ranks
    from sum_factory.trainer.recipe import Recipe
    from sum_factory.trainer.settings import parse_variables

    ray = OnRay(ray_address, gpus_per_worker, cpus_per_worker, max_restarts)
    if launcher != "ray" and ray != OnRay():
        raise click.UsageError(
            "--ray-address, --gpus-per-worker, --cpus-per-worker and --max-restarts are for --launcher ray"
        )
    workers = ray if launcher == "ray" else None
    moved = json.dumps(dict(photos_from.pairs)) if photos_from else None
    settings = Recipe.read(recipe, parse_variables(variables), _changed(changes, photos_from=moved, **chosen))
    if dry_run:
        told = on_ranks(rehearse, settings, out, processes, threads, workers).lines()
    else:
        told = fit_on_ranks(settings, out, processes, threads, workers).lines()
    if os.environ.get("RANK", "0") == "0":  # of those that torchrun started, the first speaks for all
        click.echo(told)


def _changed(changes: tuple[str, ...], **options: Any) -> list[str]:
    """Return the changes to a recipe, those of options last."""
    return [*changes, *(f"{name}={value}" for name, value in options.items() if value is not None)]
