"""Upstream's automatic masks, to compare ours with, and the photos of both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import segment_anything
import torch
from segment_anything.modeling import Sam
from segment_anything.utils.amg import MaskData, area_from_rle
from torch import Tensor

from sum_factory.pipelines.bench.parts.agreement import compare
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.automask.automask import GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.placement import paste

Image = npt.NDArray[np.uint8]
Masks = npt.NDArray[np.bool_]

SIZES = {
    "landscape": (180, 256),
    "portrait": (300, 170),
    "square": (256, 256),
    "odd": (333, 517),
    "tiny": (40, 40),
    "tiny strip": (40, 13),
}
EVERYTHING = AutomaskSettings(
    points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=1e-9, box_nms_thresh=1.0, max_area_share=2.0
)
"""Settings that keep every mask that has any stability."""


def photo(size: tuple[int, int]) -> Image:
    """Return a scene, cut and scaled to ``size``."""
    height, width = size
    scene = make_scene(0, 5).image
    share = min(256 / height, 256 / width)
    cut = scene[: round(height * share), : round(width * share)]
    return np.ascontiguousarray(cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA), dtype=np.uint8)


class AreaFilter(segment_anything.SamAutomaticMaskGenerator):  # type: ignore[misc]
    """Upstream's generator with the 95 % filter among its other filters of candidates."""

    share = 0.95

    def _process_batch(self, points: Any, im_size: Any, crop_box: Any, orig_size: Any) -> MaskData:
        data = super()._process_batch(points, im_size, crop_box, orig_size)
        areas = torch.tensor([area_from_rle(rle) for rle in data["rles"]])
        data.filter(areas < self.share * orig_size[0] * orig_size[1])
        return data


def upstream(
    sam: Sam,
    settings: AutomaskSettings,
    kind: type[segment_anything.SamAutomaticMaskGenerator] = segment_anything.SamAutomaticMaskGenerator,
    **options: Any,
) -> segment_anything.SamAutomaticMaskGenerator:
    """Return upstream's generator with the same settings."""
    shared = {
        name: getattr(settings, name) for name in AutomaskSettings.__dataclass_fields__ if name != "max_area_share"
    }
    return kind(sam, **shared, **options)


def masks_of(labels: GeneratedMasks, size: tuple[int, int]) -> Masks:
    """Return the masks that the logits of ``labels`` mean, bool (K, H, W)."""
    masks = [
        paste(frame.upsample(torch.from_numpy(logits)[None]) > 0, frame, *size).numpy()
        for logits, frame in zip(labels.logits, labels.frames, strict=True)
    ]
    return np.concatenate(masks) if masks else np.zeros((0, *size), bool)


class UpstreamDecoder:
    """Upstream's decoder in the place of ours."""

    def __init__(self, sam: Sam) -> None:
        self.sam = sam

    def points_at_once(self, most: int) -> int:
        return most

    def prepare(self, embedding: Tensor) -> Tensor:
        return embedding

    def decode(self, embedding: Tensor, sparse: Tensor) -> SimpleNamespace:
        no_mask = self.sam.prompt_encoder.no_mask_embed.weight[..., None, None]
        self.logits, iou = self.sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=no_mask.expand(len(sparse), -1, *embedding.shape[2:]),
            multimask_output=True,
        )
        return SimpleNamespace(predicted_iou=iou)

    def masks(self, decoded: SimpleNamespace, wanted: Tensor) -> Tensor:
        return self.logits[wanted]


def with_upstreams_decoder(sam: Sam, settings: AutomaskSettings, image: Image) -> GeneratedMasks:
    """Label with everything ours but the decoder, whose sums are in another order."""
    generator = LabelGenerator(sam, settings)
    generator.decoder = UpstreamDecoder(sam)  # type: ignore[assignment]
    return generator.label(image)


@contextmanager
def two_threads() -> Iterator[None]:
    """On one thread torch upsamples three channels by another kernel, which rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def assert_identical(labels: GeneratedMasks, records: list[dict[str, Any]]) -> None:
    """Check that ``labels`` are upstream's ``records`` (with COCO's RLE) in everything, bit for bit."""
    assert len(labels) == len(records)
    np.testing.assert_array_equal(labels.boxes, np.reshape([record["bbox"] for record in records], (-1, 4)))
    np.testing.assert_array_equal(labels.points, np.reshape([record["point_coords"] for record in records], (-1, 2)))
    np.testing.assert_array_equal(labels.areas, [record["area"] for record in records])
    np.testing.assert_array_equal(labels.predicted_iou, [record["predicted_iou"] for record in records])
    np.testing.assert_array_equal(labels.stability, [record["stability_score"] for record in records])
    for frame, record in zip(labels.frames, records, strict=True):
        x0, y0, x1, y1 = frame.crop_box
        assert [x0, y0, x1 - x0, y1 - y0] == record["crop_box"]
    assert labels.rles() == [record["segmentation"] for record in records]


def assert_agree(labels: GeneratedMasks, records: list[dict[str, Any]], settings: AutomaskSettings) -> None:
    """Check that ``labels`` differ from upstream's ``records`` by nothing but what rounding explains, if at all."""
    agreement = compare(labels, records, settings)
    assert agreement.unexplained == []
    assert agreement.common >= 0.9 * agreement.theirs
    assert agreement.largest_iou_difference <= 1e-5
    assert agreement.pixels <= 1e-5 * sum(record["area"] for record in records) + 3
