"""Three photos with masks, a tiny SAM, and its scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.shared.sam.architecture import SamArchitecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, LabelMapsSettings, SetSettings
from sum_factory.trainer.evaluation.run import SetScores, evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol

TINY = SamArchitecture("tiny", 32, 2, 2, (), 64, window_size=0, prompt_dim=32, decoder_mlp_dim=32)
SIZES = {"x": (50, 70), "y": (66, 40), "z": (80, 80)}
Masks = npt.NDArray[np.bool_]


def shapes(key: str) -> Masks:
    """Three masks of a photo that do not touch, bool (3, H, W)."""
    height, width = SIZES[key]
    drawn = np.zeros((3, height, width), np.uint8)
    cv2.circle(drawn[0], (width // 4, height // 4), 9, 1, -1)
    cv2.rectangle(drawn[1], (width // 2 + 2, 3), (width - 3, height // 3), 1, -1)
    cv2.ellipse(drawn[2], (width // 2, 3 * height // 4), (width // 3, 7), 0, 0, 360, 1, -1)
    return drawn > 0


def pairs(world: Path, **changes: Any) -> FolderPairsSettings:
    settings = {"kind": "folder-pairs", "images": world / "images", "masks": world / "masks", "task": "salient"}
    return FolderPairsSettings(**{**settings, "name": "pairs", **changes})


def labels(world: Path, **changes: Any) -> LabelMapsSettings:
    settings = {"kind": "label-maps", "images": world / "images", "labels": world / "labels", "task": "part"}
    return LabelMapsSettings(**{**settings, "name": "labels", **changes})


def coco(world: Path, **changes: Any) -> CocoSettings:
    settings = {"kind": "coco", "images": world / "images", "annotations": world / "instances.json", "task": "entity"}
    return CocoSettings(**{**settings, "name": "coco", **changes})


def evaluated(
    weights: LoadedSam, *sets: SetSettings, protocol: Protocol | None = None, **options: Any
) -> list[SetScores]:
    return list(evaluate_sets(weights, sets, [protocol or Protocol(rounds=2)], **options))


def scores_of(result: SetScores) -> dict[tuple[Any, ...], tuple[float, float, float]]:
    """The scores of a set by image, mask, protocol and round."""
    return {
        (r["image"], r["mask"], r["first"], r["output"], r["round"]): (r["iou"], r["boundary_iou"], r["predicted_iou"])
        for r in result.rows.to_pylist()
    }


@contextmanager
def counted_embeddings(weights: LoadedSam) -> Iterator[list[int]]:
    """Count the images that the encoder embeds."""
    seen: list[int] = []
    handle = weights.sam.image_encoder.register_forward_hook(lambda *_: seen.append(1))
    yield seen
    handle.remove()
