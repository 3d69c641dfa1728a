"""Start the processes of a run: on this machine, or as workers of Ray."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import TypeVar, cast

import torch

from sum_factory.shared.cores import divide_cores, usable_cores, usable_memory
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.checkpoint import bytes_of
from sum_factory.shared.sam.runtime import pick_device
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.checkpoints import Checkpoints
from sum_factory.trainer.run.distributed import run_on_ranks
from sum_factory.trainer.training import FitSummary, fit

Summary = TypeVar("Summary")

PROCESS_BYTES = 2 << 30
"""Memory of a training process beside its weights, in bytes."""
STATE_COPIES = 6
"""Numbers that a CPU keeps for each weight: itself, its gradient, two moments of the optimizer, and in fp64, which is
two, the sum of the gradients."""


@dataclass(frozen=True)
class OnRay:
    """Have Ray Train start the processes: on the cluster at ``address``, or on this machine if there is none.

    ``restarts`` is how often all of them are started again if one fails. A worker asks for one core, of this machine
    for its share of the cores, unless ``cpus_per_worker`` says otherwise.
    """

    address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float | None = None
    restarts: int = 0


def on_ranks(
    function: Callable[[Recipe, Path], Summary],
    recipe: Recipe,
    out: Path,
    processes: int | None = None,
    threads: int | None = None,
    ray: OnRay | None = None,
) -> Summary:
    """Call ``function``, which is ``fit`` or ``rehearse``, in so many processes of this machine, each on a device or on
    a share of ``threads`` cores; or in as many workers of Ray. Return what the first one returns.

    By default it takes all cores that this process may use, and as many processes as ``choose_processes`` returns. A
    process that ``torchrun`` started starts no others.
    """
    if ray is not None:
        return cast("Summary", _on_ray(function, recipe, out, processes, threads, ray))
    cores = threads or usable_cores()
    started_by_torchrun = "WORLD_SIZE" in os.environ
    if processes is None:
        processes = 1 if started_by_torchrun else choose_processes(recipe, out, cores)
    if processes == 1:
        if threads is not None or not started_by_torchrun:
            torch.set_num_threads(cores)
        return function(recipe, out)
    return cast("Summary", run_on_ranks(function, (recipe, out), processes, cores))


def _on_ray(
    function: Callable[[Recipe, Path], Summary],
    recipe: Recipe,
    out: Path,
    processes: int | None,
    threads: int | None,
    ray: OnRay,
) -> object:
    from sum_factory.shared.cluster.connect import Workers
    from sum_factory.trainer.run.ray_train import run_on_ray

    if "WORLD_SIZE" in os.environ:
        raise SettingsError("--launcher ray starts all processes itself: give the command without torchrun, and once")
    cores = threads or usable_cores()
    recipe = for_workers(recipe, ray.gpus_per_worker)
    if processes is None:
        processes = Checkpoints(out).processes_of(recipe.steps)
    if processes is None and (ray.address is not None or ray.gpus_per_worker):
        raise SettingsError("--launcher ray needs --processes: how many workers share each step")
    processes = processes or choose_processes(recipe, out, cores)
    here = ray.address is None
    each = ray.cpus_per_worker or (divide_cores(cores, processes) if here else 1)
    own = threads if threads is not None and not here else max(1, int(each))
    asked = Workers(processes, ray.address, ray.gpus_per_worker, each)
    return run_on_ray(function, (recipe, out.absolute()), asked, own, ray.restarts)


def for_workers(recipe: Recipe, gpus: float) -> Recipe:
    """Return the recipe on the device of workers that have so many GPUs each: "auto" is a CPU if they have none.

    Raises ``SettingsError`` if the recipe names another kind of device.
    """
    kind = "cuda" if gpus else "cpu"
    if recipe.device != "auto" and recipe.device.partition(":")[0] != kind:
        raise SettingsError(
            f"the device is {recipe.device}, and workers of Ray have {gpus:g} GPUs each: give --gpus-per-worker 1 to "
            "train on GPUs, or --device cpu"
        )
    return replace(recipe, device=kind)


def fit_on_ranks(
    recipe: Recipe,
    out: Path,
    processes: int | None = None,
    threads: int | None = None,
    ray: OnRay | None = None,
) -> FitSummary:
    """Train as ``fit``, in processes as ``on_ranks`` starts them."""
    return on_ranks(fit, recipe, out, processes, threads, ray)


def choose_processes(recipe: Recipe, out: Path, cores: int) -> int:
    """Return how many processes share each step by default: one for each core on a CPU, else one.

    There are never more than the micro-batches of a step, nor more than fit into memory. A resumed run keeps its number
    of processes, because sums in another order differ in the last bits.
    """
    recorded = Checkpoints(out).processes_of(recipe.steps)
    if recorded is not None:
        return recorded
    if pick_device(recipe.device).type != "cpu":
        return 1
    state = (STATE_COPIES + recipe.chosen_method.copies) * bytes_of(recipe.sam)
    micro_batches = ceil(recipe.photos_of(0) / recipe.micro_batch)
    return max(1, min(cores, micro_batches, usable_memory() // (PROCESS_BYTES + state)))
