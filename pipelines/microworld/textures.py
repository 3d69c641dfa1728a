"""Texture patches cut from the photos that the scikit-image wheel carries."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import skimage

PHOTOS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
SCALES = (1.0, 0.6)
"""Each photo is offered at these sizes, so that one texture comes fine and coarse."""


def photo_paths() -> list[Path]:
    """Return the paths of the photos in the installed scikit-image wheel."""
    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in PHOTOS]


@cache
def texture_bank(minimum_side: int) -> tuple[npt.NDArray[np.uint8], ...]:
    """Load every photo at every scale as RGB uint8 (H, W, 3) with both sides >= ``minimum_side``."""
    bank = []
    for path in photo_paths():
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise FileNotFoundError(f"{path}: scikit-image's wheel should carry this photo; reinstall scikit-image")
        for scale in SCALES:
            scale = max(scale, minimum_side / min(bgr.shape[:2]))
            resized = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            bank.append(np.ascontiguousarray(resized[..., ::-1], dtype=np.uint8))
    return tuple(bank)


def cut_patch(rng: np.random.Generator, height: int, width: int, minimum_side: int) -> npt.NDArray[np.float32]:
    """Cut a random patch, centred on zero and scaled to unit contrast.

    Returns float32 (height, width, 3) with mean 0 and standard deviation 1 over the patch
    (0 everywhere for a flat patch). ``height`` and ``width`` must not exceed ``minimum_side``.
    """
    bank = texture_bank(minimum_side)
    photo = bank[int(rng.integers(len(bank)))]
    top = int(rng.integers(photo.shape[0] - height + 1))
    left = int(rng.integers(photo.shape[1] - width + 1))
    patch = photo[top : top + height, left : left + width]
    if rng.random() < 0.5:
        patch = patch[:, ::-1]
    centred = patch.astype(np.float32)
    mean, deviation = cv2.meanStdDev(centred)
    centred -= mean.reshape(1, 1, 3).astype(np.float32)
    centred /= max(float(deviation.mean()), 4.0)
    return centred
