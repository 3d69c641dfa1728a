"""Labels of masks that are there already draw these masks."""

from __future__ import annotations

import numpy as np
import pytest

from ellipses import Mask, ellipse
from sum_factory.labelgen.importing.label import coverage, logits_of
from sum_factory.labelgen.sets.export import at_full_size
from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.masks import iou
from sum_factory.shared.placement import Frame


def drawn(mask: Mask, side: int) -> Mask:
    """What is drawn of the label of a mask."""
    frame = Frame.whole(side, *mask.shape)
    return at_full_size(decode_label(encode_label(logits_of(coverage(mask, frame)))), frame, *mask.shape) > 0


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_coverage_is_the_share_of_each_cell(scale: int) -> None:
    side, cells = 64, 16
    mask = ellipse(side * scale, side * scale // 2, 5)
    shares = coverage(mask, Frame.whole(side, *mask.shape))
    block = 4 * scale
    counted = mask.reshape(cells, block, cells // 2, block).mean((1, 3))
    np.testing.assert_allclose(shares[:, : cells // 2], counted, atol=1e-12)
    np.testing.assert_allclose(shares[:, cells // 2], counted[:, -1], atol=1e-12)  # beyond the photo, as its edge


def test_coverage_where_pixels_lie_in_several_cells_adds_up_to_the_area() -> None:
    mask = ellipse(37, 53, 3)
    frame = Frame.whole(256, *mask.shape)
    height, width = frame.input_size
    sides = [np.minimum(4, size - 4 * np.arange(-(-size // 4))) for size in (height, width)]
    areas = np.outer(*sides) * (37 / height) * (53 / width)
    rows, columns = frame.photo_cells
    assert (coverage(mask, frame)[:rows, :columns] * areas).sum() == pytest.approx(mask.sum())


def test_masks_of_whole_cells_are_drawn_as_they_are() -> None:
    cells = np.random.default_rng(0).random((16, 12)) < 0.5
    assert np.array_equal(drawn(cells, 64), cells)  # a pixel per cell
    for side, band in ((64, np.s_[8:20]), (128, np.s_[24:64])):
        rows = np.zeros((64, 48), bool)
        rows[band] = True
        assert np.array_equal(drawn(rows, side), rows)
        assert np.array_equal(drawn(rows.T.copy(), side), rows.T)


def test_of_a_rectangle_of_cells_only_the_corners_are_rounded() -> None:
    mask = np.zeros((64, 48), bool)
    mask[8:24, 12:40] = True
    differing = np.argwhere(drawn(mask, 64) != mask)
    assert sorted(map(tuple, differing.tolist())) == [(8, 12), (8, 39), (23, 12), (23, 39)]


@pytest.mark.parametrize("shift", [0.25, 0.75])
def test_a_straight_edge_is_drawn_where_it_lies(shift: float) -> None:
    mask = np.zeros((256, 192), bool)
    mask[int(64 + 16 * shift) : 160] = True  # a cell is 16 pixels here
    assert np.count_nonzero(drawn(mask, 64) != mask) <= 192  # a row of pixels at most


def test_round_masks_are_drawn_nearly_as_they_are() -> None:
    ious = [iou(drawn(ellipse(96, 128, seed), 256), ellipse(96, 128, seed)) for seed in range(8)]
    assert min(ious) > 0.985
