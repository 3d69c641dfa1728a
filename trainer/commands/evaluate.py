"""The commands ``trainer evaluate`` and ``trainer predict``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import click

from sum_factory.shared.commands import threads_option
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.precision import PrecisionSetting, precision_option
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.settings import PACKAGED, TASKS, WEIGHTS_HELP
from sum_factory.trainer.commands.train import below_option, hq_option
from sum_factory.trainer.evaluate.settings import FirstPrompt, Output, Protocol

if TYPE_CHECKING:
    from sum_factory.shared.images import RgbImage
    from sum_factory.shared.sam.hq import HqOutput
    from sum_factory.trainer.predict import Prediction, UserPrompt

MOST_ROUNDS = 9

weights_option = click.option(
    "--weights",
    default=PACKAGED,
    show_default=True,
    help=f"SAM or SUM weights: {WEIGHTS_HELP}.",
)
device_option = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 or mps.")
encoder_option = precision_option(
    "fp32",
    "What the image encoder computes in. bf16 moves scores and masks a little; with auto they depend on the processor.",
)


@click.command("evaluate")
@weights_option
@below_option
@hq_option
@click.option("--suite", required=True, help="A YAML file of sets, or a built-in suite: paper14, paper8.")
@click.option("--out", required=True, help="Folder for masks.parquet, summary.json and table.md: a path or a URL.")
@click.option(
    "--first",
    type=click.Choice(get_args(FirstPrompt)),
    multiple=True,
    default=["point"],
    show_default=True,
    help="First prompt of a mask; repeatable.",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, MOST_ROUNDS),
    default=Protocol.rounds,
    show_default=True,
    help="Rounds a mask: the first prompt, then a click a round where the mask is wrong.",
)
@click.option(
    "--output",
    type=click.Choice(get_args(Output)),
    default=Protocol.output,
    show_default=True,
    help="Output of a first point that counts: oracle, of its three the closest to the target; or single.",
)
@click.option(
    "--task-prompt",
    type=click.Choice(["first", "all"]),
    default="first",
    show_default=True,
    help="The rounds in which the task is given.",
)
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=VALUE",
    help="Fills ${NAME} in the suite; NAME alone takes its value from the environment; repeatable.",
)
@click.option(
    "--show", type=click.IntRange(1, MOST_ROUNDS), multiple=True, help="Rounds in the table  [default: 1, 3, 5, last]"
)
@click.option(
    "--max-masks", type=click.IntRange(min=1), default=None, help="Masks of an image, at most, drawn at random."
)
@click.option("--seed", default=0, show_default=True, help="Number that the draw of --max-masks follows from.")
@click.option("--automatic", is_flag=True, help="Make automatic masks, too, before and after training, and judge them.")
@click.option(
    "--before", default=None, help=f"With --automatic, the SAM that training began with  [default: {PACKAGED}]"
)
@device_option
@threads_option
@encoder_option
def evaluate_command(
    weights: str,
    sam: str | None,
    hq_output: HqOutput,
    suite: str,
    out: str,
    first: tuple[FirstPrompt, ...],
    rounds: int,
    output: Output,
    task_prompt: str,
    variables: tuple[str, ...],
    show: tuple[int, ...],
    max_masks: int | None,
    seed: int,
    automatic: bool,
    before: str | None,
    device: str,
    threads: int | None,
    precision: PrecisionSetting,
) -> None:
    """Prompt a model as a user would, on sets of human masks, and average IoU and boundary IoU."""
    if before is not None and not automatic:
        raise click.BadParameter("is for --automatic; give that, too", param_hint="--before")
    if show and max(show) > rounds:
        raise click.BadParameter(f"{max(show)} is beyond the last round, {rounds}", param_hint="--show")
    from dataclasses import asdict

    import torch
    from pydantic_core import to_jsonable_python

    from sum_factory.shared.allocator import tune_malloc
    from sum_factory.shared.precision import settle
    from sum_factory.shared.sam.runtime import Runtime, pick_device
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.evaluate.report import write_rows, write_summary
    from sum_factory.trainer.evaluate.run import evaluate_sets, load_weights
    from sum_factory.trainer.evaluate.suites import read_suite
    from sum_factory.trainer.settings import parse_variables

    tune_malloc()
    torch.set_num_threads(threads or usable_cores())
    folder = Storage(out)
    sets = read_suite(suite, parse_variables(variables)).sets
    computed_in = settle(precision, pick_device(device)).name
    loaded = load_weights(weights, Runtime(device, computed_in), sam, hq_output=hq_output)
    task_rounds = 1 if task_prompt == "first" else rounds
    protocols = [Protocol(name, rounds, output, task_rounds) for name in dict.fromkeys(first)]
    provenance = {
        "weights": {"path": weights, "sha256": loaded.sha256, "model_type": loaded.architecture.name},
        "trained_tasks": loaded.trained_tasks,
        "hq_output": hq_output if hasattr(loaded.sam.mask_decoder, "hq_output") else None,
        "suite": to_jsonable_python([asdict(settings) for settings in sets]),
        "protocols": [asdict(protocol) for protocol in protocols],
        "max_masks": max_masks,
        "seed": seed,
        "precision": computed_in,
    }
    folder.make()
    results = []
    for result in evaluate_sets(loaded, sets, protocols, max_masks, seed, computed_in):
        results.append(result)
        write_rows(folder, results, provenance)  # after each set, so that a failure in the last does not cost the rest
        click.echo(f"{result.settings.name}: {result.masks} masks in {result.images} images", err=True)
    click.echo(write_summary(folder, results, provenance, sorted(set(show)) or None), nl=False)
    if automatic:
        from sum_factory.trainer.evaluate.automatic import compare_automatic
        from sum_factory.trainer.evaluate.automatic_report import write_automatic

        scores = compare_automatic(before, {"after": (weights, sam)}, sets, Runtime(device, computed_in))
        told = {"weights": {"before": before or PACKAGED, "after": weights}, "precision": computed_in}
        click.echo("\n" + write_automatic(folder, scores, told), nl=False)


@click.command("predict")
@click.argument("image", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--point", "points", metavar="X,Y", multiple=True, help="A point on the object; repeatable.")
@click.option("--negative", "negatives", metavar="X,Y", multiple=True, help="A point off the object; repeatable.")
@click.option("--box", metavar="X0,Y0,X1,Y1", default=None, help="A box around the object.")
@click.option(
    "--task", type=click.Choice(TASKS), default=TASKS[0], show_default=True, help="What kind of mask is meant."
)
@weights_option
@below_option
@hq_option
@click.option("--out", required=True, help="Folder for <stem>_mask.png and <stem>_overlay.png: a path or a URL.")
@device_option
@threads_option
@encoder_option
def predict_command(
    image: Path,
    points: tuple[str, ...],
    negatives: tuple[str, ...],
    box: str | None,
    task: str,
    weights: str,
    sam: str | None,
    hq_output: HqOutput,
    out: str,
    device: str,
    threads: int | None,
    precision: PrecisionSetting,
) -> None:
    """Segment one object of the photo IMAGE. Pixels count from 0 at the top left; x goes right, y down."""
    import numpy as np
    import torch

    from sum_factory.shared.precision import settle
    from sum_factory.shared.sam.runtime import Runtime, pick_device
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.evaluate.run import load_weights
    from sum_factory.trainer.predict import draw_prediction, png, predict_mask

    prompt = _parse_prompt(points, negatives, box)
    torch.set_num_threads(threads or usable_cores())
    photo = _read_photo(image)
    computed_in = settle(precision, pick_device(device)).name
    loaded = load_weights(weights, Runtime(device, computed_in), sam, hq_output=hq_output)
    try:
        with Stage("segmenting"):
            prediction = predict_mask(loaded, photo, prompt, task, computed_in)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error
    folder = Storage(out)
    names = [f"{image.stem}_mask.png", f"{image.stem}_overlay.png"]
    pictures = [prediction.mask.astype(np.uint8) * 255, draw_prediction(photo, prediction.mask, prompt)]
    for name, pixels in zip(names, pictures, strict=True):
        folder.write(name, png(pixels))
    click.echo(_describe(prediction, task, loaded.trained_tasks))
    click.echo("wrote " + " and ".join(folder.path(name) for name in names))


def _parse_prompt(points: tuple[str, ...], negatives: tuple[str, ...], box: str | None) -> UserPrompt:
    from sum_factory.trainer.predict import UserPrompt

    on = [_numbers(text, 2, "--point") for text in points]
    off = [_numbers(text, 2, "--negative") for text in negatives]
    corners = None if box is None else _numbers(box, 4, "--box")
    return UserPrompt(
        tuple((x, y) for x, y in on),
        tuple((x, y) for x, y in off),
        None if corners is None else (corners[0], corners[1], corners[2], corners[3]),
    )


def _numbers(text: str, count: int, option: str) -> list[float]:
    """Return the numbers of an option, as many as it takes, with commas between them."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        expected = ("x,y", "x0,y0,x1,y1")[count == 4]
        raise click.BadParameter(f"expected {expected} in pixels, found {text!r}", param_hint=option)
    return numbers


def _read_photo(path: Path) -> RgbImage:
    from sum_factory.shared.images import decode_image
    from sum_factory.shared.store.local_files import read_whole
    from sum_factory.shared.store.refusals import reason_of

    try:
        return decode_image(read_whole(path), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)})") from error


def _describe(prediction: Prediction, task: str, trained_tasks: tuple[str, ...]) -> str:
    lines = []
    if prediction.prompted_task not in (None, task):
        lines.append(
            f"these weights were never trained for the task {task!r} (trained: {', '.join(trained_tasks) or 'none'}); "
            f"prompted as {prediction.prompted_task!r}"
        )
    which = (
        "the single-mask output"
        if prediction.outputs == 1
        else f"output {prediction.output} of {prediction.outputs}, the one of highest predicted IoU"
    )
    area = prediction.mask.mean()
    lines.append(f"predicted IoU {prediction.predicted_iou:.3f} ({which}); the mask covers {area:.1%} of the photo")
    return "\n".join(lines)
