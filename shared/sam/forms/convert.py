"""From what a file holds to the tensors of a SAM under their official names, in fp32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.sam.forms import hq_sam, hugging_face, sum_public
from sum_factory.shared.sam.forms.names import find_model, flatten, plain
from sum_factory.shared.sam.forms.reading import Read
from sum_factory.shared.sam.forms.strangers import why_incomplete, why_refused
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import STATE_KEY

PIXELS = {"pixel_mean": (123.675, 116.28, 103.53), "pixel_std": (58.395, 57.12, 57.375)}
"""Constants that some programs save among the weights."""


@dataclass(frozen=True)
class Official:
    """The weights of a SAM under their official names, fp32, all finite.

    ``task_table`` is the table of the task prompt, float32 (tasks, C), or None; ``trained_tasks`` are those whose
    vectors were trained. ``notes`` are for people: what was left out.
    """

    state: Mapping[str, Tensor]
    task_table: Tensor | None
    trained_tasks: tuple[str, ...]
    notes: tuple[str, ...]


def to_official(read: Read, where: str) -> Official:
    """Find the SAM in what was read, whatever form it has. Raises ``CheckpointError`` if there is none, by name."""
    if read.header.get("kind") == "refiner":
        raise CheckpointError(f"{where}: the weights of a refiner, not of a SAM; give it as --refiner")
    if read.config:
        hugging_face.require_config(read.config, where)
    tensors = flatten(read.content)
    names = [plain(path) for path in tensors]
    refused = why_refused(names)
    if refused is not None:
        raise CheckpointError(f"{where}: {refused}")
    found = find_model(tensors, where)
    if found is None:
        raise CheckpointError(f"{where}: {why_incomplete(names)}")
    state, note = hq_sam.sam_part(found)
    state = {name: _in_fp32(name, value, where) for name, value in state.items()}
    if hugging_face.has_names(state):
        state = hugging_face.rename(state, where)
    state = sum_public.join_task_prompt(_without_pixels(state, where), where)
    if not any(name.startswith("image_encoder.") for name in state):
        raise CheckpointError(f"{where}: {why_incomplete(names)}")
    table = state.pop(STATE_KEY, None)
    notes = () if note is None else (note,)
    return Official(state, table, _trained(read.header, table, where), notes)


def _without_pixels(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Leave the constants out that pictures are scaled with. Raises ``CheckpointError`` if they are not SAM's."""
    for name, expected in PIXELS.items():
        told = state[name].flatten().double() if name in state else torch.tensor(expected).double()
        if told.shape != (len(expected),) or not torch.allclose(told, torch.tensor(expected).double()):
            raise CheckpointError(
                f"{where}: {name} is {[round(value, 3) for value in state[name].flatten().tolist()]}, in SAM "
                f"{list(expected)}; photos that are scaled in another way are not known here"
            )
    return {name: value for name, value in state.items() if name not in PIXELS}


def _in_fp32(name: str, value: Tensor, where: str) -> Tensor:
    """Return a tensor in fp32. Raises ``CheckpointError`` if it is not made of plain, finite numbers."""
    if not value.is_floating_point() or value.layout is not torch.strided or value.is_meta:
        raise CheckpointError(
            f"{where}: {name} is of {value.dtype}, expected floating-point numbers; give weights that are not quantised"
        )
    number = value.detach().float()
    if not number.isfinite().all():
        bad = int((~number.isfinite()).sum())
        raise CheckpointError(
            f"{where}: {name} has {bad} of {number.numel()} numbers that are infinite or not a number; the file is "
            "damaged, or its training diverged: give an earlier checkpoint"
        )
    return number


def _trained(header: Mapping[str, Any], table: Tensor | None, where: str) -> tuple[str, ...]:
    """Return the tasks with a vector of their own: as the header says or, without one, those that are not zero."""
    if table is None:
        return ()
    if "trained_tasks" in header:
        told = header["trained_tasks"]
        if not isinstance(told, list) or any(task not in TASKS for task in told):
            raise CheckpointError(f"{where}: says it was trained for {told!r}; the tasks are {', '.join(TASKS)}")
        return tuple(told)
    return tuple(task for task, vector in zip(TASKS, table, strict=False) if task == TASKS[0] or vector.any())
