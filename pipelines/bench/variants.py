"""What each variant costs: the parameters that it trains, the time of a step and its memory, against those of ``full``.

    python -m pipelines.bench.variants            # four masks in seven rounds, three steps each
    python -m pipelines.bench.variants --quick    # two masks in two rounds, one step each
    python -m pipelines.bench.variants --model vit_b    # of random weights: minutes a step on a CPU

All take the same steps in turn, in fp32 on one thread, on the same photos, masks and first prompts. The time is
processor time, the median. Memory is what two steps add to the peak of a process of their own: weights, gradients, the
optimizer's moments, and what a step keeps. Variants that begin as the SAM below have to begin with the loss of
``full``, and no variant may change a weight that it does not train. The last line is a JSON object.
"""

from __future__ import annotations

import math
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from sum_factory.pipelines.bench.parts import variant_steps
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.variant_steps import (
    Steps,
    Workload,
    peak_mb,
    take_steps,
    trained_parameters,
    write_workload,
)
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.variants import variants

MODELS = (PACKAGED, "vit_b", "vit_l", "vit_h")
BEGIN_AS_SAM = ("decoder", "lora", "adapter")
"""Variants that compute, before their first step, what the SAM below computes."""
LOSSES_AGREE = 1e-4
"""Share by which the first loss of these may be off from that of ``full``: sums in another order."""


def peaks(workload: Workload) -> dict[str, float]:
    """Return the peak memory of each variant in MB, each measured in a fresh process."""
    context = get_context("forkserver")
    context.set_forkserver_preload([variant_steps.__name__, "peft"])  # or lora would be charged with an import
    found = {}
    for name in variants():
        with Stage(f"the memory of {name}"), ProcessPoolExecutor(1, context) as pool:
            found[name] = pool.submit(peak_mb, workload, name).result()
    return found


def losses_agree(taken: dict[str, Steps]) -> bool:
    """Whether variants that begin as the SAM below begin with the loss of ``full``."""
    first = taken["full"].losses[0]
    return all(math.isclose(taken[name].losses[0], first, rel_tol=LOSSES_AGREE) for name in BEGIN_AS_SAM)


def say_parameters() -> dict[str, dict[str, int]]:
    """Print a table of trained parameters, and return their numbers by variant and model."""
    with Stage("counting parameters"):
        counts = {model: trained_parameters(model) for model in MODELS}
    click.echo(f"{'trained':12}" + "".join(f"{model:>24}" for model in MODELS))
    for name in variants():
        row = (counts[model][name] for model in MODELS)
        click.echo(f"{name:12}" + "".join(f"{count:15,} {100 * share:6.2f} %" for count, share in row))
    return {name: {model: counts[model][name][0] for model in MODELS} for name in variants()}


@click.command()
@click.option("--quick", is_flag=True, help="Two masks in two rounds, one step each.")
@click.option(
    "--model", type=click.Choice(MODELS), default=PACKAGED, show_default=True, help="What steps are taken of."
)
def main(quick: bool, model: str) -> None:
    """Compare what the variants cost."""
    torch.set_num_threads(1)
    batch, masks, rounds, repeats = (1, 2, 2, 1) if quick else (1, 4, 7, 3)
    figures: dict[str, Any] = {"trained": say_parameters()}
    with TemporaryDirectory() as folder:
        workload = write_workload(Path(folder), model, batch, masks, rounds)
        memory = peaks(workload)
        taken = take_steps(workload, list(variants()), repeats)
    assert losses_agree(taken), "variants that begin as plain SAM begin with another loss than full"
    seconds = {name: statistics.median(steps.seconds) for name, steps in taken.items()}
    click.echo(f"{model:12}{'a step, s':>12}{'of full':>10}{'peak MB':>10}{'of full':>10}")
    for name in variants():
        ratios = seconds[name] / seconds["full"], memory[name] / memory["full"]
        click.echo(f"{name:12}{seconds[name]:12.2f}{ratios[0]:10.2f}{memory[name]:10.0f}{ratios[1]:10.2f}")
        figures |= {f"step_ratio_{name}": round(ratios[0], 3), f"memory_ratio_{name}": round(ratios[1], 3)}
        figures |= {f"peak_mb_{name}": round(memory[name], 1)}
    click.echo(last_line({**figures, "full_step_cpu_s": round(seconds["full"], 3), "losses_agree": True}))


if __name__ == "__main__":
    main()
