"""How much of SAM's masks and of the uncertainty maps an encoding keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sum_factory.pipelines.bench.parts.shard_material import Floats, LabelledPhoto
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import Frame
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.evaluation.metrics import boundary_iou

DEAD_ZONE = 2 / 255
"""Doubt up to here may be stored as none."""


@dataclass(frozen=True)
class Fidelity:
    """Means over ``masks`` masks at the photo's own size; the largest error of u where that is above the dead zone."""

    masks: int
    mask_iou: float
    mask_boundary_iou: float
    u_max_error: float


def measure_fidelity(
    photos: Sequence[LabelledPhoto], logits: Sequence[Floats], maps: Sequence[Floats], most: int
) -> Fidelity:
    """Compare what was read back of every mask of each photo, float32 (K, h, w), with SAM's own.

    Maps are compared in full, masks at the photo's size for ``most`` of them, spread evenly.
    """
    every = [(p, k) for p, photo in enumerate(photos) for k in range(len(photo))]
    chosen = [every[i] for i in np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)]
    ious, boundary_ious = [], []
    for p, k in chosen:
        frame = photos[p].frame
        truth = masks_of_sam(photos[p].s[k : k + 1], frame)[0]
        rebuilt = (frame.upsample(torch.from_numpy(logits[p][k : k + 1]))[0] > 0).numpy()
        ious.append(iou(rebuilt, truth))
        boundary_ious.append(boundary_iou(rebuilt, truth))
    errors = [largest_error(maps[p], photo.grids[2]) for p, photo in enumerate(photos)]
    return Fidelity(len(chosen), float(np.mean(ious)), float(np.mean(boundary_ious)), max(errors))


def masks_of_sam(logits: Floats, frame: Frame) -> npt.NDArray[np.bool_]:
    """Return the masks that upstream makes of logits (K, S, S) at the photo's own size, bool (K, H, W)."""
    model: Any = SimpleNamespace(image_encoder=SimpleNamespace(img_size=frame.side))
    full = Sam.postprocess_masks(model, torch.from_numpy(logits)[None], frame.input_size, frame.crop_size)
    return np.asarray((full[0] > 0).numpy(), np.bool_)


def largest_error(stored: Floats, exact: Floats) -> float:
    """Return the largest difference of maps of one shape, where ``exact`` is above the dead zone."""
    return float(np.abs(stored - exact)[exact > DEAD_ZONE].max(initial=0.0))
