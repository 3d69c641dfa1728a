"""Do our automatic masks agree with ``segment_anything``'s? Every difference has to be one of rounding.

Our decoder takes sums in another order, so its logits and predicted IoU differ from upstream's in the last bits. A
pixel may then fall on the other side of the threshold, if its logit is that close to it; a mask may be kept by one
side alone, if it is that close to a threshold of a filter. Whatever is not so is listed as unexplained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sum_factory.shared.automask.automask import GeneratedMasks
from sum_factory.shared.automask.rle import Rle, decode_rle
from sum_factory.shared.automask.settings import AutomaskSettings

TOLERANCE = 1e-5
"""Largest difference of predicted IoU, and of logits relative to the largest logit of a mask if that is above 1."""

Record = Mapping[str, Any]


@dataclass
class Agreement:
    """What both sides kept. ``pixels`` counts those that differ in ``common`` masks, of which ``equal`` have none."""

    ours: int
    theirs: int
    common: int = 0
    equal: int = 0
    pixels: int = 0
    boxes_equal: int = 0
    largest_iou_difference: float = 0.0
    largest_stability_difference: float = 0.0
    same_order: bool = True
    unexplained: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether both kept the same masks in the same order, equal to the pixel."""
        return self.same_order and self.ours == self.theirs == self.common == self.equal == self.boxes_equal


def compare(labels: GeneratedMasks, records: Sequence[Record], settings: AutomaskSettings) -> Agreement:
    """Compare our masks of an image with upstream's records, whose segmentations are COCO's RLE or bool (H, W)."""
    agreement = Agreement(len(labels), len(records))
    partner = _match(labels, records)
    found = [partner[k] for k in sorted(partner)]
    agreement.same_order = found == sorted(found)
    for k, mask in enumerate(labels.masks()):
        if k in partner:
            _compare_mask(labels, k, mask, records[partner[k]], agreement)
    taken = set(partner.values())
    alone = [_Kept.ours(labels, k) for k in range(len(labels)) if k not in partner]
    alone += [_Kept.theirs(record) for k, record in enumerate(records) if k not in taken]
    kept = [_Kept.ours(labels, k) for k in range(len(labels))] + [_Kept.theirs(record) for record in records]
    for one in alone:
        if not one.is_marginal(kept, settings):
            agreement.unexplained.append(f"kept by {one.side} alone: {one}")
    return agreement


def _match(labels: GeneratedMasks, records: Sequence[Record]) -> dict[int, int]:
    """Return which record each of our masks is: of the same point and crop, with the same predicted IoU."""
    partner: dict[int, int] = {}
    free = set(range(len(records)))
    for k in range(len(labels)):
        x0, y0, x1, y1 = labels.frames[k].crop_box
        for other in sorted(free):
            record = records[other]
            if (
                np.array_equal(record["point_coords"][0], labels.points[k])
                and record["crop_box"] == [x0, y0, x1 - x0, y1 - y0]
                and abs(record["predicted_iou"] - labels.predicted_iou[k]) <= TOLERANCE
            ):
                partner[k] = other
                free.discard(other)
                break
    return partner


def _compare_mask(
    labels: GeneratedMasks, k: int, mask: npt.NDArray[np.bool_], record: Record, agreement: Agreement
) -> None:
    agreement.common += 1
    theirs = record["segmentation"]
    if isinstance(theirs, Mapping):
        theirs = decode_rle(Rle(size=theirs["size"], counts=theirs["counts"]))
    different = mask != theirs
    pixels = int(np.count_nonzero(different))
    agreement.pixels += pixels
    agreement.equal += pixels == 0
    agreement.boxes_equal += labels.boxes[k].tolist() == [int(side) for side in record["bbox"]]
    difference = abs(float(labels.predicted_iou[k]) - record["predicted_iou"])
    agreement.largest_iou_difference = max(agreement.largest_iou_difference, difference)
    difference = abs(float(labels.stability[k]) - record["stability_score"])
    agreement.largest_stability_difference = max(agreement.largest_stability_difference, difference)
    if not pixels:
        return
    x0, y0, x1, y1 = labels.frames[k].crop_box
    logits = labels.frames[k].upsample(torch.from_numpy(labels.logits[k])[None])[0].numpy()
    if different.sum() != different[y0:y1, x0:x1].sum():
        agreement.unexplained.append(f"mask {k} differs outside its crop")
    distance = float(np.abs(logits[different[y0:y1, x0:x1]]).max(initial=0))
    if distance > TOLERANCE * max(1.0, float(np.abs(labels.logits[k]).max())):
        agreement.unexplained.append(f"mask {k} differs in {pixels} pixels, at logits up to {distance}")


@dataclass(frozen=True)
class _Kept:
    side: str
    predicted_iou: float
    stability: float
    area: int
    box: tuple[int, ...]

    @classmethod
    def ours(cls, labels: GeneratedMasks, k: int) -> _Kept:
        box = tuple(labels.boxes[k].tolist())
        return cls("ours", float(labels.predicted_iou[k]), float(labels.stability[k]), int(labels.areas[k]), box)

    @classmethod
    def theirs(cls, record: Record) -> _Kept:
        box = tuple(int(side) for side in record["bbox"])
        return cls("theirs", record["predicted_iou"], record["stability_score"], record["area"], box)

    def is_marginal(self, kept: Sequence[_Kept], settings: AutomaskSettings) -> bool:
        """Whether rounding could drop this mask: it is at a threshold, or in NMS as good as, or as near as, another."""
        a_pixel = 2 / max(1, self.area)
        if abs(self.predicted_iou - settings.pred_iou_thresh) <= TOLERANCE:
            return True
        if abs(self.stability - settings.stability_score_thresh) <= a_pixel:
            return True
        thresholds = (settings.box_nms_thresh, settings.crop_nms_thresh)
        for other in kept:
            overlap = _overlap(self.box, other.box)
            if other != self and abs(other.predicted_iou - self.predicted_iou) <= TOLERANCE and overlap > 0:
                return True
            if any(abs(overlap - threshold) <= a_pixel for threshold in thresholds):
                return True
        return False


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    from torchvision.ops import box_iou  # brings torch's compiler, seconds of it

    corners = [torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32) for x, y, w, h in (one, other)]
    return float(box_iou(*corners))
