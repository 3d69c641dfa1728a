"""Automatic masks are those of ``segment_anything``, in its order, each with the low-resolution logits it came from."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import remove_small_regions
from torch import Tensor

from sum_factory.shared.automask import regions
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.placement import paste
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.point_decoder import PointImage
from sum_factory.shared.sam.runtime import Runtime, move_to_device, resize
from upstream_masks import (
    EVERYTHING,
    SIZES,
    AreaFilter,
    Masks,
    assert_agree,
    assert_identical,
    masks_of,
    photo,
    two_threads,
    upstream,
    with_upstreams_decoder,
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    """The packaged model, whose masks are many and varied, but for its opinion of them: that it never gives 0 or less.

    What the masks are worth does not matter here; a threshold of 0 would be no filter.
    """
    sam = load_sam().sam
    with torch.no_grad():
        sam.mask_decoder.iou_prediction_head.layers[-1].bias += 2
    return sam


@pytest.fixture(scope="module")
def settings(sam: Sam) -> AutomaskSettings:
    """Thresholds in the middle of what the model gives, whatever its weights: each filter lets some masks through."""
    records = upstream(sam, EVERYTHING).generate(photo(SIZES["landscape"]))
    middle = {
        name: float(np.quantile([record[name] for record in records], 0.4))
        for name in ("predicted_iou", "stability_score")
    }
    return replace(
        EVERYTHING,
        pred_iou_thresh=middle["predicted_iou"],
        stability_score_thresh=middle["stability_score"],
        box_nms_thresh=0.3,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "one layer of crops": {"crop_n_layers": 1, "pred_iou_thresh": 0.0, "crop_n_points_downscale_factor": 2},
    "two layers of crops": {
        "crop_n_layers": 2,
        "crop_overlap_ratio": 0.2,
        "points_per_side": 2,
        "crop_nms_thresh": 0.5,
    },
    "cleaned": {"min_mask_region_area": 60, "stability_score_thresh": 0.1, "box_nms_thresh": 0.9},
    "all candidates": {"pred_iou_thresh": 0.0, "stability_score_thresh": 1e-9, "box_nms_thresh": 1.0},
    "other offset": {"stability_score_offset": 3.0, "stability_score_thresh": 0.3},
}


TRIED_ON = {
    "one layer of crops": ("landscape", "odd", "tiny", "tiny strip"),
    "two layers of crops": ("tiny strip",),  # 21 crops; one layer of them has every size
    "all candidates": ("landscape", "square", "tiny"),
    "other offset": ("portrait", "odd", "tiny strip"),
}
"""The sizes that a variant is tried on, if not on all: each size has most variants, and each variant large and tiny."""
CASES = [
    pytest.param(SIZES[size], VARIANTS[name], id=f"{size}-{name}")
    for name in VARIANTS
    for size in TRIED_ON.get(name, SIZES)
]


@pytest.mark.parametrize(("size", "changes"), CASES)
def test_kept_masks_are_upstreams_and_from_equal_logits_to_the_bit(
    sam: Sam, settings: AutomaskSettings, size: tuple[int, int], changes: dict[str, Any]
) -> None:
    changed, image = replace(settings, **changes), photo(size)
    with two_threads():
        expected = upstream(sam, changed, output_mode="coco_rle").generate(image)
        assert_identical(with_upstreams_decoder(sam, changed, image), expected)
        assert_agree(LabelGenerator(sam, changed).label(image), expected, changed)


def test_kept_masks_are_upstreams_on_a_photo_of_more_than_8192_pixels(sam: Sam, settings: AutomaskSettings) -> None:
    image = photo((8300, 260))
    few = replace(settings, points_per_side=2)
    with two_threads():
        expected = upstream(sam, few, output_mode="coco_rle").generate(image)
        assert len(expected) > 1
        assert_identical(with_upstreams_decoder(sam, few, image), expected)
    assert_agree(LabelGenerator(sam, few).label(image), expected, few)


def test_kept_masks_of_a_moved_model_are_upstreams(sam: Sam, settings: AutomaskSettings) -> None:
    image = photo(SIZES["landscape"])
    expected = upstream(sam, settings, output_mode="coco_rle").generate(image)
    moved = move_to_device(deepcopy(sam), Runtime("cpu"))
    assert_agree(LabelGenerator(moved, settings).label(image), expected, settings)


def test_each_filter_keeps_some_masks_and_drops_some(sam: Sam, settings: AutomaskSettings) -> None:
    image = photo(SIZES["landscape"])
    everything = len(LabelGenerator(sam, EVERYTHING).label(image))
    for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh"):
        alone = replace(EVERYTHING, **{name: getattr(settings, name)})
        assert 1 < len(LabelGenerator(sam, alone).label(image)) < everything, name


def test_threshold_of_zero_is_no_filter_as_in_upstream(sam: Sam, settings: AutomaskSettings) -> None:
    sam = deepcopy(sam)
    with torch.no_grad():  # about half of all predictions below 0
        sam.mask_decoder.iou_prediction_head.layers[-1].bias -= settings.pred_iou_thresh
    opened = replace(settings, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    image = photo(SIZES["landscape"])
    generated = upstream(sam, opened, output_mode="coco_rle").generate(image)
    expected = [record for record in generated if record["area"] > 0]  # upstream keeps masks without a pixel
    assert min(record["predicted_iou"] for record in expected) < 0
    assert_agree(LabelGenerator(sam, opened).label(image), expected, opened)


def test_masks_are_those_that_the_logits_mean(sam: Sam, settings: AutomaskSettings) -> None:
    labels = LabelGenerator(sam, replace(settings, crop_n_layers=1)).label(photo(SIZES["portrait"]))
    assert len(set(labels.frames)) > 1
    for mask, meant in zip(labels.masks(), masks_of(labels, SIZES["portrait"]), strict=True):
        np.testing.assert_array_equal(mask, meant)


def test_logits_and_counts_have_the_types_that_are_promised(sam: Sam, settings: AutomaskSettings) -> None:
    labels = LabelGenerator(sam, settings).label(photo(SIZES["landscape"]))
    assert labels.logits.shape == (len(labels), 64, 64)
    dtypes = {name: getattr(labels, name).dtype for name in ("logits", "boxes", "points", "areas", "stability")}
    assert dtypes == {
        "logits": np.float32,
        "boxes": np.int64,
        "points": np.float64,
        "areas": np.int64,
        "stability": np.float64,
    }


@pytest.fixture(scope="module")
def greedy(sam: Sam) -> Sam:
    """A model whose third mask is always the whole image."""
    greedy = deepcopy(sam)
    decoder = greedy.mask_decoder
    with torch.no_grad():  # channel 0 of the upscaled embedding is constant; only the third mask's weights read it
        decoder.output_upscaling[3].weight[:, 0] = 0
        decoder.output_upscaling[3].bias[0] = 10
        for k, mlp in enumerate(decoder.output_hypernetworks_mlps):
            last = mlp.layers[-1]
            if k == 3:
                last.weight.zero_()
                last.bias.zero_()
            last.weight[0] = 0
            last.bias[0] = float(k == 3)
    return greedy


def test_only_ours_drops_a_mask_of_the_whole_image(greedy: Sam, settings: AutomaskSettings) -> None:
    size = SIZES["landscape"]
    opened = replace(settings, pred_iou_thresh=-1000.0)
    theirs = upstream(greedy, opened).generate(photo(size))
    labels = LabelGenerator(greedy, replace(opened, max_area_share=0.95)).label(photo(size))
    assert max(record["area"] for record in theirs) == size[0] * size[1]
    assert len(labels) > 0
    assert labels.areas.max() < 0.95 * size[0] * size[1]


def test_area_filter_comes_before_duplicates_are_removed(greedy: Sam, settings: AutomaskSettings) -> None:
    # Else a mask of the whole image would take others with it.
    size = SIZES["landscape"]
    opened = replace(settings, pred_iou_thresh=-1000.0, max_area_share=0.95, crop_n_layers=1, points_per_side=3)
    expected = upstream(greedy, opened, AreaFilter, output_mode="coco_rle").generate(photo(size))
    assert_agree(LabelGenerator(greedy, opened).label(photo(size)), expected, opened)


def test_mask_of_exactly_the_largest_share_is_dropped(greedy: Sam, settings: AutomaskSettings) -> None:
    opened = replace(settings, pred_iou_thresh=-1000.0, max_area_share=1.0)
    labels = LabelGenerator(greedy, opened).label(photo((60, 80)))
    assert (labels.areas < 60 * 80).all()


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("cleaned", [0, 50])
@pytest.mark.parametrize("name", ["pred_iou_thresh", "stability_score_thresh", "max_area_share"])
def test_keeping_nothing_gives_an_empty_result(
    sam: Sam, settings: AutomaskSettings, layers: int, cleaned: int, name: str
) -> None:
    value = 0.0 if name == "max_area_share" else 1000.0
    nothing = replace(settings, points_per_side=2, crop_n_layers=layers, min_mask_region_area=cleaned, **{name: value})
    labels = LabelGenerator(sam, nothing).label(photo(SIZES["landscape"]))
    assert len(labels) == 0
    assert labels.logits.shape == (0, 64, 64)
    assert labels.boxes.shape == (0, 4)
    assert labels.points.shape == (0, 2)
    assert labels.frames == ()
    assert len(labels.areas) == len(labels.predicted_iou) == len(labels.stability) == 0


def test_crops_without_masks_do_not_hinder_the_others(sam: Sam) -> None:
    cropped = replace(EVERYTHING, points_per_side=2, crop_n_layers=1, crop_nms_thresh=1.0)
    image = photo(SIZES["landscape"])
    scores = LabelGenerator(sam, cropped).label(image).predicted_iou
    strict = replace(cropped, pred_iou_thresh=float(np.sort(scores)[-2]))
    labels = LabelGenerator(sam, strict).label(image)
    assert labels.predicted_iou.tolist() == [scores.max()]


@pytest.mark.parametrize("points_per_batch", [1, 7])
def test_batch_of_points_does_not_decide_what_is_kept(
    sam: Sam, settings: AutomaskSettings, points_per_batch: int
) -> None:
    image = photo(SIZES["portrait"])
    expected, batched = (LabelGenerator(sam, settings, batch).label(image) for batch in (64, points_per_batch))
    np.testing.assert_array_equal(batched.boxes, expected.boxes)
    np.testing.assert_array_equal(batched.points, expected.points)
    np.testing.assert_allclose(batched.logits, expected.logits, atol=1e-3)


def test_image_for_which_memory_runs_out_is_labelled_with_fewer_points_at_a_time(
    sam: Sam, settings: AutomaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(SIZES["portrait"])
    expected = LabelGenerator(sam, settings, 2).label(image)
    generator = LabelGenerator(sam, settings, 11)
    decode, sizes = generator.decoder.decode, list[int]()

    def decode_few(prepared: PointImage, sparse: Tensor) -> Any:
        sizes.append(len(sparse))
        if len(sparse) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(prepared, sparse)

    monkeypatch.setattr(generator.decoder, "decode", decode_few)
    labels = generator.label(image)
    assert sizes[:3] == [11, 5, 2]
    assert max(sizes[2:]) == 2
    np.testing.assert_array_equal(labels.logits, expected.logits)
    np.testing.assert_array_equal(labels.boxes, expected.boxes)


CLEANING = {
    "landscape": ((180, 256), 150, 0),
    "odd": ((333, 517), 500, 0),
    "tiny": ((40, 40), 12, 0),
    "crops": ((180, 256), 100, 1),
}


@dataclass(frozen=True)
class Cleaned:
    """Ours and upstream's masks of a photo after small regions of less than ``area`` pixels were removed."""

    ours: GeneratedMasks
    theirs: list[dict[str, Any]]
    size: tuple[int, int]
    area: int

    def pairs(self) -> Iterator[tuple[Masks, Masks]]:
        """Yield the mask that our logits mean and the one that upstream reports."""
        for mask, record in zip(masks_of(self.ours, self.size), self.theirs, strict=True):
            yield mask, record["segmentation"]


@pytest.fixture(scope="module", params=CLEANING.values(), ids=CLEANING.keys())
def cleaned(request: pytest.FixtureRequest, sam: Sam) -> Cleaned:
    """Unstable masks, since those have islands and holes, cleaned."""
    size, area, layers = request.param
    ragged = replace(EVERYTHING, box_nms_thresh=0.9, min_mask_region_area=area, crop_n_layers=layers)
    ragged = replace(ragged, points_per_side=4 - 2 * layers)
    image = photo(size)
    return Cleaned(LabelGenerator(sam, ragged).label(image), upstream(sam, ragged).generate(image), size, area)


def test_cleaned_masks_are_upstreams(cleaned: Cleaned) -> None:
    assert len(cleaned.ours.cleaned) > 1
    for mask, record in zip(cleaned.ours.masks(), cleaned.theirs, strict=True):
        assert np.count_nonzero(mask ^ record["segmentation"]) <= 1


def test_logits_of_cleaned_masks_mean_the_cleaned_masks(cleaned: Cleaned) -> None:
    shares = [np.count_nonzero(ours ^ theirs) / max(1, np.count_nonzero(theirs)) for ours, theirs in cleaned.pairs()]
    # The outline of what was removed is drawn anew from flipped logits, and where it meets what was kept may
    # move by a fraction of a cell.
    assert np.mean(shares) < 0.005
    assert np.max(shares) < 0.03


def test_logits_of_cleaned_masks_have_no_small_regions(cleaned: Cleaned) -> None:
    left = 0
    for ours, theirs in cleaned.pairs():
        if np.count_nonzero(theirs) < cleaned.area:  # a mask that is all islands keeps its largest one
            continue
        for mode in ("holes", "islands"):
            left += np.count_nonzero(remove_small_regions(ours, cleaned.area, mode)[0] ^ ours)
    assert left <= 0.0005 * sum(np.count_nonzero(theirs) for _, theirs in cleaned.pairs())


def test_masks_without_small_regions_keep_their_logits(sam: Sam) -> None:
    settings = replace(EVERYTHING, box_nms_thresh=0.9)
    image = photo(SIZES["landscape"])
    before = LabelGenerator(sam, settings).label(image)
    after = LabelGenerator(sam, replace(settings, min_mask_region_area=1)).label(image)
    rows = [int(np.flatnonzero(before.predicted_iou == iou)[0]) for iou in after.predicted_iou]
    assert len(after) > 1
    np.testing.assert_array_equal(after.logits, before.logits[rows])


def test_removing_a_small_island_flips_only_the_cells_under_it(sam: Sam) -> None:
    settings = replace(EVERYTHING, box_nms_thresh=0.9)
    image = photo(SIZES["landscape"])
    before = LabelGenerator(sam, settings).label(image)
    after = LabelGenerator(sam, replace(settings, min_mask_region_area=150)).label(image)
    changed = 0
    for logits, frame, iou in zip(after.logits, after.frames, after.predicted_iou, strict=True):
        row = int(np.flatnonzero(before.predicted_iou == iou)[0])
        np.testing.assert_array_equal(np.abs(logits), np.abs(before.logits[row]))
        flipped = (logits != before.logits[row])[: frame.photo_cells[0], : frame.photo_cells[1]]
        was = paste(frame.upsample(torch.from_numpy(before.logits[row])[None]) > 0, frame, *SIZES["landscape"])[0]
        cleaned = remove_small_regions(was.numpy(), 150, "holes")[0]
        cleaned = remove_small_regions(cleaned, 150, "islands")[0]
        # The photo is as wide as the input, so a cell is a block of four by four pixels of it.
        blocks = (cleaned ^ was.numpy()).reshape(45, 4, 64, 4).any((1, 3))
        assert not (flipped & ~blocks).any()
        changed += int(flipped.any())
    assert changed > 0


def test_path_for_other_devices_keeps_the_same_masks(
    sam: Sam, settings: AutomaskSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = photo(SIZES["odd"])
    expected = LabelGenerator(sam, settings).label(image)
    monkeypatch.setattr(regions, "_count_on_cpu", regions._count_with_torch)
    labels = LabelGenerator(sam, settings).label(image)
    assert len(labels) > 1
    for name in ("logits", "boxes", "points", "areas", "predicted_iou", "stability"):
        np.testing.assert_array_equal(getattr(labels, name), getattr(expected, name))


def test_photo_scaled_beforehand_gives_the_same_masks(sam: Sam, settings: AutomaskSettings) -> None:
    image, crops = photo(SIZES["odd"]), replace(settings, crop_n_layers=1)
    plain = LabelGenerator(sam, crops).label(image)
    ahead = LabelGenerator(sam, crops).label(image, resize(image, 256))
    np.testing.assert_array_equal(ahead.logits, plain.logits)
    assert ahead.embeddings.keys() == plain.embeddings.keys()
