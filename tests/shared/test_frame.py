"""Frames put pixels where ``segment_anything`` puts them, whatever the size of the photo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from segment_anything.modeling import Sam
from segment_anything.utils.amg import uncrop_masks
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor

from sum_factory.shared.placement import CELL, Frame, paste, resized_size

SIZES = {
    "landscape": (48, 64),
    "portrait": (150, 60),
    "square": (64, 64),
    "odd": (333, 517),
    "panorama": (20, 301),
    "tiny": (7, 5),
    "as the input": (128, 128),
    "one row": (1, 90),
}
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
lengths = st.integers(1, 40_000)


def random_logits(count: int, rows: int, columns: int) -> Tensor:
    """Return logits (count, rows, columns) of both signs."""
    return torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(rows * columns)) * 5


@given(lengths, lengths, st.sampled_from([64, 128, 256, 1024]))
def test_resized_size_equals_upstreams(height: int, width: int, side: int) -> None:
    assert resized_size(height, width, side) == ResizeLongestSide.get_preprocess_shape(height, width, side)


@given(lengths, lengths)
def test_longer_side_fills_the_square(height: int, width: int) -> None:
    assert max(resized_size(height, width, 256)) == 256


@every_size
def test_upsampling_equals_upstreams_postprocessing(tiny_sam: Sam, size: tuple[int, int]) -> None:
    frame = Frame.whole(128, *size)
    logits = random_logits(2, 32, 32)
    expected = tiny_sam.postprocess_masks(logits[:, None], frame.input_size, size)[:, 0]
    assert torch.equal(frame.upsample(logits), expected)


@every_size
def test_upsampling_reads_nothing_beyond_the_interpolation_cells(size: tuple[int, int]) -> None:
    frame = Frame.whole(128, *size)
    rows, columns = frame.interpolation_cells
    logits = random_logits(2, 32, 32)
    assert torch.equal(frame.upsample(logits[:, :rows, :columns]), frame.upsample(logits))


@every_size
def test_upsampling_reads_every_one_of_the_interpolation_cells(size: tuple[int, int]) -> None:
    frame = Frame.whole(128, *size)
    height, width = frame.input_size
    rows, columns = frame.interpolation_cells
    # At the size of the input itself, where no second interpolation can step over a pixel.
    frame = Frame.whole(128, height, width)
    cells = torch.eye(rows * columns).view(-1, rows, columns)
    assert (frame.upsample(cells).flatten(1).amax(1) > 0).all()


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 256, 1024]))
def test_photo_cells_are_those_that_show_photo(height: int, width: int, side: int) -> None:
    assume(0 not in resized_size(height, width, side))
    frame = Frame.whole(side, height, width)
    shown = np.zeros((side, side), bool)
    shown[: frame.input_size[0], : frame.input_size[1]] = True
    cells = shown.reshape(side // CELL, CELL, side // CELL, CELL).any((1, 3))
    assert frame.photo_cells == (cells.any(1).sum(), cells.any(0).sum())


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_interpolation_cells_are_photo_cells_or_one_more(height: int, width: int) -> None:
    assume(0 not in resized_size(height, width, 256))
    frame = Frame.whole(256, height, width)
    for low_res, valid in zip(frame.interpolation_cells, frame.photo_cells, strict=True):
        assert low_res - valid in (0, 1)
        assert low_res <= 64


@settings(max_examples=40)
@given(st.integers(1, 400), st.integers(1, 400))
def test_cut_logits_upsample_as_whole_ones(height: int, width: int) -> None:
    assume(0 not in resized_size(height, width, 64))
    frame = Frame.whole(64, height, width)
    rows, columns = frame.interpolation_cells
    logits = random_logits(1, 16, 16)
    assert torch.equal(frame.upsample(logits[:, :rows, :columns]), frame.upsample(logits))


def test_frame_of_a_crop_upsamples_to_the_crops_own_size(tiny_sam: Sam) -> None:
    frame = Frame.crop(128, [10, 20, 110, 95])
    assert frame.crop_box == (10, 20, 110, 95)
    assert frame.crop_size == (75, 100)
    logits = random_logits(3, 32, 32)
    expected = tiny_sam.postprocess_masks(logits[:, None], (96, 128), (75, 100))[:, 0]
    assert torch.equal(frame.upsample(logits), expected)


def test_frame_of_the_whole_photo_is_the_crop_of_all_of_it() -> None:
    assert Frame.whole(256, 30, 50) == Frame.crop(256, np.array([0, 0, 50, 30]))


def test_masks_of_a_crop_are_pasted_where_upstream_puts_them() -> None:
    box = [10, 20, 110, 95]
    masks = random_logits(2, 75, 100) > 0
    pasted = paste(masks, Frame.crop(128, box), 120, 160)
    assert torch.equal(pasted, uncrop_masks(masks, box, 120, 160))
    assert pasted.dtype == torch.bool


def test_pasting_no_masks_gives_no_masks() -> None:
    assert paste(torch.zeros(0, 75, 100, dtype=torch.bool), Frame.crop(128, [10, 20, 110, 95]), 120, 160).shape == (
        0,
        120,
        160,
    )


def test_upsampling_no_masks_gives_no_masks() -> None:
    assert Frame.whole(128, 50, 70).upsample(torch.zeros(0, 32, 32)).shape == (0, 50, 70)
