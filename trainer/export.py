"""Give weights to software that knows plain SAM, or HQ-SAM."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import LoadedSam, SamWeights
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.store.local_files import whole_file
from sum_factory.trainer.variants.load import load_any


def export_plain_sam(weights: str, out: Path, task: str = TASKS[0], sam: str | None = None) -> None:
    """Write weights as a ``.pth`` that ``sam_model_registry`` loads, with the vector of ``task`` folded in.

    There the model predicts for every first prompt as it does here for that task: the vector that training added to the
    image embedding goes into what every prompt without a mask adds to it. Weights without a task prompt are written as
    they are. ``sam`` is the SAM that the weights of a variant sit on, by default where it lay in training. Updates of
    LoRA are merged into it; HQ-SAM is written in its own layout. Raises ``CheckpointError``, also for a variant that no
    other software reads; ``SettingsError`` for a task that the weights were never trained for; or ``StorageError``.
    """
    state = for_task(load_any(weights, sam, for_others=True), weights, task)
    with Stage(f"writing {out}"):
        buffer = io.BytesIO()
        torch.save(dict(state.state), buffer)
        with whole_file(out) as file:
            file.write(buffer.getvalue())


def for_task(loaded: LoadedSam, weights: str, task: str) -> SamWeights:
    """Return the weights with the vector of ``task`` folded in. Raises ``SettingsError`` if they were never trained for
    it."""
    table = None if loaded.task_prompt is None else loaded.task_prompt.weight.detach()
    state, tasks = loaded.sam.state_dict(), loaded.trained_tasks
    whole = SamWeights(Path(weights), state, loaded.architecture, loaded.sha256, table, tasks, loaded.task)
    return whole.for_task(task)
