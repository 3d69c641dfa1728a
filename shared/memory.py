"""Work in batches that become smaller when a GPU's memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

Result = TypeVar("Result")


@dataclass
class BatchSize:
    """How many to work on together: ``size`` is halved whenever a GPU's memory runs out, and stays so."""

    size: int

    def fit(self, work: Callable[[], Result]) -> Result:
        """Return the result of ``work``, which reads ``size`` and is called anew after each halving.

        Raises ``torch.OutOfMemoryError`` if one at a time is too much.
        """
        while True:
            try:
                return work()
            except torch.OutOfMemoryError:
                if self.size == 1:
                    raise
            self.size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # not in the handler, where the traceback still holds the tensors
