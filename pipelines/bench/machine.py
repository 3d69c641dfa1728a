"""What this machine makes of the project: the demo's first page, precision, other work beside it, and saying hello.

    python -m pipelines.bench.machine            # a few minutes
    python -m pipelines.bench.machine --quick    # fewer photos, smaller steps, fewer repeats

``demo_first_page_s``: seconds until the demo's page of labels and maps is there, a process's start included; with
``--quick`` measured on two images, then in the same process on six, and reckoned for all. ``bf16_over_fp32_step`` and
``auto_over_best_step`` are ratios of the time of a step of ``trainer fit``: the latter is that of what ``auto`` comes
to here over the better of fp32 and bf16. All three take the same steps in turn, and their losses have to agree.
``contended_wall_ratio`` and ``contended_cpu_ratio`` are those of ``pipelines.bench.contention``, the larger one of
labelling's and training's; with ``--quick`` those of labelling alone, without a process's start. ``version_cpu_s`` is
the processor time of ``labelgen --version``.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from sum_factory.pipelines.bench.contention import (
    labelling,
    labelling_here,
    measure_contention,
    prepare_photos,
    prepare_training,
    run_and_measure,
    training,
)
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.demo.plan import DemoPlan
from sum_factory.shared.precision import Precision, resolve
from sum_factory.shared.progress import Stage
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import join_ranks
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import Model, make_model, open_stream, train_step

FIRST_PAGE = """
import sys, time
from pathlib import Path
from sum_factory.pipelines.demo.announcer import Announcer
from sum_factory.pipelines.demo.plan import DemoPlan
from sum_factory.pipelines.demo.run import first_page
for number, count in enumerate(sys.argv[3:]):
    out = Path(sys.argv[1]) / str(number)
    photos, scenes = map(int, count.split("+"))
    first_page(DemoPlan(out, photos=photos, scenes=scenes), Announcer(2))
    assert (out / "labels.html").stat().st_size > 0
    (out / "seconds").write_text(str(time.time() - float(sys.argv[2])))
"""
"""Makes first pages of so many photos and scenes, one after the other, and writes down when each was there."""
FEW, MORE = 1, 3
"""Photos, and as many scenes, from which ``--quick`` reckons the time of all."""
LOSSES_AGREE = 0.1
"""Share by which the loss of the first step in bf16 may be off from that in fp32."""


@dataclass
class Steps:
    """Steps of ``trainer fit`` in one precision: the seconds of those that are timed, and the losses of all."""

    recipe: Recipe
    model: Model
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


def first_page_seconds(quick: bool) -> float:
    """Return how long the demo takes to its first page, in a process of its own."""
    plan = DemoPlan(Path())
    count = plan.photos + plan.scenes
    if not quick:
        return _first_pages((plan.photos, plan.scenes))[0]
    few, both = _first_pages((FEW, FEW), (MORE, MORE))
    return few + (both - few) / (2 * MORE) * (count - 2 * FEW)


def _first_pages(*counts: tuple[int, int]) -> list[float]:
    """Return after how many seconds the page of so many photos and scenes was there, one page after the other."""
    asked = [f"{photos}+{scenes}" for photos, scenes in counts]
    with TemporaryDirectory() as folder, Stage(f"the demo's first page: {', then '.join(asked)} photos and scenes"):
        run_and_measure([sys.executable, "-c", FIRST_PAGE, folder, str(time.time()), *asked])
        return [float((Path(folder) / str(number) / "seconds").read_text()) for number in range(len(counts))]


def take_steps(data: Path, changes: Sequence[str], repeats: int) -> dict[str, Steps]:
    """Take training steps in fp32, in bf16 and in what ``auto`` is here, in turn and on the same batches.

    ``data`` is what ``prepare_training`` made. The first steps are not timed, but for a bf16 that is emulated: it is
    taken once, as it may take half a minute.
    """
    variables = {"SHARDS": str(data / "shards"), "SCENES": str(data / "human")}
    settings = ("method=sum-confidence-uncer", "device=cpu", "optimizer.warmup=0", *changes)
    base = read_settings("microworld", Recipe, variables, settings)
    with join_ranks("cpu") as ranks:
        auto = resolve("auto", ranks.device).name
        computed_in: dict[str, Precision] = {"fp32": "fp32", "bf16": "bf16", "auto": auto}
        recipes = {name: replace(base, precision=precision) for name, precision in computed_in.items()}
        taken = {name: Steps(recipe, make_model(recipe, ranks)) for name, recipe in recipes.items()}
        side = int(taken["fp32"].model.sam.image_encoder.img_size)
        for number, samples in enumerate(open_stream(base, side, ranks).steps(0, repeats + 1)):
            for name, steps in taken.items():
                emulated = name == "bf16" and auto == "fp32"
                if emulated and number:
                    continue
                started = time.perf_counter()
                with Stage(f"step {number + 1} of {repeats + 1} in {name}"):
                    steps.losses.append(train_step(steps.recipe, steps.model, samples, number + 1, ranks)["loss"])
                if number or emulated:
                    steps.seconds.append(time.perf_counter() - started)
    return taken


def step_ratios(taken: dict[str, Steps]) -> dict[str, float | bool]:
    """Return the ratios of medians, and whether losses agree: of what ``auto`` is to the bit, of bf16 about."""
    auto = taken["auto"].recipe.precision
    fp32, bf16, best_of_auto = (min(taken[name].seconds) for name in ("fp32", "bf16", "auto"))
    exact = taken["auto"].losses == taken[auto].losses[: len(taken["auto"].losses)]
    close = math.isclose(taken["bf16"].losses[0], taken["fp32"].losses[0], rel_tol=LOSSES_AGREE)
    return {
        "fp32_step_s": round(fp32, 3),
        "bf16_over_fp32_step": round(bf16 / fp32, 2),
        "auto_over_best_step": round(best_of_auto / min(fp32, bf16), 3),
        "losses_agree": exact and close,
    }


def version_cpu_seconds(repeats: int) -> float:
    """Return the processor time of ``labelgen --version``, the median of several."""
    command = [sys.executable, "-m", "sum_factory.labelgen.cli", "--version"]
    return statistics.median(run_and_measure(command).cpu for _ in range(repeats))


@click.command()
@click.option("--quick", is_flag=True, help="Fewer photos, smaller steps, fewer repeats.")
def main(quick: bool) -> None:
    """Measure what this machine makes of the project."""
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"version_cpu_s": round(version_cpu_seconds(3), 2)}
    figures["demo_first_page_s"] = round(first_page_seconds(quick), 1)
    photos, points, scenes, steps, repeats = (2, 32, 2, 1, 1) if quick else (6, 32, 10, 3, 3)
    small = ("batch=1", "masks=2", "rounds=2", "micro_batch=1") if quick else ("rounds=4",)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_photos(folder / "photos", photos)
        prepare_training(folder / "data", scenes)
        figures |= step_ratios(take_steps(folder / "data", small, 3 if quick else 5))
        if quick:
            works = [labelling_here(folder / "photos", points)]
        else:
            works = [labelling(folder / "photos", points), training(folder / "data", steps)]
        measured = [measure_contention(work, repeats) for work in works]
    figures["contended_wall_ratio"] = round(max(each.wall_ratio for each in measured), 2)
    figures["contended_cpu_ratio"] = round(max(each.cpu_ratio for each in measured), 2)
    assert figures["losses_agree"], "the losses of the same step differ between precisions"
    for name, value in figures.items():
        click.echo(f"{name:24} {value}")
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
