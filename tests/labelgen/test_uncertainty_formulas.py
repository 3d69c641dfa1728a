"""The formulas of uncertainty, and what is made of a row of the masks' manifest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import entr, expit
from segment_anything.utils.transforms import ResizeLongestSide

from sum_factory.labelgen.formulas import binary_entropy, difference, lack_of_confidence
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.labelgen.uncertainty import MaskToRefine, photo_to_input
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.placement import Frame

GRID = np.linspace(-30, 30, 601, dtype=np.float32).reshape(1, -1)


def test_refinement_is_the_difference_of_probabilities() -> None:
    r = np.random.default_rng(0).normal(0, 9, GRID.shape).astype(np.float32)
    u = difference(torch.from_numpy(GRID), torch.from_numpy(r)).numpy()
    np.testing.assert_allclose(u, np.abs(expit(GRID.astype(np.float64)) - expit(r.astype(np.float64))), atol=1e-6)


def test_confidence_is_the_distance_from_a_sure_answer() -> None:
    p = expit(GRID.astype(np.float64))
    u = lack_of_confidence(torch.from_numpy(GRID)).numpy()
    np.testing.assert_allclose(u, 2 * np.minimum(p, 1 - p), atol=1e-6)
    assert ((u >= 0) & (u <= 1)).all()


def test_entropy_is_that_of_a_coin_in_bits() -> None:
    p = expit(GRID.astype(np.float64))
    u = binary_entropy(torch.from_numpy(GRID)).numpy()
    np.testing.assert_allclose(u, (entr(p) + entr(1 - p)) / np.log(2), atol=1e-6)
    assert ((u >= 0) & (u <= 1)).all()
    assert binary_entropy(torch.zeros(1)).item() == 1


@pytest.mark.parametrize(("size", "crop"), [((512, 1024), None), ((2048, 1000), None), ((900, 900), (0, 0, 512, 300))])
def test_area_is_counted_in_a_photo_of_1024_pixels(
    size: tuple[int, int], crop: tuple[int, int, int, int] | None
) -> None:
    frame = Frame(256, crop or (0, 0, size[1], size[0]))
    long_side = max(frame.crop_size)
    mask = MaskToRefine(frame, (0, 0), (0, 0, 9, 9), area=1000, label=b"")
    assert mask.area_at_reference == pytest.approx(1000 * 1024**2 / long_side**2)


def test_points_and_boxes_are_mapped_as_upstream_does() -> None:
    transform = ResizeLongestSide(256)
    frame = Frame(256, (30, 50, 201, 163))
    coords = np.random.default_rng(0).uniform(50, 160, (9, 2))
    expected = transform.apply_coords(coords - [30, 50], (113, 171))
    np.testing.assert_allclose(photo_to_input(coords.tolist(), frame).numpy(), expected, rtol=1e-6)


def test_row_of_a_manifest_gives_the_same_mask_before_and_after_it_was_written() -> None:
    names = ("box_x", "box_y", "box_w", "box_h", "area", "crop_x0", "crop_y0", "crop_x1", "crop_y1")
    row = dict(zip(names, (3, 4, 10, 20, 99, 0, 0, 64, 48), strict=True))
    fresh = MaskToRefine.from_row({**row, "point_x": 1 / 3, "point_y": 0.1}, b"label", 128)
    read = MaskToRefine.from_row(
        {**row, "point_x": float(np.float32(1 / 3)), "point_y": float(np.float32(0.1))}, b"label", 128
    )
    assert fresh == read
    assert fresh.box == (3, 4, 13, 24)
    assert fresh.frame == Frame(128, (0, 0, 64, 48))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"source": "guess"}, "'guess' is no source"), ({"source": "entropy", "min_refine_area": 5}, "refines nothing")],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        UncertaintySettings(**settings)
