"""The command ``trainer gallery``."""

from __future__ import annotations

from pathlib import Path

import click

from sum_factory.shared.commands import threads_option
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.sam.settings import WEIGHTS_HELP
from sum_factory.trainer.commands.evaluate import (
    MOST_ROUNDS,
    device_option,
    prompted_exactness_option,
    suite_option,
    variables_option,
)
from sum_factory.trainer.evaluation.settings import FirstPrompt, Output, Protocol

FIRST, OUTPUTS = ("point", "box", "near-boundary"), ("oracle", "single")


@click.command("gallery")
@click.option(
    "--weights",
    "weights",
    multiple=True,
    required=True,
    metavar="NAME=WEIGHTS",
    help=f"A model, and its name on the page; two or more. The last is compared with the first. {WEIGHTS_HELP}.",
)
@click.option(
    "--sam",
    "sams",
    multiple=True,
    metavar="NAME=WEIGHTS",
    help="The SAM that a model's weights sit on, by the model's name  [default: where it lay in training]",
)
@suite_option
@variables_option
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The HTML page to write.")
@click.option("--most", type=click.IntRange(min=1), default=3, help="Gains of a set, and losses, at most.")
@click.option(
    "--task-prompts", type=click.IntRange(min=0), default=1, help="Masks of a set that every task prompt is shown for."
)
@click.option("--first", type=click.Choice(FIRST), default=Protocol.first, help="First prompt of a mask.")
@click.option(
    "--rounds",
    type=click.IntRange(1, MOST_ROUNDS),
    default=3,
    help="Rounds per mask, the first prompt's too.",
)
@click.option(
    "--output",
    type=click.Choice(OUTPUTS),
    default=Protocol.output,
    help="Output of a first point that counts.",
)
@click.option(
    "--max-masks", type=click.IntRange(min=1), default=None, help="Masks of an image, at most, spread over all of it."
)
@device_option
@threads_option
@prompted_exactness_option
def gallery_command(
    weights: tuple[str, ...],
    sams: tuple[str, ...],
    suite: str,
    variables: tuple[str, ...],
    out: Path,
    most: int,
    task_prompts: int,
    first: FirstPrompt,
    rounds: int,
    output: Output,
    max_masks: int | None,
    device: str,
    threads: int | None,
    exactness: Exactness,
) -> None:
    """Write a self-contained HTML page of the masks that models differ in most, side by side with the truth."""
    paths, below = _named(weights, "--weights"), _named(sams, "--sam")
    if len(paths) < 2:
        raise click.BadParameter("expected two models or more, found one", param_hint="--weights")
    for name in below.keys() - paths.keys():
        raise click.BadParameter(f"no --weights is called {name!r}; there are {', '.join(paths)}", param_hint="--sam")

    import torch

    from sum_factory.shared.allocator import tune_malloc
    from sum_factory.shared.exactness import settle
    from sum_factory.shared.sam.runtime import Runtime, pick_device
    from sum_factory.trainer.evaluation.gallery.page import GallerySettings, write_gallery
    from sum_factory.trainer.evaluation.run import load_weights
    from sum_factory.trainer.evaluation.suites import read_suite
    from sum_factory.trainer.settings import parse_variables

    tune_malloc()
    torch.set_num_threads(threads or usable_cores())
    sets = read_suite(suite, parse_variables(variables)).sets
    settle(exactness, pick_device(device))
    runtime = Runtime(device, exactness)
    models = {name: load_weights(path, runtime, below.get(name)) for name, path in paths.items()}
    settings = GallerySettings(Protocol(first, rounds, output), most, task_prompts, max_masks, runtime.level.encoder)
    shown = write_gallery(out, models, sets, settings)
    click.echo(f"wrote {out}: {shown} masks, {out.stat().st_size / 1e6:.1f} MB")


def _named(texts: tuple[str, ...], option: str) -> dict[str, str]:
    """Return the values of NAME=VALUE by name. Raises ``click.BadParameter`` for odd ones."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not (name and value):
            raise click.BadParameter(f"expected NAME=WEIGHTS, found {text!r}", param_hint=option)
        if name in found:
            raise click.BadParameter(f"several are called {name!r}", param_hint=option)
        found[name] = value
    return found
