"""Work in batches that become smaller when a GPU's memory runs out. Threads may share one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


@dataclass
class BatchSize:
    """How many to work on together: ``size`` is halved whenever a GPU's memory runs out, and stays so."""

    size: int
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def fit(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work``, which reads ``size`` and is called anew after each halving.

        Raises ``torch.OutOfMemoryError`` if one at a time is too much.
        """
        while True:
            tried = self.size
            try:
                return work()
            except torch.OutOfMemoryError:
                if tried == 1:
                    raise
            with self._lock:
                if self.size == tried:  # else another thread, which ran out with it, has halved it
                    self.size = tried // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # not in the handler, where the traceback still holds the tensors


def to_host(tensor: Tensor) -> Tensor:
    """Return a tensor in main memory; from a GPU by pinned memory, where a copy is several times as fast."""
    if tensor.device.type != "cuda":
        return tensor.cpu()
    there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return there
