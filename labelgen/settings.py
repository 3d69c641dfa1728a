"""Settings that decide what labelling makes. Nothing here needs torch: the command line shows them as options."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sum_factory.labelgen.formulas import FORMULAS
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.sam.settings import THRESHOLDS_OF_MODELS

UNIT_SIZE = 256
"""Images a unit."""
REFINEMENT_SOURCE = "refinement"
SOURCES = (REFINEMENT_SOURCE, *FORMULAS)
"""Where uncertainty comes from: a refiner, or SAM's own confidence in one of two ways."""


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


@dataclass(frozen=True)
class UncertaintySettings:
    """Where u comes from, one of ``SOURCES``. Raises ``SettingsError`` for settings that contradict each other.

    Masks of fewer than ``min_refine_area`` pixels of a photo that is 1024 pixels long are not refined: by decree
    they are certain, u = 0, and their own refined label, as in the method's published code (100 * 100 there). It is
    the one case of a map that nobody computed.
    """

    source: str = REFINEMENT_SOURCE
    """refinement: how far a refiner's mask differs from SAM's. confidence or entropy: how unsure SAM itself is."""
    min_refine_area: int = 0
    """Masks of fewer pixels, in a photo whose longer side is 1024, are not refined but taken as certain. 0 refines
    all."""

    @property
    def needs_refiner(self) -> bool:
        """Whether maps of this source are made with a refiner."""
        return self.source == REFINEMENT_SOURCE

    def __post_init__(self) -> None:
        if self.source not in SOURCES:
            raise SettingsError(f"{self.source!r} is no source of uncertainty; there are {', '.join(SOURCES)}")
        if self.min_refine_area and not self.needs_refiner:
            raise SettingsError(f"min_refine_area is about refining; source {self.source} refines nothing")
