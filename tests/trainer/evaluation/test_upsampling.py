"""Masks drawn from low-resolution logits against torch's interpolation of all of them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sum_factory.shared.placement import Frame
from sum_factory.trainer.evaluation.upsampling import upsampled_masks


def logits(side: int, seed: int) -> torch.Tensor:
    """Blobs, blobs in one corner alone, noise, nothing, and all of the square."""
    rng, cells = np.random.default_rng(seed), side // 4
    blobs = 8 * cv2.resize(rng.normal(size=(9, 9)), (cells, cells), interpolation=cv2.INTER_CUBIC)
    corner = blobs - 40 * (np.add.outer(np.arange(cells), np.arange(cells)) < 1.2 * cells)
    kinds = [blobs, corner, rng.normal(size=(cells, cells)), np.full((cells, cells), -1.0), np.ones((cells, cells))]
    return torch.from_numpy(np.stack(kinds).astype(np.float32))


def by_torch(
    values: torch.Tensor, side: int, height: int, width: int
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    scale = side / max(height, width)
    square = F.interpolate(values[:, None], (side, side), mode="bilinear", align_corners=False)
    photo = square[..., : int(height * scale + 0.5), : int(width * scale + 0.5)]
    return (F.interpolate(photo, (height, width), mode="bilinear", align_corners=False)[:, 0] > 0).numpy()


@pytest.mark.parametrize(
    ("side", "height", "width"),
    [(256, 301, 450), (1024, 375, 500), (256, 256, 256), (256, 100, 33), (256, 2, 250), (64, 450, 307), (64, 1, 64)],
)
def test_masks_equal_torchs_to_the_pixel(side: int, height: int, width: int) -> None:
    for seed in range(3):
        values = logits(side, seed)
        found = upsampled_masks(values, Frame.whole(side, height, width))
        assert np.array_equal(np.stack([each.mask for each in found]), by_torch(values, side, height, width))
        for each in found:  # nothing is left around a mask
            assert not each.inside.size or all(each.inside.take(end, axis).any() for end in (0, -1) for axis in (0, 1))


def test_logits_that_torch_rounds_to_zero_are_torchs_to_decide() -> None:
    """Halfway between two logits of opposite sign, rounding alone tells on which side of 0 a pixel is."""
    rng = np.random.default_rng(0)
    magnitudes = rng.random((64, 64)).astype(np.float32) + 0.5
    values = torch.from_numpy(magnitudes * np.where(np.indices((64, 64)).sum(0) % 2, 1, -1).astype(np.float32))[None]
    values[0, :, 1::2] = -values[0, :, ::2] * (1 + 2.0**-23)
    found = upsampled_masks(values, Frame.whole(256, 500, 1000))
    assert np.array_equal(found[0].mask, by_torch(values, 256, 500, 1000)[0])


def test_logits_that_are_no_numbers_are_upsampled_as_torch_does() -> None:
    values = logits(64, 0)[:1].clone()
    values[0, 3, 3], values[0, 9, 12] = float("nan"), float("inf")
    assert np.array_equal(upsampled_masks(values, Frame.whole(64, 50, 90))[0].mask, by_torch(values, 64, 50, 90)[0])
