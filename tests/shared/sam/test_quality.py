"""Filters of automatic masks, against upstream's stability score and counts of pixels."""

from __future__ import annotations

import pytest
import torch
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sum_factory.shared.sam.quality import QualityFilter

NONE = QualityFilter(pred_iou_thresh=0, stability_score_thresh=0, max_area_share=2)
HEIGHT, WIDTH = 20, 30


@pytest.fixture(scope="module")
def logits() -> Tensor:
    """Masks of many sizes and degrees of steepness."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.arange(HEIGHT)[:, None], torch.arange(WIDTH)[None]
    masks = []
    for k in range(40):
        row, column = torch.rand(2, generator=generator).tolist()
        distance = torch.hypot(rows - row * HEIGHT, columns - column * WIDTH)
        masks.append((2 + k % 9 - distance) * (0.3 + 0.4 * (k % 7)))
    return torch.stack(masks)


def everywhere(logits: Tensor) -> Tensor:
    return torch.ones_like(logits, dtype=torch.bool)


def test_defaults_are_the_papers_but_for_the_packaged_model() -> None:
    for name in ("vit_b", "vit_l", "vit_h"):
        quality = QualityFilter.of_model(name)
        assert (quality.pred_iou_thresh, quality.stability_score_thresh) == (0.88, 0.95)
        assert (quality.stability_score_offset, quality.max_area_share) == (1.0, 0.95)
    assert QualityFilter.of_model("vit_micro") == QualityFilter(0.5, 0.8)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("offset", [0.5, 1.0])
def test_stability_is_upstreams(logits: Tensor, threshold: float, offset: float) -> None:
    quality = QualityFilter(0, threshold, offset, max_area_share=2)
    keep = quality.keeps(logits, everywhere(logits), torch.ones(len(logits)))
    area = (logits > 0).flatten(1).sum(1)
    expected = (calculate_stability_score(logits, 0.0, offset) >= threshold) & (area > 0)
    assert torch.equal(keep, expected)
    assert 0 < int(keep.sum()) < len(keep)


def test_predicted_iou_has_to_be_above_its_threshold(logits: Tensor) -> None:
    some = logits[:3]
    predicted = torch.tensor([0.5, 0.4999, 0.5001])
    quality = QualityFilter(0.5, 0, max_area_share=2)
    assert quality.keeps(some, everywhere(some), predicted).tolist() == [False, False, True]


def test_stability_at_its_threshold_stays() -> None:
    logits = torch.full((1, 1, 4), 2.0)
    logits[0, 0, 3] = 0.5  # inside at -1, outside at +1
    assert QualityFilter(0, 0.75, max_area_share=2).keeps(logits, everywhere(logits), torch.ones(1)).tolist() == [True]
    assert not QualityFilter(0, 0.7501, max_area_share=2).keeps(logits, everywhere(logits), torch.ones(1)).any()


def test_mask_of_almost_all_of_the_image_is_dropped() -> None:
    logits = torch.full((3, 10, 10), 5.0)
    logits[0, 0, :5] = -5.0  # 95 of 100
    logits[1, 0, :6] = -5.0  # 94 of 100
    keep = QualityFilter(0, 0).keeps(logits, everywhere(logits), torch.ones(3))
    assert keep.tolist() == [False, True, False]


def test_padding_counts_for_nothing() -> None:
    """Half of the square is padding: a mask of it all covers the image, and unstable padding does no harm."""
    logits = torch.full((3, 10, 10), -5.0)
    logits[0, :5] = 5.0
    logits[1, 1:5] = 5.0
    logits[2, 1:5] = 5.0
    logits[2, 5:] = 0.5
    valid = torch.zeros(3, 10, 10, dtype=torch.bool)
    valid[:, :5] = True
    quality = QualityFilter(0, 0.95)
    assert quality.keeps(logits, valid, torch.ones(3)).tolist() == [False, True, True]
    assert quality.keeps(logits, valid[:1], torch.ones(3)).tolist() == [False, True, True]


def test_empty_mask_never_stays() -> None:
    logits = torch.full((1, 4, 4), -0.5)
    assert not NONE.keeps(logits, everywhere(logits), torch.ones(1)).any()


def test_threshold_of_zero_is_no_filter(logits: Tensor) -> None:
    keep = NONE.keeps(logits, everywhere(logits), torch.full((len(logits),), -3.0))
    assert torch.equal(keep, (logits > 0).flatten(1).any(1))
    assert NONE.keeps(logits[:0], everywhere(logits[:0]), torch.ones(0)).shape == (0,)
