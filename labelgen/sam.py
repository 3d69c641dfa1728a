"""The SAM that a run labels with: its weights, and what a shard set records of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sum_factory.shared.sam.checkpoint import SamWeights, read_weights
from sum_factory.shared.shards.dataset import read_dataset
from sum_factory.shared.shards.shard_set import MASKS
from sum_factory.shared.store.storage import Storage


@dataclass(frozen=True)
class RunSam:
    """What a shard set records of a SAM, the digests that it is known by, and the task that it is told, if any.

    ``weights`` are there if this process works with them: workers on Ray read their own.
    """

    identity: dict[str, object]
    known_as: tuple[str, ...]
    task: str | None
    weights: SamWeights | None


def read_sam(
    weights: str, model_type: str | None, task: str | None, recorded: Mapping[str, Any] | None, works_here: bool
) -> RunSam:
    """Read SAM's weights for a task.

    ``recorded`` is what a shard set has of the SAM of its masks, if it has any: weights that an earlier version
    recorded in its own way stay known by that. Raises as ``read_weights`` and ``SamWeights.for_task``.
    """
    read = read_weights(weights, model_type).for_task(task)
    known_as = (read.sha256, read.file_sha256)
    return RunSam(read.identity_beside(recorded), known_as, read.task, read if works_here else None)


def recorded_sam(storage: Storage) -> Mapping[str, Any] | None:
    """Return what a shard set records of the SAM that made its masks; None if there are no masks yet."""
    dataset = read_dataset(storage)
    return None if dataset is None or MASKS not in dataset.layers else dataset.layers[MASKS].weights.get("sam")
