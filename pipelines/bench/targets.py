"""What masks are compared with: how exactly a target draws them, what it costs, and what a model learns from it.

    python -m pipelines.bench.targets            # 84 scenes; 60 steps, two seeds
    python -m pipelines.bench.targets --quick    # six scenes; two steps, one seed
    python -m pipelines.bench.targets --pairs FOLDER    # photos and masks of FOLDER in place of scenes

Four tables. *Drawn*: the boundary IoU of masks with what is left of them in a target, brought to the photo's size as
inference brings logits there. *Fitted*: the same of low-resolution logits that were free to become anything, after
``FITTING`` steps down the loss of that target: what a perfect model would learn from it. *Cost*: processor time and
memory of the loss of one round, forwards and backwards, for a SAM of 1,024 pixels. *Trained*: ``vit_micro``'s decoder,
fine-tuned on human masks by the same photos and masks in the same order; processor time of a step with its data, and
boundary IoU on other photos after one, three and five points.

FOLDER holds ``images``, ``masks``, ``train.txt`` and ``val.txt``. The last line is a JSON object.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import click
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.demo.plan import HELD_OUT_SEED, HUMAN_SEED
from sum_factory.pipelines.microworld.sets import SCENE_TASKS, describe_set, write_sets
from sum_factory.shared.placement import CELL, Frame
from sum_factory.shared.progress import hushed, track
from sum_factory.trainer.data.grid import coverage_on_grid, is_covered, masks_on_grid, valid_cells
from sum_factory.trainer.data.human import Masks
from sum_factory.trainer.data.sets import FolderPairsSettings, SetSettings, open_set
from sum_factory.trainer.evaluation.metrics import boundary_iou
from sum_factory.trainer.evaluation.report import ALL, summarise
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol
from sum_factory.trainer.interactive import Targets, to_grid
from sum_factory.trainer.losses import LossSettings
from sum_factory.trainer.optimizer import OptimizerSettings
from sum_factory.trainer.points import PixelMasks
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.target import Target
from sum_factory.trainer.training import make_model, open_stream, train_step

SIDES = {"vit_micro": 256, "SAM": 1024}
ROUNDS = (1, 3, 5)
MOST_DRAWN = 80
FITTED = {"vit_micro": 24, "SAM": 6}
"""Masks that logits are fitted to."""
FITTING = 150
SURE = 0.01
"""Shares within this of 0 and 1 are drawn as if they were that near: their logits would be infinite."""


@dataclass(frozen=True)
class Candidate:
    """A target on a grid of ``stride`` input pixels per cell."""

    target: Target
    stride: Literal[1, 2, 4]

    def __str__(self) -> str:
        return f"{self.target} at {self.stride}"

    @property
    def key(self) -> str:
        """Its name in the last line."""
        return f"{self.target}_{self.stride}"


CANDIDATES = (
    Candidate("authors", 4),
    Candidate("coverage", 4),
    Candidate("points", 4),
    Candidate("bits", 2),
    Candidate("coverage", 2),
    Candidate("bits", 1),
)


@dataclass(frozen=True)
class Data:
    """Sets to train on, and others to evaluate on."""

    train: tuple[SetSettings, ...]
    held_out: tuple[SetSettings, ...]


def scenes_in(folder: Path, count: int, held_out: int) -> Data:
    """Draw scenes of the micro-world, all three tasks, exact."""
    for name, seed, number in (("train", HUMAN_SEED, count), ("held_out", HELD_OUT_SEED, held_out)):
        write_sets(folder / name, seed, number)
    train, other = (tuple(describe_set(folder / name, task) for task in SCENE_TASKS) for name in ("train", "held_out"))
    return Data(train, other)


def pairs_in(folder: Path, held_out: int) -> Data:
    """Describe a folder of photos and salient masks."""
    whole = FolderPairsSettings("folder-pairs", folder / "images", folder / "masks", "salient", name=folder.name)
    return Data(
        (replace(whole, list=folder / "train.txt"),), (replace(whole, list=folder / "val.txt", limit=held_out),)
    )


def masks_of(sets: Sequence[SetSettings]) -> Iterator[Masks]:
    """Yield each mask, bool (H, W), without the empty ones."""
    for settings in sets:
        opened = open_set(settings)
        for index in range(len(opened.keys)):
            sample = opened.load(index)
            masks = sample.masks_at(range(sample.count))
            yield from masks[masks.any((1, 2))]


def drawn(mask: Masks, candidate: Candidate, side: int) -> Masks:
    """Return what is left of a mask, bool (H, W), in a target, at the photo's size: bool (H, W)."""
    frame = Frame.whole(side, *mask.shape)
    stride = 1 if candidate.target == "points" else candidate.stride
    coverage = coverage_on_grid(mask[None], frame, stride)[0].double()
    if candidate.target != "coverage":
        coverage = is_covered(coverage).double()
    (rows, columns), (height, width) = valid_cells(frame, stride), frame.input_size
    logits = torch.logit(coverage[:rows, :columns].clamp(SURE, 1 - SURE))
    beyond = (0, side // stride - columns, 0, side // stride - rows)
    square = F.pad(logits[None, None], beyond, mode="replicate")
    if stride > 1:
        square = F.interpolate(square, (side, side), mode="bilinear", align_corners=False)
    photo = F.interpolate(square[..., :height, :width], frame.crop_size, mode="bilinear", align_corners=False)
    return np.asarray((photo[0, 0] > 0).numpy(), np.bool_)


def targets_of(masks: Sequence[Masks], candidate: Candidate, side: int) -> Targets:
    """Return human masks of any sizes as targets."""
    frames, stride = [Frame.whole(side, *mask.shape) for mask in masks], candidate.stride
    pairs = list(zip(masks, frames, strict=True))
    bits = torch.cat([masks_on_grid(mask[None], frame, stride) for mask, frame in pairs])
    valid = torch.zeros_like(bits)
    for k, frame in enumerate(frames):
        rows, columns = valid_cells(frame, stride)
        valid[k, :rows, :columns] = True
    coverage = pixel_masks = None
    if candidate.target == "coverage":
        coverage = torch.cat([coverage_on_grid(mask[None], frame, stride) for mask, frame in pairs])
    if candidate.target == "points":
        exact = torch.cat([masks_on_grid(mask[None], frame, 1) for mask, frame in pairs])
        pixel_masks = PixelMasks(exact, torch.tensor([frame.input_size for frame in frames]))
    ones = torch.ones(bits.shape)
    index = torch.zeros(len(masks), dtype=torch.int64)
    return Targets(bits, valid, ones, ones, index, stride, coverage, pixel_masks)


def fit_logits(masks: Sequence[Masks], candidate: Candidate, side: int, steps: int) -> list[Masks]:
    """Return the masks, bool (H, W), of low-resolution logits that were fitted to ``masks`` by a target's loss."""
    targets = targets_of(masks, candidate, side)
    logits = torch.zeros(len(masks), side // CELL, side // CELL, requires_grad=True)
    optimizer, generator = torch.optim.Adam([logits], 0.1), torch.Generator().manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        shifts = targets.shifts(generator)
        targets.loss(logits, to_grid(logits[:, None], targets)[:, 0], shifts, LossSettings()).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = (Frame.whole(side, *mask.shape).upsample(logits[k : k + 1].detach())[0] for k, mask in enumerate(masks))
    return [np.asarray((each > 0).numpy(), np.bool_) for each in found]


def measure_fitted(masks: Sequence[Masks], candidate: Candidate, quick: bool) -> dict[str, float]:
    """Return the mean boundary IoU of masks with what logits fitted to them draw, by model."""
    found = {}
    for name, side in SIDES.items():
        some = masks[: 2 if quick else FITTED[name]]
        fitted = fit_logits(some, candidate, side, 2 if quick else FITTING)
        found[name] = float(np.mean([boundary_iou(*pair) for pair in zip(fitted, some, strict=True)]))
    return found


def measure_drawn(masks: Sequence[Masks]) -> dict[str, dict[str, float]]:
    """Return the mean boundary IoU of masks with what is drawn of each target, by candidate and model."""
    scores: dict[str, dict[str, list[float]]] = {str(each): {name: [] for name in SIDES} for each in CANDIDATES}
    for mask in track(masks, "drawing targets", "mask"):
        for candidate in CANDIDATES:
            for name, side in SIDES.items():
                scores[str(candidate)][name].append(boundary_iou(drawn(mask, candidate, side), mask))
    return {name: {model: float(np.mean(each)) for model, each in of.items()} for name, of in scores.items()}


def make_discs(candidate: Candidate, count: int, side: int) -> tuple[Targets, Tensor]:
    """Return targets of ``count`` discs, and logits on the low resolution that are nearly right, (count, h, w)."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:side, 0:side] / side
    centres, radii = random.uniform(0.3, 0.7, (count, 2)), random.uniform(0.05, 0.3, count)
    distance = np.stack([r - np.hypot(rows - y, columns - x) for (y, x), r in zip(centres, radii, strict=True)])
    targets = targets_of(list(distance > 0), candidate, side)
    low = torch.from_numpy(distance[:, 2::4, 2::4].astype(np.float32)) * 40
    return targets, (low + torch.randn(low.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()


def measure_cost(candidate: Candidate, count: int, repeats: int) -> tuple[float, float]:
    """Return the least processor time of one round's loss of ``count`` masks, forwards and backwards, in seconds, and
    the megabytes that autograd keeps in between."""
    targets, logits = make_discs(candidate, count, SIDES["SAM"])
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    seconds = []
    for number in range(repeats + 1):
        generator = torch.Generator().manual_seed(number)
        started = time.process_time()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            shifts = targets.shifts(generator)
            loss = targets.loss(logits, to_grid(logits[:, None], targets)[:, 0], shifts, LossSettings())
        if number == 0:
            megabytes = sum(kept.values()) / 2**20
        loss.sum().backward()  # type: ignore[no-untyped-call]
        seconds.append(time.process_time() - started)
    return min(seconds[1:]), megabytes


@dataclass(frozen=True)
class Training:
    """How much is trained: photos per step, masks per photo and rounds per mask, and with which seeds."""

    steps: int
    batch: int
    masks: int
    rounds: int
    seeds: int

    def recipe(self, data: Data, candidate: Candidate, seed: int) -> Recipe:
        """Return the run of a candidate."""
        return Recipe(
            human=data.train,
            method="human-only",
            variant="decoder",
            steps=self.steps,
            batch=self.batch,
            micro_batch=self.batch,
            masks=self.masks,
            rounds=self.rounds,
            fed_output="best",
            stride=candidate.stride,
            target=candidate.target,
            loss=LossSettings(temperature=3),
            optimizer=OptimizerSettings(learning_rate=1e-4, schedule="linear", warmup=8, betas=(0.9, 0.95)),
            seed=seed,
            device="cpu",
            precision="fp32",
            data_threads=1,
        )


@dataclass(frozen=True)
class Trained:
    """What became of a run: processor time of a step with its data, in seconds, and boundary IoU after each round."""

    seconds: float
    scores: tuple[float, ...]


def train(recipe: Recipe, data: Data) -> Trained:
    """Take all steps of a recipe and evaluate the model."""
    with hushed(True):
        model = make_model(recipe, ALONE)
        stream = open_stream(recipe, int(model.sam.image_encoder.img_size), ALONE)
        started = time.process_time()
        for number, samples in enumerate(stream.steps(0, recipe.steps), 1):
            train_step(recipe, model, samples, number, ALONE)
        seconds = (time.process_time() - started) / max(1, recipe.steps)
        return Trained(seconds, evaluate(model.as_loaded({"trained_tasks": []}), data))


def evaluate(weights: Any, data: Data) -> tuple[float, ...]:
    """Return the boundary IoU after each of ``ROUNDS``, the mean over sets, in per cent."""
    results = evaluate_sets(weights, data.held_out, [Protocol(rounds=max(ROUNDS))], max_masks=4)
    means = summarise(pa.concat_tables([result.rows for result in results]))[ALL]
    return tuple(100 * means[f"mBIoU@{number}"] for number in ROUNDS)


def say_row(name: str, *values: str) -> None:
    """Print a row of a table."""
    click.echo(f"{name:16}" + "".join(f"{value:>16}" for value in values))


@click.command()
@click.option("--quick", is_flag=True, help="Four scenes, two masks, two steps.")
@click.option("--pairs", type=click.Path(exists=True, file_okay=False, path_type=Path), default=None)
@click.option("--steps", default=60, show_default=True, help="Of each training.")
@click.option("--seeds", default=2, show_default=True, help="Trainings of each target.")
@click.option("--train/--no-train", "trains", default=True, show_default=True)
def main(quick: bool, pairs: Path | None, steps: int, seeds: int, trains: bool) -> None:
    """Compare the targets."""
    torch.set_num_threads(1)
    batch = 2 if pairs is None else 6  # of pairs, a photo has one mask
    training = Training(2, 1, 2, 2, 1) if quick else Training(steps, batch, 4, 3, seeds)
    count, held_out, masks, repeats = (4, 2, 2, 1) if quick else (60, 24 if pairs is None else 70, 8, 3)
    figures: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        data = scenes_in(Path(temporary), count, held_out) if pairs is None else pairs_in(pairs, held_out)
        drawn_masks = list(islice(masks_of(data.held_out), MOST_DRAWN))
        scores = measure_drawn(drawn_masks)
        say_row("drawn", *(f"{name}, {side}" for name, side in SIDES.items()))
        for name, of_models in scores.items():
            say_row(name, *(f"{value:.3f}" for value in of_models.values()))
        say_row("fitted", *(f"{name}, {side}" for name, side in SIDES.items()))
        for each in CANDIDATES:
            fitted = measure_fitted(drawn_masks, each, quick)
            say_row(str(each), *(f"{value:.3f}" for value in fitted.values()))
            figures[each.key] = {f"fitted_{name}": value for name, value in fitted.items()}
        say_row("cost", "a round, ms", "MB kept")
        for each in CANDIDATES:
            seconds, megabytes = measure_cost(each, masks, repeats)
            say_row(str(each), f"{1000 * seconds:.0f}", f"{megabytes:.0f}")
            of_models = {f"drawn_{name}": value for name, value in scores[str(each)].items()}
            figures[each.key] |= {**of_models, "loss_ms": 1000 * seconds, "kept_mb": megabytes}
        for key, of_training in (say_trained(data, training) if trains else {}).items():
            figures[key] = {**figures.get(key, {}), **of_training}
    click.echo(last_line(figures))


def say_trained(data: Data, training: Training) -> dict[str, dict[str, float]]:
    """Train every candidate with every seed, print the table, and return the figures of each, and of the model before:
    the least time of a step, and means over the seeds."""
    say_row("trained, by seed", "a step, s", *(f"{number} points" for number in ROUNDS))
    with hushed(True):
        model = make_model(training.recipe(data, CANDIDATES[0], 0), ALONE)
        before = evaluate(model.as_loaded({"trained_tasks": []}), data)
    say_row("before", "", *(f"{value:.1f}" for value in before))
    runs: dict[str, list[Trained]] = {each.key: [] for each in CANDIDATES}
    for seed in range(training.seeds):
        for each in CANDIDATES:
            run = train(training.recipe(data, each, seed), data)
            say_row(f"{each}, {seed}", f"{run.seconds:.2f}", *(f"{value:.1f}" for value in run.scores))
            runs[each.key].append(run)
    figures = {key: {"step_s": min(run.seconds for run in of), **mean_scores(of)} for key, of in runs.items()}
    return {**figures, "before": mean_scores([Trained(0, before)])}


def mean_scores(runs: Sequence[Trained]) -> dict[str, float]:
    """Return the means of the scores of several runs."""
    by_round = zip(*(run.scores for run in runs), strict=True)
    return {f"points_{number}": float(np.mean(each)) for number, each in zip(ROUNDS, by_round, strict=True)}


if __name__ == "__main__":
    main()
