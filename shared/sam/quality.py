"""Which of SAM's masks are good enough to keep (SUM, App. B.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sum_factory.shared.sam.settings import THRESHOLDS_OF_MODELS


@dataclass(frozen=True)
class QualityFilter:
    """The filters of automatic masks, under upstream's names. A threshold of 0 is no filter."""

    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    max_area_share: float = 0.95
    """Masks that cover this share of the image or more are dropped."""

    @classmethod
    def of_model(cls, model_type: str) -> QualityFilter:
        """Return the default filters of a model."""
        return replace(cls(), **THRESHOLDS_OF_MODELS.get(model_type, {}))

    def keeps(self, logits: Tensor, valid: Tensor, predicted_iou: Tensor) -> Tensor:
        """Say which of P masks pass, bool (P,).

        ``logits`` float (P, H, W) at any resolution, ``valid`` bool (P, H, W) or broadcastable marks the image,
        ``predicted_iou`` is (P,). Stability is the IoU of the logits cut at +offset and at -offset.
        """
        inner = ((logits > self.stability_score_offset) & valid).flatten(1).sum(1)
        outer = ((logits > -self.stability_score_offset) & valid).flatten(1).sum(1)
        area = ((logits > 0) & valid).flatten(1).sum(1)
        cells = valid.expand_as(logits).flatten(1).sum(1)
        keep = (area > 0) & (area < self.max_area_share * cells)
        if self.pred_iou_thresh > 0:
            keep &= predicted_iou > self.pred_iou_thresh
        if self.stability_score_thresh > 0:
            keep &= inner / outer.clamp(min=1) >= self.stability_score_thresh
        return torch.as_tensor(keep)
