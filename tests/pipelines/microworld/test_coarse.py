"""Coarse masks lose gaps, rods and fine outlines, always in the same way, and nothing else."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from sum_factory.pipelines.microworld.coarse import Coarseness, coarse_masks, coarsen
from sum_factory.pipelines.microworld.scene import World, make_scene

Mask = npt.NDArray[np.bool_]


def empty() -> Mask:
    """Return a mask of a scene with nothing in it."""
    return np.zeros((256, 256), bool)


def disc(radius: int, centre: tuple[int, int] = (128, 128)) -> Mask:
    """Return a filled disc."""
    rows, columns = np.ogrid[:256, :256]
    return np.asarray((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 <= radius**2)


def iou(a: Mask, b: Mask) -> float:
    """Return the IoU of two masks that are not both empty."""
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


def lattice() -> Mask:
    """Return a panel of bars, 2 px wide and 9 px apart, from 60 to 180."""
    mask = empty()
    for start in range(60, 180, 9):
        mask[start : start + 2, 60:180] = mask[60:180, start : start + 2] = True
    return mask


def test_lattice_becomes_a_panel() -> None:
    coarse = coarsen(lattice(), Coarseness())
    assert coarse[70:165, 70:165].all()
    assert np.count_nonzero(lattice()[70:165, 70:165]) < 0.5 * 95 * 95
    assert not coarse[:50].any()
    assert not coarse[190:].any()


def test_rod_on_a_body_disappears_and_the_body_stays() -> None:
    mask = disc(40)
    mask[126:129, 128:240] = True
    coarse = coarsen(mask, Coarseness())
    assert iou(coarse, disc(40)) > 0.97
    assert not coarse[:, 180:].any()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_thin_structure_alone_is_never_annotated(width: int) -> None:
    mask = empty()
    mask[30:220, 100 : 100 + width] = True
    assert not coarsen(mask, Coarseness()).any()


def test_outline_is_rounded() -> None:
    square = empty()
    square[80:180, 80:180] = True
    coarse = coarsen(square, Coarseness())
    assert not coarse[[80, 80, 179, 179], [80, 179, 80, 179]].any()
    assert coarse[82:178, 130].all()
    assert iou(coarse, square) > 0.97


def test_fine_waves_of_an_outline_are_smoothed() -> None:
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    radii = 60 + 4 * np.sign(np.cos(16 * angles))
    points = np.stack([128 + radii * np.cos(angles), 128 + radii * np.sin(angles)], 1)
    gear = cv2.fillPoly(np.zeros((256, 256), np.uint8), [np.rint(points).astype(np.int32)], 1).astype(bool)

    def perimeter(mask: Mask) -> float:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        return float(cv2.arcLength(contours[0], True))

    coarse = coarsen(gear, Coarseness())
    assert perimeter(coarse) < 0.85 * perimeter(gear)
    assert iou(coarse, gear) > 0.85


@pytest.mark.parametrize(("radius", "filled"), [(5, True), (10, True), (14, False)])
def test_holes_up_to_a_size_are_filled(radius: int, filled: bool) -> None:
    coarse = coarsen(disc(60) & ~disc(radius), Coarseness())
    assert coarse[128, 128] == filled


def test_largest_hole_that_is_filled_is_a_setting() -> None:
    mask = disc(60) & ~disc(14)
    assert coarsen(mask, Coarseness(largest_hole=1000))[128, 128]


def test_body_without_detail_is_hardly_changed() -> None:
    assert iou(coarsen(disc(50), Coarseness()), disc(50)) > 0.98


def test_small_component_beside_a_large_one_is_dropped() -> None:
    coarse = coarsen(disc(50, (100, 100)) | disc(12, (220, 220)), Coarseness())
    assert coarse[100, 100]
    assert not coarse[220, 220]
    assert coarsen(disc(12, (220, 220)), Coarseness())[220, 220]


def test_components_of_like_size_are_both_kept() -> None:
    coarse = coarsen(disc(30, (70, 70)) | disc(25, (180, 180)), Coarseness())
    assert coarse[70, 70]
    assert coarse[180, 180]


@pytest.mark.parametrize("mask", [empty(), disc(5)], ids=["empty", "tiny"])
def test_empty_or_tiny_mask_gives_an_empty_one(mask: Mask) -> None:
    coarse = coarsen(mask, Coarseness())
    assert coarse.dtype == bool
    assert coarse.shape == mask.shape
    assert not coarse.any()


def test_mask_of_the_whole_scene_stays_whole() -> None:
    assert coarsen(~empty(), Coarseness()).mean() > 0.99


def test_object_cut_by_the_border_keeps_its_place_there() -> None:
    mask = disc(50, (0, 128))
    coarse = coarsen(mask, Coarseness())
    assert coarse[0, 100:156].all()
    assert iou(coarse, mask) > 0.95


def test_input_is_not_changed() -> None:
    mask = lattice()
    coarsen(mask, Coarseness())
    np.testing.assert_array_equal(mask, lattice())


def test_coarsening_a_coarse_mask_changes_little() -> None:
    scores = []
    for index in range(12):
        scene = make_scene(21, index)
        for exact in scene.masks("entity"):
            once = coarsen(exact, Coarseness())
            if np.count_nonzero(once) > 1000:
                scores.append((iou(once, coarsen(once, Coarseness())), iou(once, exact)))
    again, first = np.mean(scores, axis=0)
    assert again > 0.93
    assert again > first + 0.05


def test_components_are_large_or_gone() -> None:
    coarseness = Coarseness()
    for index in range(6):
        for mask in coarse_masks(make_scene(22, index)):
            labels, count = ndimage.label(mask, np.ones((3, 3)))
            areas = np.bincount(labels.ravel())[1:]
            assert count >= 1
            assert areas.min() >= coarseness.minimum_area
            assert areas.min() >= coarseness.smallest_component * areas.max()


def test_coarse_masks_are_those_of_entities_then_parts_and_never_empty() -> None:
    scene = make_scene(23, 0)
    expected = [coarsen(mask, Coarseness()) for task in ("entity", "part") for mask in scene.masks(task)]
    np.testing.assert_array_equal(coarse_masks(scene), [mask for mask in expected if mask.any()])


def test_scene_in_which_nothing_survives_gives_no_masks() -> None:
    thin = World(thin_object_share=1.0, distractors=(0, 0))
    scene = make_scene(0, 0, thin)
    everything_thin = Coarseness(close=3, largest_hole=0, open=15)
    assert scene.masks("entity").any()
    assert coarse_masks(scene, everything_thin).shape == (0, 256, 256)
