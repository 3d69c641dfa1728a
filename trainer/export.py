"""Give weights to software that knows plain SAM, or HQ-SAM."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import torch

from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import LoadedSam, SamWeights, to_safetensors
from sum_factory.shared.sam.hq import HqMaskDecoder
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.store.local_files import is_stream, whole_file
from sum_factory.trainer.model_card import model_card
from sum_factory.trainer.run.loop import software
from sum_factory.trainer.variants.load import load_any

PlainFormat = Literal["sam", "safetensors"]
UPSTREAM = ("vit_b", "vit_l", "vit_h")
"""The architectures that ``segment_anything`` knows."""


def export_plain_sam(
    weights: str, out: Path, task: str = TASKS[0], sam: str | None = None, format: PlainFormat = "sam"
) -> None:
    """Write weights under SAM's own names, with the vector of ``task`` folded in, and a card beside them.

    ``format`` "sam" is a ``.pth`` that ``sam_model_registry`` loads, "safetensors" the same tensors in a file that runs
    nothing. There the model predicts for every first prompt as it does here for that task: the vector that
    training added to the image embedding goes into what every prompt without a mask adds to it. Weights without a task
    prompt are written as they are. ``sam`` is the SAM that the weights of a variant sit on, by default where it lay in
    training. Updates of LoRA are merged into it; HQ-SAM is written in its own layout. The card is ``out`` with ``.md``
    behind it; a pipe gets none. Raises ``CheckpointError``, also for a variant that no other software reads;
    ``SettingsError`` for a task that the weights were never trained for; or ``StorageError``.
    """
    loaded = load_any(weights, sam, for_others=True)
    state = dict(for_task(loaded, weights, task).state)
    with Stage(f"writing {out}"):
        with whole_file(out) as file:
            file.write(_pickled(state) if format == "sam" else _as_safetensors(state, loaded, task))
        if not is_stream(out):
            card = model_card(loaded, weights, task, _use(loaded, out.name, format))
            with whole_file(card_of(out)) as file:
                file.write(card.encode())


def _use(loaded: LoadedSam, name: str, format: PlainFormat) -> str:
    """Return the lines of Python that load an exported file of this name."""
    model = loaded.architecture.name
    if model not in UPSTREAM:
        return (
            f"`segment_anything` knows no `{model}`; this software loads it:\n\n"
            f'    from sum_factory.shared.sam.checkpoint import load_sam\n\n    sam = load_sam("{name}").sam'
        )
    package = "segment_anything_hq" if isinstance(loaded.sam.mask_decoder, HqMaskDecoder) else "segment_anything"
    registry = f"    from {package} import sam_model_registry\n"
    if format == "sam":
        return f'{registry}\n    sam = sam_model_registry["{model}"](checkpoint="{name}")'
    loaded_by = f'    sam = sam_model_registry["{model}"]()\n    sam.load_state_dict(load_file("{name}"))'
    return f"    from safetensors.torch import load_file\n{registry}\n{loaded_by}"


def card_of(out: Path) -> Path:
    """Return where the card of an exported file lies."""
    return out.with_name(f"{out.name}.md")


def _pickled(state: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _as_safetensors(state: dict[str, torch.Tensor], loaded: LoadedSam, task: str) -> bytes:
    told = {"kind": "sam", "model_type": loaded.architecture.name, "exported_from": loaded.sha256}
    return to_safetensors(state, {**told, "task": task, "software": software()})


def for_task(loaded: LoadedSam, weights: str, task: str) -> SamWeights:
    """Return the weights with the vector of ``task`` folded in. Raises ``SettingsError`` if they were never trained for
    it."""
    table = None if loaded.task_prompt is None else loaded.task_prompt.weight.detach()
    state, tasks = loaded.sam.state_dict(), loaded.trained_tasks
    whole = SamWeights(Path(weights), state, loaded.architecture, loaded.sha256, table, tasks, loaded.task)
    return whole.for_task(task)
