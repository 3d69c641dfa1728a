"""The task prompt: which kind of mask is meant (SUM, Sec. 3.2.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sum_factory.shared.sam.settings import TASKS

STATE_KEY = "task_prompt.weight"
"""Name of the table among a checkpoint's weights; plain SAM knows no such name."""


class TaskPrompt(nn.Module):
    """One learned vector per task, zero at first, added to the image embedding.

    Adding it to the dense prompt embedding is the same for plain SAM. Leaving it out is *not* the same as task 0, whose
    vector is trained like the others.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(TASKS), channels))

    def forward(self, task_ids: Tensor) -> Tensor:
        """Return the vectors (B, C) of int64 ``task_ids`` (B,)."""
        return self.weight[task_ids]


def task_id(name: str) -> int:
    """Return the id of a task. Raises ``ValueError`` for an unknown name, naming the known ones."""
    if name not in TASKS:
        raise ValueError(f"{name!r} is no task; there are {', '.join(TASKS)}")
    return TASKS.index(name)
