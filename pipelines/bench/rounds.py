"""Memory of seven rounds: each backpropagated at once, against the graph of all of them.

    python -m pipelines.bench.rounds [--quick]

Both sides take the same photos, masks, weights and random numbers, each in a process of its own; peak memory is that of
the process above what it held before the step. Their gradients must agree.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import torch
from torch import Tensor

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.placement import Frame
from sum_factory.shared.precision import Precision, PrecisionSetting, autocast, precision_option, settle
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.trainer.batch import Sums, backpropagate, collate
from sum_factory.trainer.data.grid import masks_on_grid, valid_cells
from sum_factory.trainer.data.samples import SampleId, TrainingSample, scale_image
from sum_factory.trainer.interactive import InteractiveSettings, play_rounds

SIDES = ("naive", "ours")
SEED = 7
TOLERANCE: dict[Precision, float] = {"fp32": 1e-3, "bf16": 0.1}
"""Largest difference of a gradient, relative to the largest entry: sums in another order."""
KEY_BIAS = "k_proj.bias"


def make_sample(masks: int, stride: int) -> TrainingSample:
    """Make a scene with ``masks`` masks, its own ones repeated."""
    (scene,) = make_scenes(SEED, 0, 1)
    frame = Frame.whole(256, *scene.image.shape[:2])
    exact = masks_on_grid(scene.masks("entity"), frame, stride)
    exact = exact[exact.flatten(1).any(1)]
    repeated = exact[torch.arange(masks) % len(exact)]
    return TrainingSample(
        id=SampleId("bench", 0, 0),
        key="scene",
        image=scale_image(scene.image, 256),
        masks=repeated,
        certainty=None,
        sampling=None,
        valid=valid_cells(frame, stride),
        task=0,
    )


def step(side: str, masks: int, precision: Precision) -> tuple[dict[str, Tensor], float, float]:
    """Backpropagate a step; return the gradients, the peak memory that it added in MB, and the seconds."""
    sam = load_sam().sam
    for parameter in sam.parameters():
        parameter.grad = torch.zeros_like(parameter)
    settings = InteractiveSettings()
    batch = collate([make_sample(masks, 4)], sam, 4, SEED)
    assert batch is not None, "the sample has masks"
    with torch.no_grad():
        sam.image_encoder(batch.images)  # what the first call allocates for good is no part of it
    before, started = _peak_mb(), time.perf_counter()
    if side == "ours":
        backpropagate(sam, None, batch, settings, 1, Sums(settings.rounds), precision)
    else:
        with autocast("cpu", precision):
            embeddings = sam.image_encoder(batch.images).float()
            rounds = play_rounds(sam, embeddings, None, batch.targets, settings, batch.random)
            losses = [result.loss.mean() / settings.rounds for result in rounds]
        torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
    seconds = time.perf_counter() - started
    gradients = {name: p.grad for name, p in sam.named_parameters() if p.grad is not None}
    return gradients, _peak_mb() - before, seconds


def largest_difference(naive: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """Return by how much a gradient differs at most, relative to the largest entry of its tensor.

    Biases of keys add the same to all scores of a query, which softmax takes out: their gradients are 0 but for
    rounding, and are compared with the largest of all gradients.
    """
    largest = max(float(gradient.abs().max()) for gradient in naive.values())
    scale = {
        name: largest if name.endswith(KEY_BIAS) else max(float(gradient.abs().max()), 1e-12)
        for name, gradient in naive.items()
    }
    return max(float((gradient - ours[name]).abs().max()) / scale[name] for name, gradient in naive.items())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_side(side: str, masks: int, precision: Precision, file: Path) -> tuple[float, float]:
    """Run ``step`` in a process of its own; return its memory in MB and its seconds."""
    command = [
        sys.executable,
        "-m",
        "sum_factory.pipelines.bench.rounds",
        "--side",
        side,
        "--masks",
        str(masks),
        "--precision",
        precision,
        "--file",
        str(file),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    memory, seconds = json.loads(done.stdout.splitlines()[-1])
    return memory, seconds


@click.command()
@click.option("--quick", is_flag=True, help="One repeat, with 20 masks at most.")
@click.option("--masks", default=30, show_default=True)
@precision_option("fp32", "Of both sides.")
@click.option("--side", type=click.Choice(SIDES), default=None, hidden=True)
@click.option("--file", type=click.Path(path_type=Path), default=None, hidden=True)
def main(quick: bool, masks: int, precision: PrecisionSetting, side: str | None, file: Path | None) -> None:
    """Compare the peak memory of a step with that of the naive graph."""
    torch.set_num_threads(1)
    computed_in = settle(precision, torch.device("cpu")).name
    if side is not None and file is not None:
        gradients, memory, seconds = step(side, masks, computed_in)
        torch.save(gradients, file)
        click.echo(json.dumps([memory, seconds]))
        return
    repeats, masks = (1, min(masks, 20)) if quick else (3, masks)
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
    with TemporaryDirectory() as folder:
        for repeat in range(repeats):
            for name in SIDES:
                with Stage(f"a step of {name}, repeat {repeat + 1} of {repeats}"):
                    figures[name].append(run_side(name, masks, computed_in, Path(folder) / name))
        naive, ours = (torch.load(Path(folder) / name, weights_only=True) for name in SIDES)
    worst = largest_difference(naive, ours)
    assert worst < TOLERANCE[computed_in], f"gradients differ by {worst}"
    median = {
        name: {"mb": statistics.median(mb for mb, _ in runs), "seconds": statistics.median(took for _, took in runs)}
        for name, runs in figures.items()
    }
    for name, runs in figures.items():
        click.echo(f"{name:6} {median[name]['mb']:6.0f} MB ({min(runs)[0]:.0f}-{max(runs)[0]:.0f})")
    click.echo(
        last_line(
            {
                "memory_ratio": median["ours"]["mb"] / median["naive"]["mb"],
                "time_ratio": median["ours"]["seconds"] / median["naive"]["seconds"],
                "naive_mb": median["naive"]["mb"],
                "ours_mb": median["ours"]["mb"],
                "largest_gradient_difference": worst,
            }
        )
    )


if __name__ == "__main__":
    main()
