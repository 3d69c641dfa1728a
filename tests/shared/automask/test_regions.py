"""Masks are measured and drawn as upstream does it at full resolution, by both implementations."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.utils.amg import batched_mask_to_box, calculate_stability_score
from torch import Tensor
from torch.nn import functional as F

from sum_factory.shared.automask import regions
from sum_factory.shared.automask.regions import draw, measure
from sum_factory.shared.placement import CropBox, Frame

Count = Callable[[Tensor, Frame, tuple[float, float, float]], Tensor]
COUNTS = {"compiled": regions._count_on_cpu, "torch": regions._count_with_torch}


LARGE = {"ROWS": 128, "COLUMNS": 512, "CELL_ROWS": 2, "CELL_COLUMNS": 32}


@pytest.mark.parametrize(
    ("crop", "tiles"),
    [((0, 0, 90, 60), {"COLUMNS": 32}), ((7, 3, 40, 120), LARGE), ((0, 0, 300, 9), {}), ((0, 0, 1, 1), {})],
    ids=str,
)
def test_kernel_for_gpus_counts_as_the_compiled_one_to_the_bit(crop: CropBox, tiles: dict[str, int]) -> None:
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("on a GPU the kernel is compiled, and compared there")
    from sum_factory.shared.automask import region_triton as kernel

    frame, cuts = Frame.crop(128, crop), (0.0, 1.5, -1.5)
    logits = torch.stack([random_logits(seed, 1, 32, 6, level)[0] for seed, level in enumerate((-9.0, -3.0, 0.0, 4.0))])
    expected = regions._count_on_cpu(logits, frame, cuts)
    taps = regions._taps_on(logits.device, frame)
    assert torch.equal(kernel.count(logits, taps, frame.crop_size, cuts, **{"ROWS": 32, **tiles}), expected)
    assert kernel.count(logits[:0], taps, frame.crop_size, cuts).shape == (0, 7)


@pytest.mark.gpu
@pytest.mark.parametrize("size", [(750, 1125), (333, 517), (40, 40), (8300, 200), (2, 700), (9000, 9000)], ids=str)
def test_gpu_counts_as_the_cpu_to_the_bit(size: tuple[int, int]) -> None:
    frame, cuts = Frame.whole(1024, *size), (0.0, 1.0, -1.0)
    logits = torch.cat([random_logits(seed, 4, 256, 7, level) for seed, level in enumerate((-9.0, -2.0, 3.0))])
    expected = regions._count_on_cpu(logits, frame, cuts)
    assert regions._count_of(torch.device("cuda")) is regions._count_with_triton
    assert torch.equal(regions._count_with_triton(logits.cuda(), frame, cuts).cpu(), expected)


def full_size(logits: Tensor, frame: Frame) -> Tensor:
    """Upsample logits (K, h, w) to the crop's size as ``Sam.postprocess_masks`` does, (K, H, W)."""
    square = F.interpolate(logits[:, None], (frame.side, frame.side), mode="bilinear", align_corners=False)
    height, width = frame.input_size
    return F.interpolate(square[..., :height, :width], frame.crop_size, mode="bilinear", align_corners=False)[:, 0]


def random_logits(seed: int, count: int, cells: int, coarse: int, level: float) -> Tensor:
    """Return logits (count, cells, cells) that are smooth over cells / coarse, ``level`` above or below 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 1, coarse, coarse, generator=generator) * 4 + level
    return F.interpolate(noise, (cells, cells), mode="bicubic", align_corners=False)[:, 0]


def assert_counts(counts: Tensor, full: Tensor, cuts: tuple[float, float, float]) -> None:
    """Check areas and boxes, int64 (K, 7), against full-resolution logits.

    They may differ by pixels so near to a cut that the order of sums decides: torch has kernels that round otherwise.
    """
    near = 1e-6 * float(full.abs().max())
    for k, cut in enumerate(cuts):
        areas = (full > cut).flatten(1).sum(1)
        undecided = ((full - cut).abs() <= near).flatten(1).sum(1)
        assert ((counts[:, k] - areas).abs() <= undecided).all()
    least, most = batched_mask_to_box(full > cuts[0] + near), batched_mask_to_box(full > cuts[0] - near)
    same = (least == most).all(1)
    assert torch.equal(counts[same, 3:], least[same])


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@given(
    seed=st.integers(0, 2**31),
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    coarse=st.integers(2, 12),
    level=st.floats(-12, 12),
    offset=st.floats(0, 3),
)
def test_areas_and_boxes_are_those_of_full_resolution(
    count: Count, seed: int, height: int, width: int, coarse: int, level: float, offset: float
) -> None:
    frame = Frame.whole(128, height, width)
    if 0 in frame.input_size:
        return
    logits = random_logits(seed, 3, 32, coarse, level)
    cuts = (0.0, offset, -offset)
    assert_counts(count(logits, frame, cuts), full_size(logits, frame), cuts)


SIZES = [(750, 1125), (333, 517), (517, 333), (256, 256), (1024, 1024), (40, 40), (8300, 200), (200, 9000), (2, 700)]


@pytest.mark.parametrize("side", [256, 1024])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_measures_are_upstreams_to_the_bit(size: tuple[int, int], side: int) -> None:
    frame = Frame.whole(side, *size)
    logits = random_logits(0, 3, side // 4, 7, -2.0)
    full = full_size(logits, frame)
    found = measure(logits, frame, 0.0, 1.0)
    assert torch.equal(found.areas, (full > 0).flatten(1).sum(1))
    assert torch.equal(found.stability, calculate_stability_score(full, 0.0, 1.0))
    assert torch.equal(found.boxes, batched_mask_to_box(full > 0))
    for k in range(3):
        np.testing.assert_array_equal(draw(logits[k].numpy(), frame, 0.0), (full[k] > 0).numpy())


def test_crop_is_measured_in_its_own_pixels() -> None:
    frame = Frame.crop(256, (100, 50, 400, 170))
    logits = random_logits(1, 4, 64, 5, 0.0)
    assert_counts(regions._count_on_cpu(logits, frame, (0.0, 1.0, -1.0)), full_size(logits, frame), (0.0, 1.0, -1.0))


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize("row", [0, 3, 29, 31])
@pytest.mark.parametrize("column", [0, 5, 31])
def test_single_cell_at_every_border_is_found(count: Count, row: int, column: int) -> None:
    frame = Frame.whole(128, 120, 128)
    logits = torch.full((1, 32, 32), -10.0)
    logits[0, row, column] = 50.0
    cuts = (0.0, 1.0, -1.0)
    assert_counts(count(logits, frame, cuts), full_size(logits, frame), cuts)


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
@pytest.mark.parametrize(("level", "share"), [(-5.0, 0), (5.0, 1)])
def test_empty_and_full_masks(count: Count, level: float, share: int) -> None:
    frame = Frame.whole(128, 90, 150)
    counts = count(torch.full((2, 32, 32), level), frame, (0.0, 1.0, -1.0))
    box = [0, 0, 149, 89] if share else [0, 0, 0, 0]
    assert counts.tolist() == [[share * 90 * 150] * 3 + box] * 2


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS.keys())
def test_logits_of_padding_alone_count_nothing(count: Count) -> None:
    frame = Frame.whole(128, 64, 128)
    logits = torch.full((1, 32, 32), -5.0)
    logits[0, 20:] = 100.0
    assert count(logits, frame, (0.0, 1.0, -1.0)).tolist() == [[0] * 7]


def test_no_candidates_give_no_regions() -> None:
    found = measure(torch.zeros(0, 32, 32), Frame.whole(128, 64, 128), 0.0, 1.0)
    assert (found.areas.shape, found.stability.shape, found.boxes.shape) == ((0,), (0,), (0, 4))


def test_stability_of_an_empty_mask_is_no_number() -> None:
    assert measure(torch.full((1, 32, 32), -5.0), Frame.whole(128, 64, 128), 0.0, 1.0).stability.isnan().all()


@pytest.mark.parametrize("elements", [1, 5000])
def test_bands_of_any_height_give_the_same(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    frame, logits, cuts = Frame.whole(128, 90, 150), random_logits(2, 3, 32, 6, 0.0), (0.0, 1.0, -1.0)
    expected = regions._count_with_torch(logits, frame, cuts)
    monkeypatch.setattr(regions, "STRIP_ELEMENTS", elements)
    assert torch.equal(regions._count_with_torch(logits, frame, cuts), expected)


def test_threads_do_not_matter() -> None:
    frame, logits, cuts = Frame.whole(128, 90, 150), random_logits(3, 5, 32, 6, 0.0), (0.0, 1.0, -1.0)
    expected = regions._count_on_cpu(logits, frame, cuts)
    torch.set_num_threads(2)
    try:
        assert torch.equal(regions._count_on_cpu(logits, frame, cuts), expected)
    finally:
        torch.set_num_threads(1)
