"""How far automatic masks of the levels in bf16 are from exact ones, by ``vit_micro``, which has trained weights.

A mask of one level is the mask of another that it fits best, if they have more in common than not. As each mask is
taken once, the pairs are those of the assignment whose IoUs add up to the most.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from sum_factory.pipelines.microworld.scene import make_scenes
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.exactness import LEVELS, Exactness
from sum_factory.shared.images import RgbImage
from sum_factory.shared.progress import track
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime, move_to_device
from sum_factory.shared.sam.settings import PACKAGED

SEED = 11
MATCHED_IOU = 0.5
"""Masks that have less in common are different masks."""


@dataclass(frozen=True)
class Difference:
    """What a level makes of photos, beside ``exact``: how many keep another number of masks, and of masks that both
    keep the mean IoU. ``unmatched`` counts masks of either that the other lacks."""

    photos: int
    another_number: int
    masks: int
    unmatched: int
    mean_iou: float

    def figures(self) -> dict[str, float]:
        """Return it for the last line of a benchmark."""
        return {
            "photos": self.photos,
            "photos_with_another_number_of_masks": self.another_number,
            "masks": self.masks,
            "unmatched": self.unmatched,
            "mean_iou_of_matched": round(self.mean_iou, 5),
        }

    def line(self) -> str:
        """Return it for people."""
        return (
            f"{self.another_number} of {self.photos} photos keep another number of masks than at exact ({self.masks} "
            f"there, {self.unmatched} masks without a partner); mean IoU of matched masks {self.mean_iou:.5f}"
        )


def compare_levels(photos: int, device: str = "cpu", points: int | None = None) -> Mapping[Exactness, Difference]:
    """Return what each level but ``exact`` makes of so many scenes, on a grid of so many points per side."""
    images = [scene.image for scene in make_scenes(SEED, 0, photos)]
    exact, *others = LEVELS
    reference = list(_label(exact, images, device, points))
    found = {level: difference(reference, list(_label(level, images, device, points))) for level in others}
    assert all(each.mean_iou for each in found.values()), "a level that keeps no mask differs in none"
    return found


def _label(level: Exactness, images: list[RgbImage], device: str, points: int | None) -> Iterator[GeneratedMasks]:
    sam = move_to_device(load_sam().sam, Runtime(device, level))
    generator = LabelGenerator(sam, settings_for(PACKAGED, points_per_side=points), exactness=level)
    for image in track(images, f"labelling at {level}", "image"):
        yield generator.label(image)


def difference(reference: list[GeneratedMasks], found: list[GeneratedMasks]) -> Difference:
    """Compare the masks of photos with those of the same photos at ``exact``."""
    ious, unmatched, another = [np.zeros(0)], 0, 0
    for one, other in zip(reference, found, strict=True):
        matched = matched_ious(one, other)
        ious.append(matched)
        unmatched += len(one) + len(other) - 2 * len(matched)
        another += len(one) != len(other)
    together = np.concatenate(ious)
    masks = sum(map(len, reference))
    return Difference(len(found), another, masks, unmatched, float(together.mean()) if len(together) else 0.0)


def matched_ious(one: GeneratedMasks, other: GeneratedMasks) -> npt.NDArray[np.float64]:
    """Return the IoU of each pair of masks of a photo that are taken for the same."""
    if not len(one) or not len(other):
        return np.zeros(0)
    overlaps = np.asarray(coco.iou(one.rles(), other.rles(), [0] * len(other)), np.float64)
    pairs: npt.NDArray[np.float64] = overlaps[linear_sum_assignment(overlaps, maximize=True)]
    return pairs[pairs > MATCHED_IOU]
