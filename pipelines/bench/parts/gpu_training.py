"""Steps of training on a device, against the naive step; and how many samples shards give, against what steps take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.pipelines.bench.fit import make_batch
from sum_factory.pipelines.bench.parts.naive_step import naive_loss
from sum_factory.pipelines.bench.parts.variant_steps import Steps, write_workload
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.precision import Precision, autocast
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.batch import Batch, Sums, backpropagate
from sum_factory.trainer.interactive import InteractiveSettings
from sum_factory.trainer.run.distributed import ALONE
from sum_factory.trainer.training import make_model, open_stream

GIB = 1 << 30
STREAM_BATCH = 8


@dataclass(frozen=True)
class TrainingWork:
    """A step of how many masks and rounds, taken how many times, with the losses' grid at what stride."""

    masks: int = 30
    rounds: int = 7
    repeats: int = 3
    stride: int = 4


@dataclass(frozen=True)
class Measured:
    """Seconds of a step, the median, and the peak memory in GiB, 0 on a CPU; None if it does not fit."""

    seconds: float
    gib: float


def measure_step(
    folder: Path, model: str, variant: str, device: torch.device, precision: Precision, work: TrainingWork
) -> dict[str, Any]:
    """Return seconds and memory of a step of a variant, and what the naive step takes of them."""
    workload = replace(
        write_workload(folder, model, 1, work.masks, work.rounds), device=str(device), precision=precision
    )
    ranks = replace(ALONE, device=device)
    recipe = workload.recipe(variant)
    steps = Steps(recipe, make_model(recipe, ranks))
    sam, settings = steps.model.sam, InteractiveSettings(rounds=work.rounds)
    side = int(sam.image_encoder.img_size)

    def ours(batch: Batch) -> None:
        backpropagate(sam, None, batch, settings, 1, Sums(work.rounds), precision)

    def naive(batch: Batch) -> None:
        with autocast(device.type, precision):
            loss = naive_loss(sam, batch, settings)
        loss.backward()  # type: ignore[no-untyped-call]

    measured = _measure(ours, sam, device, work.repeats, partial(make_batch, sam, side, work.masks, work.stride))
    assert measured is not None, f"a step of {variant} of {model} does not fit into the memory of {device}"
    figures: dict[str, Any] = {"step_s": round(measured.seconds, 4), "peak_gib": round(measured.gib, 2)}
    other = _measure(naive, sam, device, work.repeats, partial(make_batch, sam, side, work.masks, 1))
    figures["naive_fits"] = other is not None
    if other is not None:
        figures |= {"naive_step_s": round(other.seconds, 4), "naive_peak_gib": round(other.gib, 2)}
        figures["step_ratio"] = round(other.seconds / measured.seconds, 2)
        if other.gib:
            figures["memory_ratio"] = round(measured.gib / other.gib, 3)
    return figures


def _measure(
    step: Callable[[Batch], None], sam: Sam, device: torch.device, repeats: int, make: Callable[[], Batch]
) -> Measured | None:
    """Take a step ``repeats`` times after one that is not timed, each of a batch of its own, as prompts are drawn from
    it; memory is what a step takes beside the model. None if that is too much."""
    seconds, gib = [], 0.0
    on_gpu = device.type == "cuda"
    for number in range(repeats + 1):
        sam.zero_grad()
        batch = make()
        if on_gpu:
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device) if on_gpu else 0
        started = time.perf_counter()
        try:
            step(batch)
        except torch.OutOfMemoryError:
            return None
        if on_gpu:
            torch.cuda.synchronize(device)
            gib = (torch.cuda.max_memory_allocated(device) - before) / GIB
        if number:
            seconds.append(time.perf_counter() - started)
    return Measured(statistics.median(seconds), gib)


def measure_stream(folder: Path, device: torch.device, photos: int, steps: int) -> dict[str, Any]:
    """Label scenes by ``vit_micro`` on the device, and return samples/s that the trainer gets of these shards.

    The samples are on the device, with masks and certainty on the grid of the losses, as a step takes them.
    """
    workload = write_workload(folder, PACKAGED, photos, 12, 7)
    automask = AutomaskSettings(points_per_side=12, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    options: dict[str, Any] = {"automask": automask, "refiner": PACKAGED, "keep_photos": True, "unit_size": 16}
    summary = run(
        RunSettings((str(folder / "images"),), str(folder / "shards"), runtime=Runtime(str(device)), **options),
        say=lambda line: None,
    )
    recipe = replace(
        workload.recipe("full"),
        method="sum",
        shards=str(folder / "shards"),
        batch=STREAM_BATCH,
        micro_batch=STREAM_BATCH,
        data_threads=4,
        device=str(device),
    )
    stream = open_stream(recipe, workload.side, replace(ALONE, device=device))
    started, samples = 0.0, 0
    for number, batch in enumerate(stream.steps(0, steps + 1)):
        for sample in batch:
            sample.on(device)
        if number:
            samples += len(batch)
        else:  # the first waits for all that is read ahead
            started = time.perf_counter()
    seconds = time.perf_counter() - started
    busy = {} if summary.gpu_busy is None else {"labelling_busy": round(summary.gpu_busy, 3)}
    return {
        "samples_per_second": round(samples / seconds, 1),
        "labelled_photos_per_second": round(summary.images_per_second, 2),
        **busy,
    }
