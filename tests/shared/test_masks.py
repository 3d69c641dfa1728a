"""IoU and boxes of masks, against upstream's and against a count in Python."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box

from sum_factory.shared.masks import box_of, iou, ious


@pytest.fixture
def masks() -> npt.NDArray[np.bool_]:
    """Twelve random masks, bool (12, 9, 14); the first two are empty, and the last is full."""
    random = np.random.default_rng(0)
    masks = random.random((12, 9, 14)) < random.random((12, 1, 1)) ** 2
    masks[:2], masks[-1] = False, True
    return masks


def counted(one: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> float:
    """Return the IoU as sets of pixels have it."""
    first, second = (set(zip(*np.nonzero(mask), strict=True)) for mask in (one, other))
    return len(first & second) / len(first | second) if first | second else 1.0


def test_iou_of_arrays_and_of_tensors_is_that_of_sets_of_pixels(masks: npt.NDArray[np.bool_]) -> None:
    expected = [[counted(one, other) for other in masks] for one in masks]
    assert [[iou(one, other) for other in masks] for one in masks] == expected
    tensor = torch.from_numpy(masks)
    found = ious(tensor[:, None], tensor[None])
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found, np.array(expected, np.float32))


def test_two_empty_tensors_have_the_iou_that_is_given(masks: npt.NDArray[np.bool_]) -> None:
    tensor = torch.from_numpy(masks)
    assert ious(tensor, tensor, empty=0.0).tolist() == [0.0, 0.0] + [1.0] * 10
    assert ious(tensor[:0], tensor[:0]).shape == (0,)


def test_boxes_are_upstreams(masks: npt.NDArray[np.bool_]) -> None:
    assert [list(box_of(mask)) for mask in masks] == batched_mask_to_box(torch.from_numpy(masks)).tolist()
