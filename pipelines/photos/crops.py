"""What a step of pre-training sees of a photo: a crop of it, flipped, turned a little, with things pasted onto it.

A crop is a square of the photo, scaled to the square input of the model; beyond the photo it is padded, right and
below, as a photo is for SAM. Lengths are shares of the longer side of the photo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.pipelines.photos.corpus import WHOLE, KeptPhoto, PhotoCorpus

Masks = npt.NDArray[np.bool_]
Image = npt.NDArray[np.float32]

PADDING = (123.675, 116.28, 103.53)
"""SAM's mean pixel, which is 0 once it is normalised: what padding is."""
WHOLE_SHARE = 0.4
"""Share of the images that are the whole photo, as inference sees it."""
ZOOMS = (0.8, 2.2)
"""How much larger than whole the photo is seen in other images; below 1 it is padded on both sides."""
TURN = 12.0
"""Degrees by which other images are turned at most."""
GREY_SHARE = 0.1
PASTED_SHARE = 0.5
MOST_PASTED = 2
PASTED_SIZES = (0.2, 0.65)
"""Longer side of the box of a pasted thing, as a share of the image."""
DONOR_SHARES = (0.01, 0.6)
"""Share of its own photo that a pasted thing covers: more of it is a background."""
LEAST_SEEN = 0.35
"""Share of a mask that has to be in the crop and not covered."""
LEAST_PIXELS = 30
"""Pixels of a target, at least."""
TRIES = 6


@dataclass(frozen=True)
class Crop:
    """A square of a photo with its top left corner at (``left``, ``top``), turned about its middle by ``turn`` radians.

    With ``mirrored`` in it is of the photo that was mirrored first; ``width`` is the photo's.
    """

    left: float
    top: float
    side: float
    width: float
    turn: float = 0.0
    mirrored: bool = False

    def sample(self, raster: npt.NDArray[Any], side: int, border: Any = 0) -> npt.NDArray[Any]:
        """Return what a raster (H, W) or (H, W, 3) shows in the crop, at ``side`` x ``side`` pixels."""
        cos, sin, middle = np.cos(self.turn), np.sin(self.turn), self.side / 2
        turned = self.side * np.array([[cos, -sin], [sin, cos]])
        offset = np.array([self.left, self.top]) + middle - turned @ (0.5, 0.5)
        if self.mirrored:
            turned[0], offset[0] = -turned[0], self.width - offset[0]
        longer = max(raster.shape[:2])
        matrix = np.column_stack([turned / side, offset + turned @ (0.5 / side, 0.5 / side)]) * longer
        matrix[:, 2] -= 0.5
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return np.asarray(
            cv2.warpAffine(
                raster, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=border
            )
        )

    def masks(self, masks: Masks, side: int) -> Masks:
        """Return masks (K, h, w) in the crop, bool (K, side, side)."""
        seen = [self.sample(mask.astype(np.uint8) * 255, side) > 127 for mask in masks]
        return np.stack(seen) if seen else np.zeros((0, side, side), bool)


def shape_of(photo: KeptPhoto) -> tuple[float, float]:
    """Return width and height of a photo, of which the longer is 1."""
    height, width = photo.image.shape[:2]
    return width / max(height, width), height / max(height, width)


def draw_crop(photo: KeptPhoto, rng: np.random.Generator) -> Crop:
    """Draw the whole photo, or a crop of it."""
    width, height = shape_of(photo)
    mirrored = bool(rng.integers(2))
    if rng.random() < WHOLE_SHARE:
        return Crop(0.0, 0.0, 1.0, width, 0.0, mirrored)
    side = 1 / float(np.exp(rng.uniform(*np.log(ZOOMS))))
    left, top = rng.uniform(0, max(0.0, width - side)), rng.uniform(0, max(0.0, height - side))
    return Crop(left, top, side, width, float(np.deg2rad(rng.uniform(-TURN, TURN))), mirrored)


def draw_image(
    corpus: PhotoCorpus, index: int, sides: tuple[int, int], rng: np.random.Generator
) -> tuple[Image, Masks]:
    """Return an image of a photo, float32 (S, S, 3) in 0..255, and its K coarse masks, bool (K, T, T), K > 0.

    ``sides`` are S and T. An image in which no mask is left is drawn again, and is the whole photo in the end.
    """
    photo = corpus.load(index)
    for _ in range(TRIES):
        crop = draw_crop(photo, rng)
        image, masks = see(photo, crop, sides, rng)
        if rng.random() < PASTED_SHARE:
            beyond = [~visible(photo, crop, side) for side in sides]
            for _ in range(int(rng.integers(1, MOST_PASTED + 1))):
                image, masks = paste(corpus.load(int(rng.integers(len(corpus)))), image, masks, rng)
            image[beyond[0]] = PADDING
            masks = masks & ~beyond[1]
            masks = masks[masks.sum((1, 2)) >= LEAST_PIXELS]
        if len(masks):
            return image, masks
    crop = Crop(0.0, 0.0, 1.0, shape_of(photo)[0])
    return see(photo, crop, sides, rng)[0], crop.masks(photo.coarse, sides[1])


def visible(photo: KeptPhoto, crop: Crop, side: int) -> Masks:
    """Return which pixels of an image show the photo, bool (side, side); the others are padding."""
    return crop.sample(np.full(photo.image.shape[:2], 255, np.uint8), side) > 127


def see(photo: KeptPhoto, crop: Crop, sides: tuple[int, int], rng: np.random.Generator) -> tuple[Image, Masks]:
    """Return a crop of a photo in changed colours, and the coarse masks of which enough is in it."""
    image = crop.sample(recolour(photo.image, rng), sides[0], PADDING)
    seen = crop.masks(photo.coarse, sides[1])
    scale = sides[1] / (max(photo.coarse.shape[1:]) * crop.side)
    return image, seen[is_enough(seen, photo.coarse.sum((1, 2)) * scale**2)]


def is_enough(seen: Masks, whole: npt.NDArray[Any]) -> Masks:
    """Return of which masks enough is seen, bool (K,); ``whole`` are their pixels, were all of them seen."""
    counts = seen.sum((1, 2))
    return np.asarray((counts >= LEAST_PIXELS) & (counts >= LEAST_SEEN * whole), bool)


def paste(donor: KeptPhoto, image: Image, masks: Masks, rng: np.random.Generator) -> tuple[Image, Masks]:
    """Paste a thing of ``donor`` onto an image; where it has none, the image stays as it is.

    It is cut out by its exact mask, and its coarse one is its target; what it covers too much of is no target any more.
    """
    shares = donor.exact.mean((1, 2))
    fitting = np.flatnonzero((shares >= DONOR_SHARES[0]) & (shares <= DONOR_SHARES[1]))
    if donor.task not in WHOLE or not len(fitting):
        return image, masks
    number = int(rng.choice(fitting))
    crop = donor_crop(donor, donor.exact[number], rng)
    side = image.shape[0]
    weight = crop.sample(donor.exact[number].astype(np.uint8) * 255, side)[..., None].astype(np.float32) / 255
    thing = crop.sample(recolour(donor.image, rng), side, PADDING)
    target = crop.masks(donor.coarse[[number]], masks.shape[-1])
    if target.sum() < LEAST_PIXELS:
        return image, masks
    left, mixed = masks & ~target, (image + weight * (thing - image)).astype(np.float32)
    return mixed, np.concatenate([left[is_enough(left, masks.sum((1, 2)))], target])


def donor_crop(donor: KeptPhoto, mask: Masks, rng: np.random.Generator) -> Crop:
    """Draw the crop of ``donor`` in which the thing of this mask has a random size, and lies at a random place."""
    width, _ = shape_of(donor)
    mirrored, longer = bool(rng.integers(2)), max(mask.shape)
    ys, xs = (np.flatnonzero(mask.any(axis)) / longer for axis in (1, 0))
    side = (max(np.ptp(xs), np.ptp(ys)) + 1 / longer) / rng.uniform(*PASTED_SIZES)
    x, y = (xs[0] + xs[-1]) / 2, (ys[0] + ys[-1]) / 2
    across, down = rng.uniform(0.1, 0.9, 2)
    return Crop((width - x if mirrored else x) - across * side, y - down * side, side, width, 0.0, mirrored)


def recolour(image: npt.NDArray[Any], rng: np.random.Generator) -> Image:
    """Change brightness, contrast and colour balance; now and then leave no colour at all."""
    gain = rng.uniform(0.75, 1.25) * rng.uniform(0.9, 1.1, 3)
    changed = np.clip((image - 128.0) * gain + 128.0 + rng.uniform(-20, 20), 0, 255).astype(np.float32)
    if rng.random() < GREY_SHARE:
        changed = np.repeat(changed.mean(2, keepdims=True), 3, 2)
    return changed
