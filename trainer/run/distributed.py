"""Several processes share each step, each on a device of its own: started by ``torchrun``, or here on one machine."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessExitedException, spawn

from sum_factory.shared.cores import divide_cores
from sum_factory.shared.errors import SumError, WorkerError
from sum_factory.shared.progress import hushed
from sum_factory.shared.sam.runtime import pick_device, require_device
from sum_factory.trainer.run.heartbeat import LOST_STATUS, heard_of

T = TypeVar("T")

LONGEST_WAIT = timedelta(minutes=30)
"""How long processes wait for one another: the others wait while the first one saves, and for the slowest data."""

GRACE_SECONDS = 5.0
"""How long processes may take to end when another one has died, before they are killed."""


@dataclass(frozen=True)
class Ranks:
    """This process's number, how many there are, and this one's device."""

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        self.sum_tensor(flat)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def sum_tensor(self, values: Tensor) -> None:
        """Add up a tensor of all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Add up numbers over all processes."""
        total = torch.tensor(values, dtype=torch.float64, device=self.device if self.count > 1 else None)
        self.sum_tensor(total)
        summed: list[float] = total.tolist()
        return summed

    def gather(self, own: T) -> list[T]:
        """Return what each process has, in the order of their numbers; any object that can be pickled."""
        if self.count == 1:
            return [own]
        gathered: list[T] = [own] * self.count
        distributed.all_gather_object(gathered, own)
        return gathered

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            distributed.barrier()


ALONE = Ranks(0, 1, torch.device("cpu"))
"""A process that shares its steps with no other."""


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` started, or Ray, which has joined them; ``device`` "auto" gives each process
    a GPU of its own, if any.

    Raises ``WorkerError`` if another process dies meanwhile, at the next time that this one needs it. Ends this process
    if another one is not heard of: stopped, or on a machine that is gone.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(0, 1, require_device(pick_device(device)))
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else pick_device(device)
    if on_gpu:
        torch.cuda.set_device(own)
    if not distributed.is_initialized():
        _join("nccl" if on_gpu else "gloo")
    try:
        ranks = Ranks(distributed.get_rank(), count, own)
        with hushed(not ranks.leads), _heard_of():
            yield ranks
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).splitlines()[0].partition(". ")[0]
        raise WorkerError(
            f"process {distributed.get_rank()} of {count} has lost the others ({reason}): one of them has died, or "
            "kept the others waiting too long; look at what it says, and at the memory. The same command goes on from "
            "the last checkpoint"
        ) from error
    finally:
        distributed.destroy_process_group()


def _heard_of() -> AbstractContextManager[None]:
    store = distributed.distributed_c10d._get_default_store()
    distributed.barrier()  # all are there: nobody is waited for who has not begun
    return heard_of(store, distributed.get_rank(), distributed.get_world_size())


def _join(backend: str) -> None:
    """Join the process group.

    When ``torchrun`` starts processes again, the store that it kept still holds where the dead ones could be reached.
    On one machine all know how often they were started, so each time has names of its own in the store.
    """
    started, ranks = os.environ.get("TORCHELASTIC_RESTART_COUNT"), os.environ["WORLD_SIZE"]
    if started is None or os.environ.get("LOCAL_WORLD_SIZE") != ranks:
        distributed.init_process_group(backend, timeout=LONGEST_WAIT)
        return
    store, rank, count = next(rendezvous("env://", timeout=LONGEST_WAIT))
    own = distributed.PrefixStore(f"start {started}", store)  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=LONGEST_WAIT)


def run_on_ranks(function: Callable[..., object], arguments: Sequence[object], processes: int, cores: int) -> object:
    """Call ``function`` in so many processes of this machine, as ``torchrun`` would start them; return what the first
    one returned.

    ``cores`` are divided among them. Raises the first ``SumError`` that one of them raised.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results: SimpleQueue[object] = get_context("spawn").SimpleQueue()
    died: ProcessExitedException | None = None
    try:
        started = spawn(  # type: ignore[no-untyped-call]
            _run_rank, (processes, cores, port, results, function, tuple(arguments)), nprocs=processes, join=False
        )
        while not started.join(grace_period=GRACE_SECONDS):
            pass
    except ProcessExitedException as error:
        died = error
    said = []
    while not results.empty():
        said.append(results.get())
    if died is not None and died.exit_code == LOST_STATUS:
        raise WorkerError(
            f"one of {processes} training processes was stopped: the others have not heard of it. The same command "
            "goes on from the last checkpoint"
        ) from died
    errors = sorted((each for each in said if isinstance(each, SumError)), key=is_consequence)
    if died is not None and all(map(is_consequence, errors)) and (died.signal_name or not errors):
        raise WorkerError(
            f"one of {processes} training processes died ({died}); look at the memory. The same command goes on from "
            "the last checkpoint"
        ) from died
    if errors:
        raise errors[0]
    return said[0]


def is_consequence(error: SumError) -> bool:
    """Whether an error may be that of a process which lost another one."""
    return isinstance(error, WorkerError)


def _run_rank(
    rank: int,
    processes: int,
    cores: int,
    port: int,
    results: SimpleQueue[object],
    function: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(divide_cores(cores, processes))
    try:
        result = function(*arguments)
    except SumError as error:
        results.put(error)
        sys.exit(1)
    if rank == 0:
        results.put(result)
