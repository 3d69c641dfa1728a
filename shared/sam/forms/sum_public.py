"""Weights as SUM's authors publish them: SAM, and a task prompt as four tensors of the prompt encoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY

NAMES = tuple(f"prompt_encoder.task_prompt_embedding.{task}.weight" for task in range(len(TASKS)))
LAST_BIAS = "prompt_encoder.mask_downscaling.6.bias"
"""What is added to the embedding of every mask prompt."""


def join_task_prompt(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Return the weights with the four vectors as the table that this project has.

    The authors' model always adds a vector, and that of task 0 unless another is asked for: also in the rounds with a
    mask prompt. Here these rounds get no vector, so theirs goes into the bias that the mask's embedding has anyway.
    Raises ``CheckpointError`` if there are some of the vectors and not all.
    """
    found = [name for name in NAMES if name in state]
    if not found:
        return dict(state)
    if len(found) < len(NAMES) or len({state[name].numel() for name in NAMES}) > 1 or LAST_BIAS not in state:
        raise CheckpointError(f"{where}: the task prompt is incomplete; expected {', '.join(NAMES)}, of equal size")
    table = torch.stack([state[name].flatten() for name in NAMES])
    others = {name: value for name, value in state.items() if name not in NAMES}
    if not table.any():
        return others  # it was never trained: this is plain SAM
    if table[0].numel() == others[LAST_BIAS].numel():
        others[LAST_BIAS] = others[LAST_BIAS] + table[0]
    return {**others, STATE_KEY: table}
