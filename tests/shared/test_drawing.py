"""Masks over photos, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest

from sum_factory.shared.drawing import draw_mask, stroke_of


@pytest.mark.parametrize("longer", [40, 450, 900])
def test_outlines_grow_with_the_photo(longer: int) -> None:
    assert stroke_of(np.zeros((7, longer, 3), np.uint8)) == {40: 1, 450: 2, 900: 3}[longer]


def test_mask_is_half_its_colour_and_its_outline_more_of_it() -> None:
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (12, 17, 3)).astype(np.uint8)
    mask = np.zeros((12, 17), bool)
    mask[:5, 3:12] = True
    mask[2, 7] = False
    covered, colour = random.uniform(0, 255, photo.shape).astype(np.float32), np.array([8, 200, 31], np.float32)
    drawn = covered.copy()
    draw_mask(drawn, photo, mask, colour)
    for y, x in np.ndindex(mask.shape):
        around = [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        surrounded = all(0 <= row < 12 and 0 <= column < 17 and mask[row, column] for row, column in around)
        half = (photo[y, x] + colour) / 2
        expected = covered[y, x] if not mask[y, x] else half if surrounded else (half + 3 * colour) / 4
        np.testing.assert_array_equal(drawn[y, x], expected)
