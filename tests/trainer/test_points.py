"""Points in which masks are compared, against a naive version: one mask and one point at a time, pixels of an upsampled
map in place of ``grid_sample``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.trainer.points import PixelMasks, count_of, draw_points, spread, values_at
from sum_factory.trainer.randomness import RowGenerators, generator_of

SIDE = 64
SIZES = torch.tensor([[64, 64], [41, 64], [64, 23]])


@pytest.fixture
def shifts() -> Tensor:
    return torch.rand(3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_points_are_as_many_as_published_and_in_proportion_to_the_pixels() -> None:
    assert [count_of(side) for side in (1024, 256, 64, 4)] == [12_544, 784, 49, 1]


def test_points_are_those_of_the_naive_version(shifts: Tensor, naive_points: Callable[..., Any]) -> None:
    logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = draw_points(logits, PixelMasks(torch.zeros(3, SIDE, SIDE, dtype=torch.bool), SIZES), shifts)
    for k in range(3):
        expected = naive_points(logits[k], shifts[k].tolist(), SIZES[k].tolist(), SIDE)
        assert sorted(map(tuple, found[k].tolist())) == sorted(expected)


def test_values_in_points_are_those_of_bilinear_upsampling() -> None:
    values = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(2))
    full = F.interpolate(values[:, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    pixels = torch.cartesian_prod(torch.arange(SIDE), torch.arange(SIDE)).expand(2, -1, 2)
    found = values_at(values, pixels, SIDE)
    torch.testing.assert_close(found, full[:, pixels[0, :, 1], pixels[0, :, 0]], atol=1e-5, rtol=1e-5)


def test_masks_have_the_pixels_that_they_are_asked_for() -> None:
    masks = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    pixels = torch.tensor([[[0, 0], [7, 2]], [[3, 5], [1, 6]]])
    found = PixelMasks(masks, torch.full((2, 2), 8)).at(pixels)
    expected = [[masks[k, y, x].item() for x, y in pixels[k].tolist()] for k in range(2)]
    assert found.tolist() == expected


def test_points_are_spread_evenly_over_the_photo_and_never_fall_beside_it(shifts: Tensor) -> None:
    found = spread(shifts, SIZES, 5, 4000)
    for k, (rows, columns) in enumerate(SIZES.tolist()):
        x, y = found[k].unbind(1)
        assert (int(x.min()), int(y.min()), int(x.max()), int(y.max())) == (0, 0, columns - 1, rows - 1)
        blocks = torch.bincount((x * 4 // columns) * 4 + y * 4 // rows, minlength=16)
        share = torch.tensor([(-(-columns * (n + 1) // 4) - -(-columns * n // 4)) / columns for n in range(4)])
        down = torch.tensor([(-(-rows * (n + 1) // 4) - -(-rows * n // 4)) / rows for n in range(4)])
        assert (blocks - 4000 * torch.outer(share, down).flatten()).abs().max() < 12  # by chance it would be some 40


def test_points_of_a_sample_do_not_depend_on_what_else_is_in_the_batch() -> None:
    """The shifts come from the generators of samples, in rows; the rest is a function of each row."""

    def shifts(*counts: tuple[int, int]) -> Tensor:
        generators = RowGenerators([generator_of(0, "rounds", n) for n, _ in counts], [count for _, count in counts])
        return generators.uniform(sum(count for _, count in counts), 2)

    assert torch.equal(shifts((0, 2), (1, 3))[2:], shifts((1, 3)))
    logits = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(4))
    masks = PixelMasks(torch.zeros(3, SIDE, SIDE, dtype=torch.bool), SIZES)
    together = draw_points(logits, masks, shifts((1, 3)))
    rows = torch.tensor([2])
    assert torch.equal(together[2:], draw_points(logits[rows], masks[rows], shifts((1, 3))[2:]))
