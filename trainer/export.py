"""Give a SUM checkpoint to software that knows plain SAM."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.store.local_files import whole_file
from sum_factory.trainer.evaluate.run import load_weights


def export_plain_sam(weights: str, out: Path) -> None:
    """Write the weights without the task prompt as a ``.pth`` that ``sam_model_registry`` loads.

    There the model predicts as with no task prompt, which is not the same as with task "unspecified" if that was
    trained. Raises ``CheckpointError`` or ``StorageError``.
    """
    loaded = load_weights(weights, Runtime("cpu"))
    with Stage(f"writing {out}"):
        buffer = io.BytesIO()
        torch.save(dict(loaded.sam.state_dict()), buffer)
        with whole_file(out) as file:
            file.write(buffer.getvalue())
