"""Connect to a Ray cluster, or start one on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any

from sum_factory.shared.cluster.address import Door, found_address, require_cluster, shortened
from sum_factory.shared.cluster.folder import require_ray_folder
from sum_factory.shared.errors import WorkerError
from sum_factory.shared.progress import SPEAKER, Stage
from sum_factory.shared.signals import handlers_kept

OPEN_DOOR = (
    "has no token authentication: whoever reaches its port can run programs there as its user. Start it with "
    "RAY_AUTH_MODE=token (docs/cluster.md)"
)
GIVE_TOKEN = (
    "it lets in only those with its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on its "
    "nodes"
)


@dataclass(frozen=True)
class Workers:
    """What is asked of Ray: ``workers`` actors, each with so many GPUs and CPUs; fractions share one.

    ``address`` is that of a running cluster ("auto" finds the one of this machine); None starts one here.
    """

    workers: int
    address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0

    def each(self) -> str:
        """Say what a worker asks for."""
        return f"{self.cpus_per_worker:g} CPUs and {self.gpus_per_worker:g} GPUs"


@contextmanager
def connected(asked: Workers, heard: bool = False) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine and stop it afterwards. If workers are ``heard``, what they
    say on standard error comes here.

    Raises ``WorkerError`` if there is none at the address, or this machine has not what a single worker asks for.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA visible where no GPU is asked for
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers yield to all else, so that a busy node can still be reached: beside one other process on their core
    # they would get a thirtieth of it. Here nothing runs but what the user asked for, and is waiting for.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": heard}
    what = "starting Ray" if asked.address is None else f"connecting to Ray at {asked.address}"
    door: Door = "guarded"
    with handlers_kept(), Stage(what):
        if asked.address is None:
            require_ray_folder()
            slots = max(1, ceil(asked.workers * asked.cpus_per_worker))
            ray.init(address="local", num_cpus=slots, include_dashboard=False, **options)
        else:
            door = _join(asked.address, options)
    if door == "open":
        SPEAKER.say(f"Ray at {asked.address} {OPEN_DOOR}")
    try:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        gpus = sum(node["Resources"].get("GPU", 0.0) for node in nodes)
        if asked.address is None and gpus < asked.gpus_per_worker:
            raise WorkerError(
                f"this machine has {gpus:g} GPUs, and each worker asks for {asked.gpus_per_worker:g}; lower "
                "--gpus-per-worker, or give a cluster with --ray-address"
            )
        yield
    finally:
        with handlers_kept(), Stage("leaving Ray"):
            ray.shutdown()


def _join(address: str, options: dict[str, Any]) -> Door:
    """Connect to a running cluster; return whether it lets in everybody. Raises ``WorkerError`` if that fails."""
    import ray

    door = require_cluster(found_address(address))
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        remedy = f"; {GIVE_TOKEN}" if door == "guarded" else ""
        raise WorkerError(f"cannot join the Ray cluster at {address!r} ({shortened(str(error))}){remedy}") from error
    return door
