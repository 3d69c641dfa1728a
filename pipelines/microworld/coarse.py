"""Coarse masks: what a data engine that loses thin structures would have annotated.

SAM's own training masks came from a model in the loop; fences became panels, rods disappeared, outlines
were rounded. ``coarsen`` does the same to an exact mask, as a fixed function of it, so that a model
trained on coarse masks is *systematically* wrong, and sure of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.microworld.scene import Scene


@dataclass(frozen=True)
class Coarseness:
    """How much detail is lost. Lengths and areas are pixels of the 256 px scene."""

    close: int = 11
    """Gaps narrower than this are filled."""
    largest_hole: int = 400
    """Holes up to this area are filled."""
    open: int = 9
    """Structures narrower than this are dropped."""
    smooth: float = 2.5
    """Standard deviation of the blur that rounds the outline."""
    minimum_area: int = 150
    """Components and masks smaller than this were never annotated."""
    smallest_component: float = 0.2
    """Components smaller than this share of the largest are dropped."""


def coarsen(mask: npt.NDArray[np.bool_], coarseness: Coarseness) -> npt.NDArray[np.bool_]:
    """Return the coarse version of one exact mask, bool (H, W) in and out; it may be empty."""
    margin = coarseness.close
    padded = np.pad(mask.astype(np.uint8), margin)
    solid = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(coarseness.close))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(1 - solid, connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] <= coarseness.largest_hole
    small[0] = False  # label 0 is the mask itself
    filled = np.asarray(solid, np.uint8) | small[labels].astype(np.uint8)
    opened = cv2.morphologyEx(filled, cv2.MORPH_OPEN, _disc(coarseness.open))
    opened = opened[margin:-margin, margin:-margin]
    blurred = cv2.GaussianBlur(opened * np.uint8(255), (0, 0), coarseness.smooth)
    return _drop_crumbs((blurred > 127).astype(np.uint8), coarseness)


def coarse_masks(scene: Scene, coarseness: Coarseness | None = None) -> npt.NDArray[np.bool_]:
    """Return the coarse entity and part masks of a scene, bool (K, S, S); never its salient groups."""
    coarseness = coarseness or Coarseness()
    exact = np.concatenate([scene.masks("entity"), scene.masks("part")])
    coarse = [coarsen(mask, coarseness) for mask in exact]
    kept = [mask for mask in coarse if mask.any()]
    return np.stack(kept) if kept else np.zeros((0, *scene.image.shape[:2]), bool)


def _drop_crumbs(mask: npt.NDArray[np.uint8], coarseness: Coarseness) -> npt.NDArray[np.bool_]:
    """Keep the components that are large in themselves and beside the largest one."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA]
    areas[0] = 0
    keep = areas >= max(coarseness.minimum_area, coarseness.smallest_component * int(areas.max()))
    return np.asarray(keep[labels])


def _disc(diameter: int) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (diameter, diameter)), np.uint8)
