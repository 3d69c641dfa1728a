"""The command ``trainer predict``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sum_factory.shared.commands import threads_option
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import ImageError
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.settings import PACKAGED, TASKS, WEIGHTS_HELP
from sum_factory.trainer.commands.evaluate import device_option, prompted_exactness_option
from sum_factory.trainer.commands.train import below_option, hq_option

if TYPE_CHECKING:
    from sum_factory.shared.sam.hq import HqOutput
    from sum_factory.trainer.predict import Prediction, UserPrompt

weights_option = click.option(
    "--weights",
    default=PACKAGED,
    show_default=True,
    help=f"SAM or SUM weights: {WEIGHTS_HELP}.",
)


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
@prompted_exactness_option
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
    exactness: Exactness,
) -> None:
    """Segment one object of the photo IMAGE. Pixels count from 0 at the top left; x goes right, y down."""
    import numpy as np
    import torch

    from sum_factory.shared.photo_pixels import pixels_of
    from sum_factory.shared.store.storage import Storage
    from sum_factory.trainer.predict import draw_prediction, load_model, png

    prompt = _parse_prompt(points, negatives, box)
    torch.set_num_threads(threads or usable_cores())
    photo = pixels_of(image)
    model = load_model(weights, sam, hq_output, device, exactness)
    try:
        with Stage("segmenting"):
            [prediction] = model.predict_prompts(photo, [prompt], task)
    except ImageError as error:
        raise ImageError(f"{image}: {error}") from error
    folder = Storage(out)
    names = [f"{image.stem}_mask.png", f"{image.stem}_overlay.png"]
    pictures = [prediction.mask.astype(np.uint8) * 255, draw_prediction(photo, prediction.mask, prompt)]
    for name, pixels in zip(names, pictures, strict=True):
        folder.write(name, png(pixels))
    click.echo(_describe(prediction, task, model.weights.trained_tasks))
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
