"""The protocol of evaluation as anybody would write it: one mask at a time, whole photos, OpenCV and torch.

Masks are decoded in the groups of ``trainer.evaluation.protocol``, so that their logits are the same numbers: a decoder
rounds differently in groups of another size. All else is of one mask and over all of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.sam.decode import NEGATIVE, PAD, POSITIVE, Prompts, decode_prompts
from sum_factory.shared.sam.upstream import Sam

Mask = npt.NDArray[np.bool_]
Score = tuple[int, int, float, float, float]
"""Mask, round, IoU, boundary IoU, predicted IoU."""
ROUNDING = 0.01
"""By how many pixels OpenCV's distances may be wrong, at most."""


@dataclass
class _Target:
    mask: Mask
    points: list[tuple[int, int]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    logits: Tensor | None = None
    found: Mask | None = None


def play_plainly(sam: Sam, embedding: Tensor, masks: list[Mask], rounds: int) -> list[tuple[Score, Mask]]:
    """Play ``rounds`` from a point, with the oracle's output; return what came of each round of each mask."""
    targets = [_Target(mask) for mask in masks]
    played = []
    for number in range(1, rounds + 1):
        for target in targets:
            _click(target)
        for count in sorted({len(target.points) for target in targets}):
            group = [k for k, target in enumerate(targets) if len(target.points) == count]
            for k, predicted_iou in zip(group, _decode(sam, embedding, [targets[k] for k in group]), strict=True):
                found = targets[k].found
                assert found is not None, "it was decoded"
                scores = iou(found, masks[k]), iou(band(found), band(masks[k]))
                played.append(((k, number, *scores, predicted_iou), found))
    return played


def iou(mask: Mask, other: Mask) -> float:
    """Return the IoU of two masks."""
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0


def band(mask: Mask) -> Mask:
    """Return the boundary of a mask, as the authors of boundary IoU do."""
    width = max(1, round(0.02 * float(np.hypot(*mask.shape))))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return np.asarray((mask.astype(np.uint8) - eroded) > 0)


def deepest(region: Mask) -> tuple[int, int, int]:
    """Return x, y and squared depth of the deepest pixel of a region, the first of equal ones."""
    padded = np.pad(region.astype(np.uint8), 1)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    near = np.flatnonzero(distance >= distance.max() - ROUNDING)
    squared = np.rint(distance.ravel()[near].astype(np.float64) ** 2)
    y, x = divmod(int(near[squared.argmax()]), region.shape[1])
    return x, y, int(squared.max())


def _click(target: _Target) -> None:
    found = np.zeros_like(target.mask) if target.found is None else target.found
    missed, wrong = deepest(target.mask & ~found), deepest(found & ~target.mask)
    if missed[2] == wrong[2] == 0:
        return
    x, y, _ = missed if missed[2] >= wrong[2] else wrong
    target.points.insert(0, (x, y))
    target.labels.insert(0, POSITIVE if missed[2] >= wrong[2] else NEGATIVE)


def _decode(sam: Sam, embedding: Tensor, targets: list[_Target]) -> list[float]:
    height, width = targets[0].mask.shape
    side = int(sam.image_encoder.img_size)
    scale = side / max(height, width)
    inside = int(height * scale + 0.5), int(width * scale + 0.5)
    to_input = np.array((inside[1] / width, inside[0] / height))
    coords = np.stack([np.array([*target.points]) * to_input for target in targets])
    logits_before = [target.logits for target in targets if target.logits is not None]
    logits, predicted = decode_prompts(
        sam,
        embedding,
        torch.zeros(len(targets), dtype=torch.long),
        Prompts(
            F.pad(torch.from_numpy(coords).float(), (0, 0, 0, 1)),
            torch.tensor([[*target.labels, PAD] for target in targets]),
            torch.stack(logits_before) if logits_before else None,
        ),
    )
    reported = []
    for k, target in enumerate(targets):
        best = -1.0
        several = range(1, logits.shape[1]) if target.logits is None and logits.shape[1] > 1 else range(1)
        for each in several:
            square = F.interpolate(logits[k : k + 1, each : each + 1], (side, side), mode="bilinear")
            whole = F.interpolate(square[..., : inside[0], : inside[1]], (height, width), mode="bilinear")
            mask = (whole[0, 0] > 0).numpy()
            overlap = iou(mask, target.mask)
            if overlap > best:
                best, chosen, target.found = overlap, each, mask
        target.logits = logits[k, chosen : chosen + 1]
        reported.append(float(predicted[k, chosen]))
    return reported
