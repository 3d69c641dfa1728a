"""A set of photos of things, bright on dark, whose masks are known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sum_factory.trainer.data.sets import FolderPairsSettings, SetSettings

SIZES = ((120, 200), (160, 96), (130, 130), (90, 180))
"""Height and width of each photo."""
RADIUS = 30


def thing(height: int, width: int) -> np.ndarray:
    """Return a disc left of the middle with a thin rod to the right, bool (H, W)."""
    drawn = np.zeros((height, width), np.uint8)
    middle = (width // 2 - 6, height // 2)
    cv2.circle(drawn, middle, RADIUS, 1, -1)
    cv2.line(drawn, middle, (width - 5, height // 2), 1, 2)
    return drawn > 0


@pytest.fixture(scope="session")
def photo_set(tmp_path_factory: pytest.TempPathFactory) -> SetSettings:
    """Four photos, and a fifth whose mask is a thin line: nothing is left of it when it is coarse."""
    folder = tmp_path_factory.mktemp("photo set")
    for name in ("images", "masks"):
        (folder / name).mkdir()
    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate((*SIZES, (100, 100))):
        mask = thing(height, width)
        if number == len(SIZES):
            mask = np.zeros((height, width), bool)
            mask[50, 10:90] = True
        photo = np.where(mask[..., None], 215, 40) + rng.integers(-15, 15, (height, width, 3))
        cv2.imwrite(str(folder / "images" / f"{number}.png"), photo.astype(np.uint8))
        cv2.imwrite(str(folder / "masks" / f"{number}.png"), mask.astype(np.uint8) * 255)
    return FolderPairsSettings("folder-pairs", folder / "images", folder / "masks", "salient", name="things")
