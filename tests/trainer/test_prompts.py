"""Prompts: where points and boxes may fall, and how likely."""

from __future__ import annotations

import numpy as np
import torch

from sum_factory.shared.sam.decode import BOX_MIN, PAD, POSITIVE
from sum_factory.trainer.prompts import (
    boxes_of,
    cells_to_input,
    click_errors,
    first_prompts,
    jitter_boxes,
    sample_cells,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cells_are_drawn_in_proportion_to_their_weight_and_never_at_weight_zero() -> None:
    weights = torch.zeros(1, 3, 5)
    weights[0, 0, 4], weights[0, 2, 0], weights[0, 2, 4] = 1.0, 2.0, 5.0
    many = weights.expand(8000, -1, -1)
    cells, found = sample_cells(many, generator())
    assert found.all()
    counts = np.zeros((3, 5))
    np.add.at(counts, (cells[:, 1].numpy(), cells[:, 0].numpy()), 1)
    expected = weights[0].numpy() / 8 * 8000
    assert (counts[expected == 0] == 0).all()
    assert np.abs(counts - expected).max() < 6 * np.sqrt(8000 * 0.25)


def test_map_without_weight_has_nothing_to_draw() -> None:
    weights = torch.zeros(2, 4, 4)
    weights[1, 3, 3] = 1e-12
    cells, found = sample_cells(weights, generator())
    assert found.tolist() == [False, True]
    assert cells[1].tolist() == [3, 3]


def test_cell_centres_map_to_input_pixels() -> None:
    """On a grid of stride 4, cell 0 covers the pixels 0 to 3, whose mean is 1.5."""
    assert cells_to_input(torch.tensor([0, 1, 63]), 4).tolist() == [1.5, 5.5, 253.5]


def test_boxes_are_x_before_y_and_reach_the_outer_pixels() -> None:
    mask = torch.zeros(1, 10, 20, dtype=torch.bool)
    mask[0, 2:5, 7:16] = True
    assert boxes_of(mask, 1).tolist() == [[7, 2, 15, 4]]
    assert boxes_of(mask, 4).tolist() == [[28, 8, 63, 19]]


def test_box_noise_is_independent_in_each_coordinate_goes_both_ways_and_is_clipped() -> None:
    boxes = torch.tensor([[300.0, 400.0, 500.0, 800.0]]).repeat(4000, 1)
    noise = (jitter_boxes(boxes, 1024, generator()) - boxes).numpy()
    assert np.abs(noise).max() <= 20
    assert (np.abs(noise.mean(0)) < 1.0).all()
    assert np.abs(np.corrcoef(noise.T) - np.eye(4)).max() < 0.08
    assert (noise.min(0) < -19).all()
    assert (noise.max(0) > 19).all()
    small = torch.tensor([[100.0, 100.0, 149.0, 119.0]]).repeat(4000, 1)
    spread = (jitter_boxes(small, 1024, generator(1)) - small).numpy().std(0)
    assert np.allclose(spread, [5, 2, 5, 2], rtol=0.08)


def test_first_points_lie_inside_their_masks_and_shares_of_boxes_hold() -> None:
    masks = torch.zeros(2000, 16, 16, dtype=torch.bool)
    masks[:, 3:6, 8:12] = True
    prompts = first_prompts(masks, torch.ones(2000, 16, 16), 0.5, 4, 64, generator())
    boxed = prompts.token_types[:, 0] == BOX_MIN
    assert 0.45 < float(boxed.float().mean()) < 0.55
    points = prompts.coords[~boxed, 0]
    assert (prompts.token_types[~boxed] == torch.tensor([POSITIVE, PAD])).all()
    assert set(points[:, 0].tolist()) == {33.5, 37.5, 41.5, 45.5}
    assert set(points[:, 1].tolist()) == {13.5, 17.5, 21.5}


def test_mask_without_any_certain_pixel_is_prompted_by_its_box() -> None:
    masks = torch.ones(20, 4, 4, dtype=torch.bool)
    prompts = first_prompts(masks, torch.zeros(20, 4, 4), 0.0, 4, 16, generator())
    assert (prompts.token_types[:, 0] == BOX_MIN).all()


def test_clicks_fall_on_errors_with_the_right_label_in_proportion_to_certainty() -> None:
    target = torch.zeros(6000, 8, 8, dtype=torch.bool)
    target[:, 1:3, 1:3] = True
    predicted = torch.zeros_like(target)
    predicted[:, 1:3, 2:3] = True  # misses column 1
    predicted[:, 6, 6] = True  # wrong there
    certainty = torch.ones(6000, 8, 8)
    certainty[:, 1, 1] = 0.0
    certainty[:, 6, 6] = 3.0
    coords, token_types, found = click_errors(predicted, target, certainty, 4, generator())
    assert found.all()
    missed = (coords == torch.tensor([5.5, 9.5])).all(1)
    wrong = (coords == torch.tensor([25.5, 25.5])).all(1)
    assert (missed | wrong).all()
    assert (token_types == missed.long()).all()
    assert 0.72 < float(wrong.float().mean()) < 0.78


def test_no_error_region_gives_no_click() -> None:
    target = torch.rand(3, 8, 8, generator=generator()) > 0.5
    _, _, found = click_errors(target, target, torch.ones(3, 8, 8), 4, generator())
    assert not found.any()
    doubtful = torch.zeros(3, 8, 8)
    _, _, found = click_errors(~target, target, doubtful, 4, generator())
    assert not found.any()
