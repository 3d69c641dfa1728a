"""The benchmark of targets draws what a target keeps of a mask, and compares targets that there are."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sum_factory.pipelines.bench.targets import CANDIDATES, Candidate, Data, Training, drawn
from sum_factory.trainer.data.human import Masks
from sum_factory.trainer.data.sets import FolderPairsSettings
from sum_factory.trainer.evaluation.metrics import boundary_iou
from sum_factory.trainer.target import require_target


def star() -> Masks:
    """A mask with points, on a photo as large as the input of ``vit_micro``."""
    angles = np.arange(14) * np.pi / 7
    radii = np.where(np.arange(14) % 2, 40, 100)
    corners = np.stack([128 + radii * np.cos(angles), 96 + 0.8 * radii * np.sin(angles)], 1)
    return cv2.fillPoly(np.zeros((192, 256), np.uint8), [corners.round().astype(np.int32)], 1).astype(bool)


def test_bits_of_pixels_are_the_mask_and_those_of_cells_are_the_cells() -> None:
    mask = star()
    assert np.array_equal(drawn(mask, Candidate("bits", 1), 256), mask)
    assert np.array_equal(drawn(mask, Candidate("points", 4), 256), mask)
    cells = mask.reshape(48, 4, 64, 4).mean((1, 3)) >= 0.5
    found = drawn(mask, Candidate("authors", 4), 256).reshape(48, 4, 64, 4)[:, 1:3, :, 1:3].mean((1, 3)) >= 0.5
    assert (found == cells).mean() > 0.99


def test_shares_draw_a_mask_more_exactly_than_bits_of_the_same_cells() -> None:
    mask = star()
    exact = {each: boundary_iou(drawn(mask, each, 256), mask) for each in CANDIDATES}
    assert exact[Candidate("authors", 4)] + 0.02 < exact[Candidate("coverage", 4)] < 1
    assert exact[Candidate("bits", 2)] + 0.02 < exact[Candidate("coverage", 2)] < 1


def test_every_candidate_is_a_target_that_there_is() -> None:
    human = FolderPairsSettings("folder-pairs", Path("a"), Path("b"), "salient")
    for each in CANDIDATES:
        require_target(each.target, each.stride)
        recipe = Training(2, 1, 2, 2, 1).recipe(Data((human,), ()), each, 0)
        assert (recipe.target, recipe.stride) == (each.target, each.stride)
