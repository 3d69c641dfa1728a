"""Masks, label logits and maps on the loss grid, against naive averages and upstream's own upsampling."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.placement import Frame
from sum_factory.trainer.data.grid import (
    BEYOND,
    coverage_of_pixels,
    coverage_on_grid,
    label_pixels,
    logits_on_grid,
    maps_on_grid,
    masks_on_grid,
    valid_cells,
)

SIDE = 128
SIZES = {
    "landscape": (96, 160),
    "portrait": (200, 90),
    "odd": (131, 77),
    "square": (128, 128),
    "smaller than the input": (37, 50),
    "tiny": (9, 13),
}


def overlaps(pixels: int, cells: int, scaled: int, stride: int) -> npt.NDArray[np.float64]:
    """Return how much of each grid cell each photo pixel covers along one axis, (cells, pixels); rows sum to 1.

    The photo's pixels are stretched over ``scaled`` input pixels; the last cell may be cut short and is then averaged
    over what there is, its last input pixel repeated.
    """
    weights = np.zeros((cells, pixels))
    edges = np.arange(pixels + 1) * scaled / pixels
    for cell in range(cells):
        for offset in range(stride):
            place = min(cell * stride + offset, scaled - 1)
            low, high = np.maximum(edges[:-1], place), np.minimum(edges[1:], place + 1)
            weights[cell] += np.maximum(high - low, 0) / stride
    return weights


def random_masks(seed: int, height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return ellipses, thin lines and noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    masks = [
        np.hypot((rows - height * a) / height, (columns - width * b) / width) < c
        for a, b, c in random.random((4, 3)) / 2
    ]
    masks += [np.abs(rows * random.random() - columns) < width * 0.04, random.random((height, width)) < 0.5]
    return np.stack(masks)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("name", SIZES)
def test_cell_is_set_where_half_of_it_or_more_is(name: str, stride: int) -> None:
    height, width = SIZES[name]
    frame = Frame.whole(SIDE, height, width)
    masks = random_masks(0, height, width)
    grid = masks_on_grid(masks, frame, stride)
    rows, columns = valid_cells(frame, stride)
    assert grid.shape == (len(masks), SIDE // stride, SIDE // stride)
    down = overlaps(height, rows, frame.input_size[0], stride)
    across = overlaps(width, columns, frame.input_size[1], stride)
    for found, mask in zip(grid.numpy(), masks, strict=True):
        share = down @ mask.astype(np.float64) @ across.T
        clear = np.abs(share - 0.5) > 0.01  # 8-bit averages decide the rest either way
        assert clear.mean() > 0.5
        assert np.array_equal(found[:rows, :columns][clear], (share >= 0.5)[clear])
        assert not found[rows:].any()
        assert not found[:, columns:].any()


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("name", SIZES)
def test_coverage_is_the_share_of_a_cell_that_the_mask_has(name: str, stride: int) -> None:
    height, width = SIZES[name]
    frame = Frame.whole(SIDE, height, width)
    masks = random_masks(0, height, width)
    grid = coverage_on_grid(masks, frame, stride).numpy()
    rows, columns = valid_cells(frame, stride)
    down = overlaps(height, rows, frame.input_size[0], stride)
    across = overlaps(width, columns, frame.input_size[1], stride)
    for found, mask in zip(grid, masks, strict=True):
        assert np.abs(found[:rows, :columns] - down @ mask.astype(np.float64) @ across.T).max() < 0.003
        assert not found[rows:].any()
        assert not found[:, columns:].any()


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("name", ["landscape", "odd", "tiny"])
def test_coverage_of_a_label_counts_the_pixels_that_its_logits_mean(name: str, stride: int) -> None:
    """At the photo's edge a cell is cut short; its last pixels are repeated, as those of human masks are."""
    frame = Frame.whole(SIDE, *SIZES[name])
    square = smooth(1, 32, 32)
    low_rows, low_columns = frame.interpolation_cells
    height, width = frame.input_size
    pixels = label_pixels(square[None, :low_rows, :low_columns], frame, frame)
    full = F.interpolate(square[None, None], (SIDE, SIDE), mode="bilinear", align_corners=False)[0, 0].numpy() > 0
    assert (pixels[0, :height, :width].numpy() == full[:height, :width]).mean() > 0.999
    assert not pixels[0, height:].any()
    assert not pixels[0, :, width:].any()
    found = coverage_of_pixels(pixels, frame, stride)[0].numpy()
    padded = np.pad(pixels[0, :height, :width].numpy(), ((0, -height % stride), (0, -width % stride)), mode="edge")
    rows, columns = valid_cells(frame, stride)
    expected = np.zeros((SIDE // stride,) * 2)
    for row in range(rows):
        for column in range(columns):
            cell = padded[row * stride : (row + 1) * stride, column * stride : (column + 1) * stride]
            expected[row, column] = np.count_nonzero(cell) / stride**2
    assert np.array_equal(found, expected)


def test_valid_cells_show_some_of_the_photo() -> None:
    frame = Frame.whole(SIDE, 131, 77)
    assert frame.input_size == (128, 75)
    assert valid_cells(frame, 1) == (128, 75)
    assert valid_cells(frame, 2) == (64, 38)
    assert valid_cells(frame, 4) == frame.photo_cells == (32, 19)


def test_no_masks_make_an_empty_grid() -> None:
    assert masks_on_grid(np.zeros((0, 30, 40), bool), Frame.whole(SIDE, 30, 40), 4).shape == (0, 32, 32)


def smooth(seed: int, rows: int, columns: int) -> Tensor:
    """Return smooth values of both signs."""
    coarse = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(seed)) * 4
    return F.interpolate(coarse, (rows, columns), mode="bicubic")[0, 0]


@pytest.mark.parametrize("name", SIZES)
def test_logits_keep_their_values_on_the_grid_of_the_low_resolution(name: str) -> None:
    frame = Frame.whole(SIDE, *SIZES[name])
    logits = smooth(0, *frame.interpolation_cells)
    rows, columns = frame.photo_cells
    grid = logits_on_grid(logits[None], frame, frame, 4)[0]
    assert torch.equal(grid[:rows, :columns], logits[:rows, :columns])
    assert not grid[rows:].any()
    assert not grid[:, columns:].any()


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("stride", [1, 2])
def test_logits_on_finer_grids_are_interpolated_over_the_square(name: str, stride: int) -> None:
    """At stride 1 that is how ``Sam.postprocess_masks`` upsamples before it cuts the padding off."""
    frame = Frame.whole(SIDE, *SIZES[name])
    square = smooth(1, 32, 32)
    low_rows, low_columns = frame.interpolation_cells
    rows, columns = valid_cells(frame, stride)
    expected = F.interpolate(square[None, None], (SIDE // stride,) * 2, mode="bilinear", align_corners=False)[0, 0]
    grid = logits_on_grid(square[None, :low_rows, :low_columns], frame, frame, stride)[0]
    torch.testing.assert_close(grid[:rows, :columns], expected[:rows, :columns])
    assert not grid[rows:].any()
    assert not grid[:, columns:].any()


def ellipse(rows: int, columns: int) -> Tensor:
    """Return logits that are positive in an ellipse that does not touch the border."""
    down, across = torch.linspace(-1, 1, rows)[:, None], torch.linspace(-1, 1, columns)[None]
    return (0.7 - torch.hypot(down, across)) * 20


def box_pixels(size: tuple[int, int], box: tuple[int, int, int, int]) -> npt.NDArray[np.float64]:
    """Return 1 inside a box of the photo, 0 elsewhere."""
    x0, y0, x1, y1 = box
    inside = np.zeros(size)
    inside[y0:y1, x0:x1] = 1
    return inside


CROPS = [((120, 160), (40, 0, 160, 70)), ((200, 90), (0, 60, 90, 200)), ((131, 177), (30, 20, 97, 131))]


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize(("size", "box"), CROPS)
def test_mask_of_a_crop_lies_where_upstream_puts_it(
    size: tuple[int, int], box: tuple[int, int, int, int], stride: int
) -> None:
    """Upsample to the crop, paste it into the photo at full resolution, average over cells.

    The mask ends inside its crop: one that goes on beyond it is never labelled.
    """
    height, width = size
    whole, frame = Frame.whole(SIDE, height, width), Frame.crop(SIDE, box)
    logits = ellipse(*frame.interpolation_cells)
    x0, y0, x1, y1 = box
    photo = np.zeros((height, width), bool)
    photo[y0:y1, x0:x1] = frame.upsample(logits[None])[0].numpy() > 0
    rows, columns = valid_cells(whole, stride)
    down = overlaps(height, rows, whole.input_size[0], stride)
    across = overlaps(width, columns, whole.input_size[1], stride)
    expected = down @ photo.astype(np.float64) @ across.T >= 0.5
    grid = logits_on_grid(logits[None], frame, whole, stride)[0]
    found = grid[:rows, :columns].numpy() > 0
    assert expected.mean() > 0.05
    assert (found & expected).sum() / (found | expected).sum() > 0.95
    outside = (down @ box_pixels(size, box) @ across.T) == 0
    assert not found[outside].any()
    assert float(np.median(grid[:rows, :columns].numpy()[outside])) == pytest.approx(BEYOND, abs=1e-3)
    assert not grid[rows:].any()
    assert not grid[:, columns:].any()


@pytest.mark.parametrize(("size", "box"), CROPS)
def test_map_of_a_crop_is_zero_outside_of_it(size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    whole, frame = Frame.whole(SIDE, *size), Frame.crop(SIDE, box)
    grid = maps_on_grid(torch.full((1, *frame.interpolation_cells), 0.75), frame, whole, 4)[0]
    rows, columns = valid_cells(whole, 4)
    down = overlaps(size[0], rows, whole.input_size[0], 4)
    across = overlaps(size[1], columns, whole.input_size[1], 4)
    inside = down @ box_pixels(size, box) @ across.T
    found = grid[:rows, :columns].numpy()
    assert np.allclose(found, 0.75 * inside, atol=0.1)
    assert np.median(found[inside > 0.999]) == 0.75
    assert np.allclose(found[inside == 0], 0, atol=0.02)
    assert (found >= 0).all()
    assert (found <= 0.7501).all()


def test_map_keeps_its_values_on_the_whole_photo() -> None:
    frame = Frame.whole(SIDE, 131, 77)
    values = smooth(3, *frame.interpolation_cells).sigmoid()
    rows, columns = frame.photo_cells
    grid = maps_on_grid(values[None], frame, frame, 4)[0]
    assert torch.equal(grid[:rows, :columns], values[:rows, :columns])
    assert not grid[rows:].any()
