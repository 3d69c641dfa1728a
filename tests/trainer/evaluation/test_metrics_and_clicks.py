"""Metrics and clicks against versions written with other tools."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import binary_erosion, distance_transform_edt

from sum_factory.shared.masks import iou
from sum_factory.trainer.evaluation.clicks import click_near_boundary, depth, first_click, next_click
from sum_factory.trainer.evaluation.kernels import deepest
from sum_factory.trainer.evaluation.metrics import Cutout, boundary_iou

Mask = npt.NDArray[np.bool_]


def blob(seed: int, height: int, width: int) -> Mask:
    """A random mask with large and small structures, touching the border."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((height // 8 + 1, width // 8 + 1)) > 0.5
    large = np.kron(coarse, np.ones((8, 8), bool))[:height, :width]
    return np.asarray(large & (rng.random((height, width)) > 0.02))


def naive_band(mask: Mask) -> Mask:
    """Boundary band by repeated erosion with a 3 x 3 square, background beyond the image."""
    steps = max(1, round(0.02 * float(np.sqrt(mask.shape[0] ** 2 + mask.shape[1] ** 2))))
    eroded = binary_erosion(mask, np.ones((3, 3)), iterations=steps, border_value=0)
    return np.asarray(mask & ~eroded)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (100, 37), (256, 256), (1, 30)])
def test_boundary_iou_equals_erosion_step_by_step(height: int, width: int) -> None:
    for seed in range(4):
        a, b = blob(seed, height, width), blob(seed + 100, height, width)
        assert np.array_equal(Cutout.of(a).band.mask, naive_band(a))
        band_a, band_b = naive_band(a), naive_band(b)
        expected = (band_a & band_b).sum() / (band_a | band_b).sum()
        assert boundary_iou(a, b) == pytest.approx(expected)


def test_empty_masks_agree() -> None:
    nothing = np.zeros((20, 30), bool)
    assert iou(nothing, nothing) == boundary_iou(nothing, nothing) == 1.0
    assert iou(nothing, ~nothing) == boundary_iou(nothing, ~nothing) == 0.0


def test_whole_image_has_a_boundary() -> None:
    band = Cutout.of(np.ones((100, 100), bool)).band.mask
    assert band[:3].all()
    assert not band[3:-3, 3:-3].any()


def test_first_click_is_deepest_inside_with_the_border_as_boundary() -> None:
    for seed in range(5):
        mask = blob(seed, 70, 90)
        distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        click = first_click(mask)
        assert mask[click.y, click.x]
        assert distance[click.y, click.x] == pytest.approx(distance.max(), abs=1e-3)
        assert np.allclose(depth(mask), distance, atol=1e-3)


def test_depth_is_exact_wherever_a_region_lies() -> None:
    """Distances are roots of whole numbers: equal ones must be equal, or rounding errors would choose the click."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        region = np.zeros((150, 200), bool)
        top, left = (int(value) for value in rng.integers(0, 60, 2))
        region[top : top + 90, left : left + 130] = blob(seed, 90, 130) | (rng.random((90, 130)) > 0.05)
        distance = distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1]
        assert np.array_equal(depth(region), distance.astype(np.float32))
        click = first_click(region)
        assert (click.y, click.x) == np.unravel_index(int(distance.argmax()), region.shape)


def test_ties_go_to_the_first_pixel_in_reading_order_and_to_what_was_missed() -> None:
    target = np.zeros((300, 400), bool)
    target[37:137, 51:351] = True  # 100 rows: a ridge of two rows, 202 pixels each, is equally deep
    assert (first_click(target).x, first_click(target).y) == (51 + 49, 37 + 49)
    predicted = np.zeros_like(target)
    predicted[160:260, 3:303] = True  # as deep as the target that is missed, and further left
    click = next_click(predicted, target)
    assert click is not None
    assert (click.x, click.y, click.positive) == (100, 86, True)


def test_click_on_the_edge_of_the_image_counts_the_border_as_boundary() -> None:
    target = np.zeros((40, 60), bool)
    target[0:21, 0:31] = True  # deepest in its middle, not in the image's corner
    assert (first_click(target).x, first_click(target).y) == (10, 10)


def test_empty_masks_have_no_first_click() -> None:
    nothing = np.zeros((20, 30), bool)
    for draw in (lambda: first_click(nothing), lambda: click_near_boundary(nothing, "a/0")):
        with pytest.raises(ValueError, match="empty mask"):
            draw()
    assert not depth(nothing).any()
    assert not Cutout.of(nothing).band.mask.any()


def test_next_click_goes_to_the_deeper_error_with_its_label() -> None:
    target = np.zeros((60, 60), bool)
    target[10:30, 10:30] = True
    predicted = np.zeros_like(target)
    predicted[10:30, 20:30] = True  # misses 20 x 10
    predicted[40:46, 40:46] = True  # wrong in 6 x 6
    missed = next_click(predicted, target)
    assert missed is not None
    assert missed.positive
    assert target[missed.y, missed.x]
    assert not predicted[missed.y, missed.x]
    predicted[36:56, 36:56] = True  # now wrong in 20 x 20
    wrong = next_click(predicted, target)
    assert wrong is not None
    assert not wrong.positive
    assert predicted[wrong.y, wrong.x]
    assert not target[wrong.y, wrong.x]


def test_no_error_means_no_click() -> None:
    mask = blob(1, 40, 40)
    assert next_click(mask, mask) is None


def test_near_boundary_click_is_within_ten_pixels_and_repeatable() -> None:
    target = np.zeros((120, 120), bool)
    target[10:110, 10:110] = True
    distance = distance_transform_edt(np.pad(target, 1))[1:-1, 1:-1]
    clicks = {click_near_boundary(target, f"image/{k}") for k in range(50)}
    assert all(0 < distance[click.y, click.x] <= 10 and click.positive for click in clicks)
    assert len(clicks) > 40
    depths = [distance[click.y, click.x] for click in clicks]
    assert min(depths) < 2  # anywhere in the band, not at one depth
    assert max(depths) > 8
    assert click_near_boundary(target, "image/7") == click_near_boundary(target, "image/7")


def test_cutouts_of_masks_compare_as_whole_masks_do() -> None:
    """Wherever in the photo two masks lie: apart, one in the other, at the border, or one of them empty."""
    rng = np.random.default_rng(3)
    for seed in range(40):
        masks = []
        for _ in range(2):
            mask = np.zeros((60, 80), bool)
            top, left, height, width = (int(value) for value in rng.integers((0, 0, 0, 0), (60, 80, 60, 80)))
            mask[top : top + height, left : left + width] = blob(seed, 60, 80)[top : top + height, left : left + width]
            masks.append(mask)
        first, second = map(Cutout.of, masks)
        union = (masks[0] | masks[1]).sum()
        assert first.iou(second) == ((masks[0] & masks[1]).sum() / union if union else 1.0)
        assert np.array_equal(first.without(second).mask, masks[0] & ~masks[1])
        assert (first.area, second.area) == (masks[0].sum(), masks[1].sum())


def test_deepest_pixel_of_any_region_is_that_of_scipys_distances() -> None:
    rng = np.random.default_rng(5)
    for seed in range(60):
        region = blob(seed, *(int(side) for side in rng.integers(1, 50, 2)))
        squared = np.rint(distance_transform_edt(np.pad(region, 1))[1:-1, 1:-1] ** 2).astype(int)
        for least in (1, 4, 20):
            y, x = np.unravel_index(int(squared.argmax()), region.shape) if squared.max() >= least else (0, 0)
            assert deepest(region, least) == (y, x, squared.max() if squared.max() >= least else 0)
