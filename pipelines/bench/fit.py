"""A step of training, seven rounds of thirty masks: its time and memory against those of a naive implementation.

    python -m pipelines.bench.fit            # vit_micro and ViT-B, three repeats: a quarter of an hour
    python -m pipelines.bench.fit --quick    # vit_micro with 12 masks, once: less than a minute of processor time

The naive step (``parts/naive_step.py``) is one graph of all rounds, by upstream's modules, the prompts of one image and
kind at a time, with losses at the input's full resolution. All take the same photo, masks, weights and random numbers,
in turn, each in a process of its own of one thread. Time is processor time of the step; memory is the peak of the
process above what it held before. Two of ours are compared with it:

``same_losses_`` with a grid of one cell per pixel (``stride=1``), which makes the losses those of the naive step. The
loss of the step and all gradients must agree, or there is no result. They are compared twice: in float64 with a few of
the masks, where each entry of each gradient agrees to a billionth; and as the steps that are timed left them, in fp32,
where the order of sums decides here and there whether a ReLU whose input is nearly 0 lets a gradient through, so that
an entry may differ by a percent of the largest, and all of them as one vector by 1e-2 at most (seen: 2e-4 with AVX2,
4e-3 with AVX-512); the loss by 1e-3.

Without that name, with a recipe's defaults: the share of each cell that a mask covers, on a grid of stride 4, SAM's own
low resolution. That is what training costs. These are other losses, of a sixteenth of the cells, so only the cost can
be compared.

``step_ratio`` is naive over ours and ``memory_ratio`` ours over naive, each of the model that is worse off; each model
has its own, too, with its spread. ViT-B has random weights, and an input of 512 pixels, where the naive graph takes
10 GB: at 1,024 pixels it would take four times as much.

``data_wait`` is the share of the time of ``trainer fit`` that it waits for data: shards and scenes with human masks,
read, decoded and scaled by its loading threads beside the steps. The last line is a JSON object.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import click
import torch
from torch import Tensor

from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.naive_step import naive_loss
from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.allocator import tune_malloc
from sum_factory.shared.placement import Frame
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.architecture import ARCHITECTURES, build_architecture
from sum_factory.shared.sam.attention import attend_in_pieces
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch, Sums, backpropagate, collate
from sum_factory.trainer.data.grid import coverage_on_grid, masks_on_grid, valid_cells
from sum_factory.trainer.data.samples import SampleId, TrainingSample, scale_image
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit

SIDES = {"naive": 1, "same_losses": 1, "ours": 4}
"""What is measured, and input pixels per cell of its losses."""
KINDS = ("", "same_losses_")
SEED = 7
T = TypeVar("T")
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-3, 1e-2
"""Largest difference, in fp32, of the loss and of the gradients as one vector, relative to these."""
EXACT = 1e-9
"""Largest difference, in float64, of the loss and of an entry of a gradient, relative to the loss and to the largest
entry of that gradient."""
LEAST = 1e-6
"""Of the largest entry of all gradients: gradients without a larger one are compared with this. Those of biases of keys
are 0 but for rounding, since softmax takes out what is added to all scores of a query."""
IN_FLOAT64 = 4
"""Masks of the steps that are compared in float64."""


@dataclass(frozen=True)
class Work:
    """A step: of which model, on an input of how many pixels per side, with how many masks of a photo."""

    model: str
    side: int
    masks: int


FULL = (Work(PACKAGED, 256, 30), Work("vit_b", 512, 30))
QUICK = (Work(PACKAGED, 256, 12),)


@dataclass(frozen=True)
class Step:
    """A step's loss, the MB that it added to the peak, and its seconds of processor time."""

    loss: float
    mb: float
    seconds: float


def make_sam(work: Work) -> Sam:
    """Return the packaged SAM, or one of random weights."""
    if work.model == PACKAGED:
        return load_sam().sam
    torch.manual_seed(SEED)
    return build_architecture(replace(ARCHITECTURES[work.model], image_size=work.side))


def make_batch(sam: Sam, side: int, masks: int, stride: int) -> Batch:
    """Return a scene with ``masks`` masks, its own ones repeated."""
    (scene,) = make_scenes(SEED, 0, 1)
    frame = Frame.whole(side, *scene.image.shape[:2])
    drawn = scene.masks("entity")
    exact = masks_on_grid(drawn, frame, stride)
    seen = exact.flatten(1).any(1).nonzero()[:, 0]
    repeated = seen[torch.arange(masks) % len(seen)]
    sample = TrainingSample(
        id=SampleId("bench", 0, 0),
        key="scene",
        image=scale_image(scene.image, side),
        masks=exact[repeated],
        certainty=None,
        sampling=None,
        valid=valid_cells(frame, stride),
        task=0,
        coverage=None if stride == 1 else coverage_on_grid(drawn, frame, stride)[repeated],
    )
    batch = collate([sample.on(sam.device)], sam, stride, SEED)
    assert batch is not None, "the sample has masks"
    return batch


def take_step(side: str, work: Work, file: Path) -> Step:
    """Backpropagate a step, after a smaller one, and save its gradients to ``file``."""
    sam = _prepared(side, work)
    _backpropagate(side, sam, make_batch(sam, work.side, 1, SIDES[side]), InteractiveSettings(rounds=2))
    for parameter in sam.parameters():
        assert parameter.grad is not None, "it was given one"
        parameter.grad.zero_()
    batch = make_batch(sam, work.side, work.masks, SIDES[side])
    before, started = _peak_mb(), time.process_time()
    loss = _backpropagate(side, sam, batch, InteractiveSettings())
    seconds = time.process_time() - started
    taken = Step(loss, _peak_mb() - before, seconds)
    torch.save(_gradients(sam), file)
    return taken


def step_in_float64(side: str, work: Work) -> tuple[float, dict[str, Tensor]]:
    """Return the loss and the gradients of a step of ``IN_FLOAT64`` masks, at most, in float64."""
    sam = _prepared(side, work).double()
    layer = sam.prompt_encoder.pe_layer
    encode = layer._pe_encoding
    layer._pe_encoding = lambda coords: encode(coords.double())  # upstream hands fp32 ones to it
    batch = make_batch(sam, work.side, min(work.masks, IN_FLOAT64), SIDES[side])
    loss = _backpropagate(side, sam, replace(batch, images=batch.images.double()), InteractiveSettings())
    return loss, _gradients(sam)


def _prepared(side: str, work: Work) -> Sam:
    sam = make_sam(work)
    if side != "naive":
        attend_in_pieces(sam.image_encoder)  # as ``trainer fit`` does
    for parameter in sam.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return sam


def _gradients(sam: Sam) -> dict[str, Tensor]:
    return {name: p.grad for name, p in sam.named_parameters() if p.grad is not None}


def _backpropagate(side: str, sam: Sam, batch: Batch, settings: InteractiveSettings) -> float:
    if side == "naive":
        loss = naive_loss(sam, batch, settings)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    sums = Sums(settings.rounds)
    backpropagate(sam, None, batch, settings, 1, sums)
    return sums.counts["loss"]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def difference(naive: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """Return the length of the difference of all gradients together, relative to their length."""
    off = sum(float((gradient - ours[name]).double().square().sum()) for name, gradient in naive.items())
    return float((off / sum(float(gradient.double().square().sum()) for gradient in naive.values())) ** 0.5)


def largest_difference(naive: dict[str, Tensor], ours: dict[str, Tensor]) -> float:
    """Return by how much an entry of a gradient differs at most, relative to the largest entry of that gradient."""
    largest = {name: float(gradient.abs().max()) for name, gradient in naive.items()}
    least = LEAST * max(largest.values())
    return max(float((naive[name] - ours[name]).abs().max()) / max(largest[name], least) for name in naive)


def require_equal_in_float64(work: Work) -> float:
    """Return by how much an entry of a gradient differs in float64. Raises ``AssertionError`` if it is not rounding."""
    (naive, of_naive), (ours, of_ours) = (step_in_float64(side, work) for side in ("naive", "same_losses"))
    of_loss, of_gradients = abs(ours - naive) / naive, largest_difference(of_naive, of_ours)
    assert max(of_loss, of_gradients) < EXACT, f"in float64 the loss differs by {of_loss}, gradients by {of_gradients}"
    return of_gradients


def difference_of_files(naive: Path, ours: Path) -> float:
    """Return the ``difference`` of gradients that were saved."""
    return difference(*(torch.load(file, weights_only=True) for file in (naive, ours)))


def in_its_own_process(function: Callable[..., T], *given: Any) -> T:
    """Call ``function`` in a copy of this process.

    Its peak begins with what this process holds. So this process does none of the work: memory that it had freed would
    be taken again at no cost.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        return pool.submit(function, *given).result()


def compare(work: Work, repeats: int) -> dict[str, Any]:
    """Return the figures of a model. Raises ``AssertionError`` if the two sides disagree."""
    taken: dict[str, list[Step]] = {side: [] for side in SIDES}
    with Stage(f"{work.model}: a step of {IN_FLOAT64} masks in float64"):
        in_float64 = in_its_own_process(require_equal_in_float64, work)
    with TemporaryDirectory() as temporary:
        files = {side: Path(temporary) / side for side in SIDES}
        for repeat in range(repeats):
            for side, file in files.items():
                with Stage(f"{work.model}: a step of {side}, repeat {repeat + 1} of {repeats}"):
                    taken[side].append(in_its_own_process(take_step, side, work, file))
        of_gradients = in_its_own_process(difference_of_files, files["naive"], files["same_losses"])
    naive, ours = taken["naive"][0], taken["same_losses"][0]
    of_loss = abs(ours.loss - naive.loss) / naive.loss
    agree = of_loss < LOSS_TOLERANCE and of_gradients < GRADIENT_TOLERANCE
    assert agree, f"the loss differs by {of_loss}, gradients by {of_gradients}"
    for side, steps in taken.items():
        seconds, mb = _spread([step.seconds for step in steps]), _spread([step.mb for step in steps])
        click.echo(
            f"{work.model:10} {side:12}{seconds[0]:7.2f} s ({seconds[1]:.2f}-{seconds[2]:.2f})  "
            f"{mb[0]:6.0f} MB ({mb[1]:.0f}-{mb[2]:.0f})"
        )
    return {
        **_ratios("", taken["naive"], taken["ours"]),
        **_ratios("same_losses_", taken["naive"], taken["same_losses"]),
        "loss_difference": of_loss,
        "gradient_difference": of_gradients,
        "float64_difference": in_float64,
    }


def _ratios(prefix: str, naive: list[Step], ours: list[Step]) -> dict[str, tuple[float, float, float]]:
    pairs = list(zip(naive, ours, strict=True))
    return {
        f"{prefix}step_ratio": _spread([one.seconds / other.seconds for one, other in pairs]),
        f"{prefix}memory_ratio": _spread([other.mb / one.mb for one, other in pairs]),
    }


def _spread(values: list[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


def measure_data_wait(steps: int) -> float:
    """Return the share of the time of a run of ``trainer fit`` that it waits for its shards and human masks."""
    from sum_factory.pipelines.bench.contention import prepare_training  # of labelling: steps load none of it

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_training(folder, 2)
        variables = {"SHARDS": str(folder / "shards"), "SCENES": str(folder / "human")}
        small = ("batch=3", "masks=6", "optimizer.warmup=0", f"checkpoint.every={steps}")
        settings = ("method=sum-confidence-uncer", "device=cpu", "precision=fp32", f"steps={steps}", *small)
        recipe = read_settings("microworld", Recipe, variables, settings)
        return fit(recipe, folder / "run", say=lambda line: None).data_wait


@click.command()
@click.option("--quick", is_flag=True, help="vit_micro alone, with 12 masks, once.")
@click.option("--repeats", type=int, default=None, help="Steps of each side. [default: 3; with --quick 1]")
def main(quick: bool, repeats: int | None) -> None:
    """Compare the time and memory of a step with those of a naive one."""
    torch.set_num_threads(1)
    tune_malloc()
    found = {each.model: compare(each, repeats or (1 if quick else 3)) for each in (QUICK if quick else FULL)}
    with Stage("how long a run waits for data"):
        data_wait = measure_data_wait(2 if quick else 10)
    figures = {
        **{f"{name}step_ratio": min(each[f"{name}step_ratio"][0] for each in found.values()) for name in KINDS},
        **{f"{name}memory_ratio": max(each[f"{name}memory_ratio"][0] for each in found.values()) for name in KINDS},
        "data_wait": data_wait,
        **found,
        "losses_agree": True,
        "gradients_agree": True,
    }
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
