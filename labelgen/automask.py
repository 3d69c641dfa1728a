"""Automatic masks (App. B.1): a grid of points, three masks a point, quality filters, box NMS.

The filters, crops and NMS are those of ``segment_anything.SamAutomaticMaskGenerator``, which this module drives;
it adds the 95 % area filter, and carries the low-resolution logits of every kept mask through to the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import (
    MaskData,
    batched_mask_to_box,
    calculate_stability_score,
    is_box_near_crop_edge,
    mask_to_rle_pytorch,
    rle_to_mask,
    uncrop_masks,
)
from torch import Tensor
from torch.nn import functional as F

from shared.frame import CELL, Frame
from shared.sam.quality import THRESHOLDS_OF_MODELS

UPSAMPLING_BUDGET = 1 << 28
"""Floats that the full-resolution logits of one chunk of candidates may take: 1 GiB in fp32."""


@dataclass(frozen=True)
class AutomaskSettings:
    """Settings that decide which masks are kept. Names and meaning are upstream's, but for the last.

    As upstream, a threshold of 0 is no filter. Unlike upstream, a mask without a single pixel is never kept.
    """

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    max_area_share: float = 0.95
    """Masks that cover this share of the image or more are dropped."""


def settings_for(model_type: str, **chosen: float | None) -> AutomaskSettings:
    """Return the settings ``chosen``, with the defaults of a model for those that are missing or None."""
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(AutomaskSettings(), **{**THRESHOLDS_OF_MODELS.get(model_type, {}), **given})  # type: ignore[arg-type]


@dataclass(frozen=True)
class ImageLabels:
    """The K masks kept for one image, in the order of the generator.

    ``logits``: float32 (K, h, w), SAM's low-resolution logits on its square frame, padding included.
    ``frames``: what part of the square is image, and where that lies in the photo, one a mask (crops differ).
    ``boxes``: int64 (K, 4), x, y, width, height in pixels of the photo; width and height are the largest index minus
    the smallest, as upstream reports them. ``points``: float64 (K, 2), x, y in the photo.
    ``areas``: int64 (K,), pixels. ``predicted_iou`` and ``stability``: float64 (K,). ``embeddings``: what the image
    encoder made of each crop, (1, C, g, g), under the crop box of its frame.
    """

    logits: npt.NDArray[np.float32]
    frames: tuple[Frame, ...]
    boxes: npt.NDArray[np.int64]
    points: npt.NDArray[np.float64]
    areas: npt.NDArray[np.int64]
    predicted_iou: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]
    embeddings: Mapping[tuple[int, int, int, int], Tensor]

    def __len__(self) -> int:
        return len(self.logits)


class LabelGenerator(SamAutomaticMaskGenerator):  # type: ignore[misc]
    """Upstream's generator, keeping low-resolution logits and dropping masks of nearly the whole image.

    Only ``_process_batch`` is replaced. It filters on predicted IoU before it upsamples, so that the logits of
    rejected candidates never reach full resolution; what is kept is the same.
    """

    def __init__(self, sam: Sam, settings: AutomaskSettings, points_per_batch: int = 64) -> None:
        super().__init__(
            sam,
            points_per_side=settings.points_per_side,
            points_per_batch=points_per_batch,
            pred_iou_thresh=settings.pred_iou_thresh,
            stability_score_thresh=settings.stability_score_thresh,
            stability_score_offset=settings.stability_score_offset,
            box_nms_thresh=settings.box_nms_thresh,
            crop_n_layers=settings.crop_n_layers,
            crop_nms_thresh=settings.crop_nms_thresh,
            crop_overlap_ratio=settings.crop_overlap_ratio,
            crop_n_points_downscale_factor=settings.crop_n_points_downscale_factor,
            min_mask_region_area=settings.min_mask_region_area,
        )
        self.settings = settings
        self._embeddings: dict[tuple[int, int, int, int], Tensor] = {}

    @torch.no_grad()
    def label(self, image: npt.NDArray[np.uint8]) -> ImageLabels:
        """Label one RGB uint8 (H, W, 3) image."""
        self._embeddings = {}
        data = self._generate_masks(image)
        if self.min_mask_region_area > 0 and len(data["rles"]):
            data = self._clean(data)
        boxes = np.asarray(data["boxes"], np.int64).reshape(-1, 4)
        crops = np.asarray(data["crop_boxes"], np.int64).reshape(-1, 4)
        boxes[:, 2:] -= boxes[:, :2]
        side = self.predictor.model.image_encoder.img_size
        return ImageLabels(
            logits=np.asarray(data["low_res"], np.float32).reshape(-1, side // 4, side // 4),
            frames=tuple(Frame.crop(side, crop) for crop in crops.tolist()),
            boxes=boxes,
            points=np.asarray(data["points"], np.float64).reshape(-1, 2),
            areas=np.asarray([sum(rle["counts"][1::2]) for rle in data["rles"]], np.int64),
            predicted_iou=np.asarray(data["iou_preds"], np.float64),
            stability=np.asarray(data["stability_score"], np.float64),
            embeddings=self._embeddings,
        )

    def _process_crop(
        self,
        image: npt.NDArray[np.uint8],
        crop_box: list[int],
        crop_layer_idx: int,
        orig_size: tuple[int, int],
    ) -> MaskData:
        data = super()._process_crop(image, crop_box, crop_layer_idx, orig_size)
        data["crop_boxes"] = data["crop_boxes"].long().reshape(-1, 4)  # upstream's is flat when nothing was kept
        return data

    def _process_batch(
        self, points: npt.NDArray[np.float64], im_size: tuple[int, int], crop_box: list[int], orig_size: tuple[int, int]
    ) -> MaskData:
        x0, y0, x1, y1 = crop_box
        self._embeddings[x0, y0, x1, y1] = self.predictor.features
        candidates = self._decode(points, im_size)
        if self.pred_iou_thresh > 0:
            candidates.filter(candidates["iou_preds"] > self.pred_iou_thresh)
        height, width = im_size
        chunk = max(1, UPSAMPLING_BUDGET // (height * width + self.predictor.model.image_encoder.img_size**2))
        kept = MaskData()
        for start in range(0, max(1, len(candidates["iou_preds"])), chunk):
            part = MaskData(**{name: values[start : start + chunk] for name, values in candidates.items()})
            kept.cat(self._measure(part, im_size, crop_box, orig_size))
        return kept

    def _decode(self, points: npt.NDArray[np.float64], im_size: tuple[int, int]) -> MaskData:
        """Decode a batch of points; three candidates each."""
        predictor, sam = self.predictor, self.predictor.model
        coords = torch.as_tensor(predictor.transform.apply_coords(points, im_size), device=predictor.device)
        ones = torch.ones(len(points), 1, dtype=torch.int, device=predictor.device)
        sparse, dense = sam.prompt_encoder(points=(coords[:, None], ones), boxes=None, masks=None)
        low_res, iou = sam.mask_decoder(
            image_embeddings=predictor.features,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
        return MaskData(
            low_res=low_res.flatten(0, 1),
            iou_preds=iou.flatten(0, 1),
            points=torch.as_tensor(points.repeat(low_res.shape[1], axis=0)),
        )

    def _measure(
        self, data: MaskData, im_size: tuple[int, int], crop_box: list[int], orig_size: tuple[int, int]
    ) -> MaskData:
        """Upsample candidates to the crop's size and keep those that pass every filter."""
        sam = self.predictor.model
        masks = sam.postprocess_masks(data["low_res"][:, None], self.predictor.input_size, im_size)[:, 0]
        data["stability_score"] = calculate_stability_score(masks, sam.mask_threshold, self.stability_score_offset)
        data["masks"] = masks > sam.mask_threshold
        del masks
        data["boxes"] = batched_mask_to_box(data["masks"])
        keep = ~is_box_near_crop_edge(data["boxes"], crop_box, [0, 0, orig_size[1], orig_size[0]])
        if self.stability_score_thresh > 0:
            keep &= data["stability_score"] >= self.stability_score_thresh
        areas = data["masks"].flatten(1).sum(1)
        keep &= (areas > 0) & (areas < self.settings.max_area_share * orig_size[0] * orig_size[1])
        data.filter(keep)
        data["rles"] = mask_to_rle_pytorch(uncrop_masks(data["masks"], crop_box, *orig_size))
        del data["masks"]
        return data

    def _clean(self, data: MaskData) -> MaskData:
        """Remove small holes and islands, and make the logits say the same (METHOD: label and logits agree)."""
        count = len(data["rles"])
        data["row"] = np.arange(count)
        for name in ("iou_preds", "stability_score", "points", "boxes", "crop_boxes", "low_res"):
            data[name] = torch.as_tensor(data[name])
        uncleaned = list(data["rles"])
        data = self.postprocess_small_regions(
            data, self.min_mask_region_area, max(self.box_nms_thresh, self.crop_nms_thresh)
        )
        side = self.predictor.model.image_encoder.img_size
        for k, row in enumerate(data["row"]):
            frame = Frame.crop(side, data["crop_boxes"][k].tolist())
            before, after = rle_to_mask(uncleaned[int(row)]), rle_to_mask(data["rles"][k])
            data["low_res"][k] = _agree(data["low_res"][k], frame, before, after)
        data.to_numpy()
        return data


def _agree(logits: Tensor, frame: Frame, before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_]) -> Tensor:
    """Turn the sign of ``logits`` (h, w) where a clean-up changed the mask (H, W) from ``before`` to ``after``."""
    if np.array_equal(before, after):
        return logits
    touched = _share_of_cells(before != after, frame) > 0
    sign = torch.where(_share_of_cells(after, frame) >= 0.5, 1.0, -1.0)
    edited = logits.clone()
    height, width = frame.low_res_size
    part = edited[:height, :width]
    edited[:height, :width] = torch.where(touched, sign * part.abs(), part)
    return edited


def _share_of_cells(mask: npt.NDArray[np.bool_], frame: Frame) -> Tensor:
    """Return what share of each low-resolution cell of ``frame`` a mask (H, W) of the photo covers."""
    x0, y0, x1, y1 = frame.crop_box
    crop = torch.from_numpy(mask[None, None, y0:y1, x0:x1].astype(np.float32))
    pixels = F.adaptive_avg_pool2d(crop, frame.input_size)
    rest = [CELL * cells - size for cells, size in zip(frame.low_res_size, frame.input_size, strict=True)]
    return F.avg_pool2d(F.pad(pixels, (0, rest[1], 0, rest[0]), mode="replicate"), CELL)[0, 0]
