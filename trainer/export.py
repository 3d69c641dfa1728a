"""Give a SUM checkpoint to software that knows plain SAM."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.store.local_files import whole_file


def export_plain_sam(weights: str, out: Path, task: str = TASKS[0]) -> None:
    """Write weights as a ``.pth`` that ``sam_model_registry`` loads, with the vector of ``task`` folded in.

    There the model predicts for every first prompt as it does here for that task: the vector that training added to the
    image embedding goes into what every prompt without a mask adds to it. Weights without a task prompt are written as
    they are. Raises ``CheckpointError``, ``SettingsError`` for a task that they were never trained for, or
    ``StorageError``.
    """
    loaded = load_sam(weights, task=task)
    with Stage(f"writing {out}"):
        buffer = io.BytesIO()
        torch.save(dict(loaded.sam.state_dict()), buffer)
        with whole_file(out) as file:
            file.write(buffer.getvalue())
