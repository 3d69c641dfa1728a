"""Several processes share each step, started by Ray Train: workers of a cluster, or of a Ray that is started here."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sum_factory.shared.cluster.address import shortened
from sum_factory.shared.cluster.connect import Workers, connected
from sum_factory.shared.errors import SettingsError, SumError, WorkerError
from sum_factory.trainer.run.distributed import GRACE_SECONDS, LONGEST_WAIT, is_consequence

STARTS = 5
"""How often Ray tries to start all workers, a minute each, before a cluster is taken for too small."""


def require_ray_train() -> None:
    """Raise ``SettingsError`` if Ray Train cannot be imported: it needs more than Ray does."""
    try:
        import ray.train.torch  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            f"--launcher ray needs Ray Train, and something that it needs is not installed ({shortened(str(error))}): "
            "pip install 'sum-factory[ray-train]', on all nodes"
        ) from error


def run_on_ray(
    function: Callable[..., object], arguments: Sequence[object], asked: Workers, threads: int, restarts: int = 0
) -> object:
    """Call ``function`` in so many workers of Ray, of ``threads`` threads each, as ``torchrun`` would start them;
    return what the first one returned.

    If one fails, all are started again, up to ``restarts`` times. Raises the first ``SumError`` that one of them
    raised, and ``WorkerError`` if one died or there are not enough.
    """
    require_ray_train()
    os.environ.setdefault("RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING", "0")
    os.environ.setdefault("RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING", "0")
    os.environ.setdefault("TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S", f"{GRACE_SECONDS:.0f}")
    from ray import train
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    on_gpu = asked.gpus_per_worker > 0
    resources = {"CPU": asked.cpus_per_worker, **({"GPU": asked.gpus_per_worker} if on_gpu else {})}
    work = {"function": function, "arguments": tuple(arguments), "threads": threads, "folder": os.getcwd()}
    with connected(asked, heard=True), TemporaryDirectory(prefix="ray-train-") as folder:
        trainer = TorchTrainer(
            _work,
            train_loop_config=work,
            torch_config=TorchConfig(backend="nccl" if on_gpu else "gloo", timeout_s=int(LONGEST_WAIT.total_seconds())),
            scaling_config=train.ScalingConfig(
                num_workers=asked.workers, use_gpu=on_gpu, resources_per_worker=resources
            ),
            run_config=train.RunConfig(
                storage_path=folder,
                failure_config=train.FailureConfig(max_failures=restarts, controller_failure_limit=STARTS),
            ),
        )
        try:
            return trainer.fit().return_value
        except TrainingFailedError as error:
            raise cause_of(error, asked) from error


def _work(work: dict[str, Any]) -> object:
    """Call the function in a worker, which Ray has joined with the others, in the driver's folder if it is there."""
    with suppress(OSError):
        os.chdir(work["folder"])
    torch.set_num_threads(work["threads"])
    return work["function"](*work["arguments"])


def cause_of(error: Exception, asked: Workers) -> Exception:
    """Return what to raise of what Ray Train raised: the first cause that a worker told of, if one did."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    raised = [getattr(each, "_base_exc", each) for _, each in sorted(failures.items())]
    told = sorted((each for each in raised if isinstance(each, SumError)), key=is_consequence)
    if told and not is_consequence(told[0]):
        return told[0]
    own = [
        each for each in failures.values() if hasattr(each, "_base_exc") and not isinstance(each._base_exc, SumError)
    ]
    if own:
        return error  # a fault of the program, with its traceback
    if len(told) == len(raised) and told:
        return told[0]
    if not failures:
        return WorkerError(
            f"Ray has not started {asked.workers} training workers, which ask for {asked.each()} each "
            f"({shortened(str(error))}); lower --processes, --cpus-per-worker or --gpus-per-worker, or add nodes"
        )
    died = ", ".join(str(rank) for rank, each in sorted(failures.items()) if not hasattr(each, "_base_exc"))
    return WorkerError(
        f"of {asked.workers} training workers {died} died or could not be reached; look at what it says above, and at "
        "the memory. The same command goes on from the last checkpoint"
    )
