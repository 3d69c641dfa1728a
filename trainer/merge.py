"""`trainer merge`: weights between those of two models of one architecture (WiSE-FT)."""

from __future__ import annotations

from pathlib import Path

from sum_factory.shared.errors import CheckpointError
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.checkpoint import LoadedSam, to_safetensors
from sum_factory.shared.sam.hq import HqMaskDecoder
from sum_factory.shared.store.local_files import whole_file
from sum_factory.trainer.methods.merging import between
from sum_factory.trainer.run.loop import software
from sum_factory.trainer.variants.load import load_any


def merge_weights(sam: str, weights: str, alpha: float, out: Path) -> None:
    """Write (1 - ``alpha``) ``sam`` + ``alpha`` ``weights`` as a plain SAM.

    Raises ``CheckpointError`` if one of them is not plain, or if they are of two architectures.
    """
    start, end = _plain(sam), _plain(weights)
    if start.architecture != end.architecture:
        raise CheckpointError(
            f"{weights}: a {end.architecture.name}, and {sam} is a {start.architecture.name}; give two of one "
            "architecture"
        )
    merged = between(start.sam.state_dict(), end.sam.state_dict(), alpha)
    made_of = {"sam": start.sha256, "weights": end.sha256, "alpha": alpha}
    header = {"kind": "merged", "model_type": start.architecture.name, "merged": made_of, "software": software()}
    with Stage(f"writing {out}"), whole_file(out) as file:
        file.write(to_safetensors(merged, header))


def _plain(weights: str) -> LoadedSam:
    """Load a model that is a plain SAM, or that can be written as one."""
    loaded = load_any(weights, for_others=True)
    if isinstance(loaded.sam.mask_decoder, HqMaskDecoder):
        raise CheckpointError(f"{weights}: an HQ-SAM, whose SAM is frozen: there is nothing of SAM's to merge")
    if loaded.task_prompt is not None:
        raise CheckpointError(
            f"{weights}: has a task prompt, which plain SAM has not; make plain weights of it with `trainer export "
            "--task TASK`, and merge these"
        )
    return loaded
