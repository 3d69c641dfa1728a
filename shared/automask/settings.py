"""Settings that decide which masks are made of a photo. Nothing here needs torch: the command line shows them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sum_factory.shared.sam.settings import THRESHOLDS_OF_MODELS

POINTS_OF_MODELS = {"vit_micro": {"points_per_side": 28}}
"""A grid as dense as a model is fine: ``vit_micro`` draws on 64 x 64 cells. These keep 95 % of the masks that 32 x 32
points keep (docs/vit_micro.md)."""
DEFAULTS_OF_MODELS = {
    model: {**THRESHOLDS_OF_MODELS.get(model, {}), **POINTS_OF_MODELS.get(model, {})}
    for model in {**THRESHOLDS_OF_MODELS, **POINTS_OF_MODELS}
}
"""Settings whose defaults are a model's own."""


@dataclass(frozen=True)
class AutomaskSettings:
    """Settings that decide which masks are kept. Names and meaning are upstream's, but for the last.

    As upstream, a threshold of 0 is no filter. Unlike upstream, a mask without a single pixel is never kept.
    """

    points_per_side: int = 32
    """Points along each side of the grid: 32 asks SAM for masks at 32 x 32 points. Fewer take less time, and find
    less."""
    pred_iou_thresh: float = 0.88
    """Masks are dropped unless SAM predicts a larger IoU for them. Lower it for more masks of less quality."""
    stability_score_thresh: float = 0.95
    """Masks of a lower stability score are dropped: the IoU of the mask at a higher and at a lower threshold."""
    stability_score_offset: float = 1.0
    """How far, in logits, the two thresholds of the stability score lie above and below that of masks."""
    box_nms_thresh: float = 0.7
    """Of two masks whose boxes have a larger IoU, the one of lower predicted IoU is dropped as a duplicate."""
    crop_n_layers: int = 0
    """Layers of crops that are labelled beside the whole photo: layer i has 4^i crops. More find smaller objects, and
    take many times as long."""
    crop_nms_thresh: float = 0.7
    """Of two masks of different crops whose boxes have a larger IoU, the one of the larger crop is dropped."""
    crop_overlap_ratio: float = 512 / 1500
    """How far the crops of layer 1 overlap, as a share of the photo's shorter side; in each further layer half as
    far."""
    crop_n_points_downscale_factor: int = 1
    """In layer i of crops, the points along a side of the grid are divided by this to the power of i."""
    min_mask_region_area: int = 0
    """Holes and islands of masks with fewer pixels of the photo are filled and removed. 0 leaves masks as they are."""
    max_area_share: float = 0.95
    """Masks that cover this share of the photo or more are dropped: they are mostly background."""


def settings_for(model_type: str, **chosen: float | None) -> AutomaskSettings:
    """Return the settings ``chosen``, with the defaults of a model for those that are missing or None."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(AutomaskSettings(), **{**DEFAULTS_OF_MODELS.get(model_type, {}), **given})  # type: ignore[arg-type]
