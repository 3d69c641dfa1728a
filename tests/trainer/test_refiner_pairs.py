"""Training pairs of the refiner, against a loop with upstream's predictor: one mask, one point at a time."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import segment_anything
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import calculate_stability_score
from torch import Tensor

from sum_factory.shared.sam.quality import QualityFilter
from sum_factory.shared.sam.refiner import Refiner
from sum_factory.trainer.batch import Batch, collate
from sum_factory.trainer.data.samples import SampleId, TrainingSample
from sum_factory.trainer.refiner import Pairs, make_pairs

OFFSET = 0.01
"""The logits of random weights are small."""
EVERYTHING = QualityFilter(0, 0, OFFSET, max_area_share=2)
SIZES = [(100, 128), (128, 72)]
"""Heights and widths: the longer side is SAM's, so that a pixel of the photo is a pixel of the input."""


@dataclass(frozen=True)
class Pair:
    """What the loop makes of one human mask."""

    low_res: npt.NDArray[np.float32]
    box: list[int]
    iou: float
    predicted: float
    stability: float
    share: float


@pytest.fixture(scope="module")
def photos() -> list[npt.NDArray[np.uint8]]:
    random = np.random.default_rng(3)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def masks() -> list[npt.NDArray[np.bool_]]:
    """Five masks of the first photo, four of the second."""
    made = []
    for seed, (height, width) in enumerate(SIZES):
        random = np.random.default_rng(seed)
        stack = np.zeros((5 - seed, height, width), bool)
        for mask in stack:
            top, left = random.integers(0, height // 2), random.integers(0, width // 2)
            mask[top : top + random.integers(8, height // 2), left : left + random.integers(8, width // 2)] = True
        made.append(stack)
    return made


def make_batch(sam: Sam, photos: list[Any], masks: list[Any]) -> Batch:
    """Return both photos with their masks at the input's own resolution."""
    samples = []
    for index, (photo, stack) in enumerate(zip(photos, masks, strict=True)):
        grid = torch.zeros(len(stack), 128, 128, dtype=torch.bool)
        grid[:, : photo.shape[0], : photo.shape[1]] = torch.from_numpy(stack)
        image = torch.from_numpy(photo.transpose(2, 0, 1).copy())
        samples.append(
            TrainingSample(SampleId("human", 0, index), str(index), image, grid, None, None, photo.shape[:2], 1)
        )
    batch = collate(samples, sam, 1, 0)
    assert batch is not None
    return batch


def pairs_of(sam: Sam, batch: Batch, least_iou: float, quality: QualityFilter) -> Pairs:
    with torch.no_grad():
        return make_pairs(sam, sam.image_encoder(batch.images), batch, least_iou, quality)


@pytest.fixture(scope="module")
def everything(tiny_sam: Sam, photos: list[Any], masks: list[Any]) -> Pairs:
    """The pairs without any filter."""
    return pairs_of(tiny_sam, make_batch(tiny_sam, photos, masks), 0.0, EVERYTHING)


@pytest.fixture(scope="module")
def naive(tiny_sam: Sam, photos: list[Any], masks: list[Any], everything: Pairs) -> list[Pair]:
    """What upstream's predictor makes of the same points, in the same order."""
    points = iter(everything.points.tolist())
    predictor, made = segment_anything.SamPredictor(tiny_sam), []
    for photo, stack in zip(photos, masks, strict=True):
        predictor.set_image(photo)
        for mask in stack:
            logits, predicted, low_res = predictor.predict(
                np.array([next(points)]), np.array([1]), multimask_output=True, return_logits=True
            )
            ious = [(each & mask).sum() / (each | mask).sum() for each in logits > 0]
            best = int(np.argmax(ious))
            rows, columns = np.nonzero(logits[best] > 0)
            made.append(
                Pair(
                    low_res=low_res[best],
                    box=[int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())],
                    iou=float(ious[best]),
                    predicted=float(predicted[best]),
                    stability=float(calculate_stability_score(torch.from_numpy(logits[best : best + 1]), 0.0, OFFSET)),
                    share=float((logits[best] > 0).mean()),
                )
            )
    return made


def test_point_of_a_pair_lies_in_its_mask(everything: Pairs, masks: list[npt.NDArray[np.bool_]]) -> None:
    assert everything.indexes.tolist() == list(range(9))
    flat = [mask for stack in masks for mask in stack]
    for (x, y), mask in zip(everything.points.long().tolist(), flat, strict=True):
        assert mask[y, x]
    assert len({tuple(point) for point in everything.points.tolist()}) > 5


def test_best_of_three_outputs_is_what_upstreams_predictor_gives(everything: Pairs, naive: list[Pair]) -> None:
    for k, pair in enumerate(naive):
        np.testing.assert_allclose(everything.logits[k].numpy(), pair.low_res, rtol=1e-4, atol=1e-5)
        assert float(everything.iou[k]) == pytest.approx(pair.iou, abs=1e-6)
        assert everything.boxes[k].tolist() == pair.box


@pytest.mark.parametrize("name", ["iou", "predicted", "stability", "share"])
def test_each_filter_keeps_what_the_loop_keeps(
    tiny_sam: Sam, photos: list[Any], masks: list[Any], everything: Pairs, naive: list[Pair], name: str
) -> None:
    """The threshold lies in the middle of the values that there are."""
    values = sorted(getattr(pair, name) for pair in naive)
    middle = (values[4] + values[5]) / 2
    settings = {"predicted": "pred_iou_thresh", "stability": "stability_score_thresh", "share": "max_area_share"}
    changes = {settings[name]: middle} if name in settings else {}
    quality = dataclasses.replace(EVERYTHING, **changes)
    batch = make_batch(tiny_sam, photos, masks)
    kept = pairs_of(tiny_sam, batch, middle if name == "iou" else 0.0, quality)
    above = [k for k, pair in enumerate(naive) if (getattr(pair, name) > middle) != (name == "share")]
    assert 0 < len(above) < len(naive)
    assert kept.indexes.tolist() == above
    assert len(kept) == len(above)
    for field in ("logits", "points", "boxes", "iou"):
        assert torch.equal(getattr(kept, field), getattr(everything, field)[kept.indexes])


def test_pairs_at_the_least_iou_stay(tiny_sam: Sam, photos: list[Any], masks: list[Any], everything: Pairs) -> None:
    least = float(everything.iou.max())
    kept = pairs_of(tiny_sam, make_batch(tiny_sam, photos, masks), least, EVERYTHING)
    assert kept.indexes.tolist() == [int(everything.iou.argmax())]
    assert len(pairs_of(tiny_sam, make_batch(tiny_sam, photos, masks), least + 1e-3, EVERYTHING)) == 0


def test_refiner_starts_as_upstreams_decoder_given_point_box_and_mask(
    tiny_sam: Sam, photos: list[Any], masks: list[Any], everything: Pairs
) -> None:
    """All three prompts go in, and the single-mask output comes out."""
    batch = make_batch(tiny_sam, photos, masks)
    index = batch.targets.image_index
    with torch.no_grad():
        embeddings: Tensor = tiny_sam.image_encoder(batch.images)
        refined = Refiner.copy_of(tiny_sam).refine(
            embeddings, index, everything.points, everything.boxes, everything.logits
        )
        for k in range(9):
            point = everything.points[k].view(1, 1, 2), torch.ones(1, 1)
            sparse, dense = tiny_sam.prompt_encoder(point, everything.boxes[k][None], everything.logits[k][None, None])
            expected, _ = tiny_sam.mask_decoder(
                embeddings[index[k]][None], tiny_sam.prompt_encoder.get_dense_pe(), sparse, dense, False
            )
            torch.testing.assert_close(refined[k], expected[0, 0], rtol=1e-4, atol=1e-5)
