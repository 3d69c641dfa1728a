"""The comparison of benchmark and tests excuses rounding, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sum_factory.pipelines.bench.parts.agreement import compare
from sum_factory.shared.automask.automask import GeneratedMasks
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.placement import Frame

SETTINGS = AutomaskSettings()
SIDE = 128


def make_labels() -> GeneratedMasks:
    """Return three discs, far from every threshold and from each other."""
    rows, columns = np.mgrid[0 : SIDE // 4, 0 : SIDE // 4]
    centres = [(8, 8), (8, 24), (24, 16)]
    logits = np.stack([5.5 - np.hypot(rows - y, columns - x) for y, x in centres]).astype(np.float32)
    labels = GeneratedMasks(
        size=(SIDE, SIDE),
        logits=logits,
        frames=(Frame.whole(SIDE, SIDE, SIDE),) * 3,
        boxes=np.array([[4 * x - 20, 4 * y - 20, 43, 43] for y, x in centres]),
        points=np.array([[4.0 * x, 4.0 * y] for y, x in centres]),
        areas=np.zeros(3, np.int64),
        predicted_iou=np.array([0.95, 0.93, 0.91]),
        stability=np.array([0.97, 0.98, 0.99]),
        embeddings={},
        cleaned={},
    )
    return replace(labels, areas=np.array([np.count_nonzero(mask) for mask in labels.masks()]))


def records_of(labels: GeneratedMasks) -> list[dict[str, Any]]:
    """Return upstream's records of the same masks."""
    return [
        {
            "segmentation": encode_rle(mask),
            "bbox": labels.boxes[k].tolist(),
            "area": int(labels.areas[k]),
            "predicted_iou": float(labels.predicted_iou[k]),
            "stability_score": float(labels.stability[k]),
            "point_coords": [labels.points[k].tolist()],
            "crop_box": [0, 0, SIDE, SIDE],
        }
        for k, mask in enumerate(labels.masks())
    ]


@pytest.fixture
def labels() -> GeneratedMasks:
    return make_labels()


def test_equal_masks_are_exact(labels: GeneratedMasks) -> None:
    agreement = compare(labels, records_of(labels), SETTINGS)
    assert agreement.exact
    assert agreement.unexplained == []
    assert (agreement.common, agreement.equal, agreement.pixels) == (3, 3, 0)


def test_pixel_inside_a_mask_may_not_differ(labels: GeneratedMasks) -> None:
    records = records_of(labels)
    mask = next(labels.masks()).copy()
    mask[32, 32] = False
    records[0]["segmentation"] = mask
    agreement = compare(labels, records, SETTINGS)
    assert not agreement.exact
    assert len(agreement.unexplained) == 1
    assert "differs in 1 pixels" in agreement.unexplained[0]


def test_pixel_at_the_threshold_may_differ(labels: GeneratedMasks) -> None:
    level = labels.logits.copy()
    level[0] = 1e-7  # every pixel is above the threshold, but for rounding
    records = records_of(replace(labels, logits=level))
    mask = np.ones((SIDE, SIDE), bool)
    mask[5, 7] = False
    records[0]["segmentation"] = mask
    agreement = compare(replace(labels, logits=level), records, SETTINGS)
    assert agreement.unexplained == []
    assert (agreement.pixels, agreement.equal) == (1, 2)


@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_mask_of_one_side_alone_has_to_be_marginal(labels: GeneratedMasks, side: str) -> None:
    records = records_of(labels)
    if side == "ours":
        del records[1]
    else:
        records.append({**records[1], "point_coords": [[1.0, 1.0]], "predicted_iou": 0.92})
    (unexplained,) = compare(labels, records, SETTINGS).unexplained
    assert f"kept by {side} alone" in unexplained


@pytest.mark.parametrize(
    "change",
    [{"pred_iou_thresh": 0.93 - 1e-6}, {"stability_score_thresh": 0.98 + 1e-4}],
    ids=["predicted IoU", "stability"],
)
def test_mask_at_a_threshold_may_be_kept_by_one_side_alone(labels: GeneratedMasks, change: dict[str, float]) -> None:
    records = records_of(labels)
    del records[1]
    assert compare(labels, records, replace(SETTINGS, **change)).unexplained == []


def test_other_order_is_noticed(labels: GeneratedMasks) -> None:
    agreement = compare(labels, records_of(labels)[::-1], SETTINGS)
    assert agreement.common == 3
    assert not agreement.same_order
    assert not agreement.exact
