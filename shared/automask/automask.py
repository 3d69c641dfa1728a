"""Automatic masks (App. B.1): a grid of points, three masks per point, quality filters, box NMS.

The masks are those of ``segment_anything.SamAutomaticMaskGenerator``, in its order, each with the low-resolution logits
that it came from, and without those of nearly the whole image. They are made in another way: the decoder shares what
points have in common (``shared.sam.point_decoder``), a mask of low predicted IoU is never upscaled, and what is
upscaled is measured without a full-resolution map (``shared.automask.regions``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.shared.automask.lanes import Lanes
from sum_factory.shared.automask.regions import draw, measure
from sum_factory.shared.automask.rle import Mask, Rle, decode_rle, encode_rle
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.automask.small_regions import clean_mask, follow_mask
from sum_factory.shared.exactness import LEVELS, Exactness
from sum_factory.shared.gpu.clock import BusyClock
from sum_factory.shared.images import RgbImage
from sum_factory.shared.masks import box_of
from sum_factory.shared.memory import BatchSize, to_host
from sum_factory.shared.placement import CropBox, Frame
from sum_factory.shared.sam.compiled import compiled_or_plain
from sum_factory.shared.sam.point_decoder import PointDecoder, PointImage
from sum_factory.shared.sam.runtime import Embedder
from sum_factory.shared.sam.upstream import Sam, amg, nms

POINTS_PER_BATCH = 64
"""Points that are decoded together, at most, where no GPU's memory says otherwise."""


@dataclass(frozen=True)
class GeneratedMasks:
    """The K masks kept for one image of ``size`` height, width, in the order of the generator.

    ``logits``: float32 (K, h, w), SAM's low-resolution logits on its square frame, padding included.
    ``frames``: what part of the square is image, and where that lies in the photo, one per mask (crops differ).
    ``boxes``: int64 (K, 4), x, y, width, height in pixels of the photo; width and height are the largest index minus
    the smallest, as upstream reports them. ``points``: float64 (K, 2), x, y in the photo.
    ``areas``: int64 (K,), pixels. ``predicted_iou`` and ``stability``: float64 (K,). ``embeddings``: what the image
    encoder made of each crop, (1, C, g, g), under the crop box of its frame. ``cleaned``: the masks that lost small
    holes or islands, by their number; their logits were edited to give nearly the same masks.
    """

    size: tuple[int, int]
    logits: npt.NDArray[np.float32]
    frames: tuple[Frame, ...]
    boxes: npt.NDArray[np.int64]
    points: npt.NDArray[np.float64]
    areas: npt.NDArray[np.int64]
    predicted_iou: npt.NDArray[np.float64]
    stability: npt.NDArray[np.float64]
    embeddings: Mapping[CropBox, Tensor]
    cleaned: Mapping[int, Rle]

    def __len__(self) -> int:
        return len(self.logits)

    def masks(self) -> Iterator[Mask]:
        """Draw the masks, one after the other, bool (H, W) of the photo."""
        return (self.mask(k) for k in range(len(self)))

    def mask(self, k: int) -> Mask:
        """Draw the mask of index ``k``, bool (H, W) of the photo."""
        if k in self.cleaned:
            return decode_rle(self.cleaned[k])
        return _draw_in_photo(self.logits[k], self.frames[k], self.size)

    def rles(self) -> list[Rle]:
        """Return the masks as COCO's compressed RLE."""
        return [encode_rle(mask) for mask in self.masks()]


@dataclass(frozen=True)
class _FoundMasks:
    """K masks of one or more crops, on the model's device.

    ``logits`` float32 (K, h, w), ``predicted_iou`` and ``stability`` float32 (K,), ``areas`` int64 (K,).
    ``boxes`` int64 (K, 4), x0, y0, x1, y1, and ``points`` float64 (K, 2) are in the crop until ``in_photo``; ``crops``
    is int64 (K, 4).
    """

    logits: Tensor
    predicted_iou: Tensor
    stability: Tensor
    areas: Tensor
    boxes: Tensor
    points: Tensor
    crops: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def take(self, which: Tensor) -> _FoundMasks:
        """Return the masks that an index or a bool mask names."""
        return _FoundMasks(**{field.name: getattr(self, field.name)[which] for field in fields(self)})

    def nms(self, scores: Tensor, threshold: float) -> Tensor:
        """Return the index of the masks that box NMS leaves, best ``scores`` (K,) first."""
        return nms(self.boxes.float(), scores, threshold)

    def in_photo(self) -> _FoundMasks:
        """Return them with boxes and points in the photo."""
        corner = self.crops[:, :2]
        return replace(self, boxes=self.boxes + corner.repeat(1, 2), points=self.points + corner)


def _join(parts: Sequence[_FoundMasks]) -> _FoundMasks:
    return _FoundMasks(**{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(_FoundMasks)})


class LabelGenerator:
    """Makes the masks of images with one SAM. ``points_per_batch`` limits the points that are decoded together.

    It is halved for good when a GPU's memory runs out, and the image is begun anew. ``photos_per_batch`` limits the
    crops that are embedded together. ``clock`` measures when the device has work. ``compile`` compiles the decoder.
    ``exactness`` says what its parts compute in. Holds the weights as they are when it is made. Several threads may use
    it at once; those of ``lanes`` that have no image of their own help the others with theirs.
    """

    def __init__(
        self,
        sam: Sam,
        settings: AutomaskSettings,
        points_per_batch: int = POINTS_PER_BATCH,
        *,
        photos_per_batch: int = 1,
        exactness: Exactness = "exact",
        lanes: Lanes | None = None,
        clock: BusyClock | None = None,
        compile: bool = False,
    ) -> None:
        level = LEVELS[exactness]
        self.embedder = Embedder(sam, level.encoder, BatchSize(photos_per_batch))
        self.settings = settings
        self.lanes = lanes or Lanes(1)
        self.clock = clock
        self.batch = BatchSize(points_per_batch)
        self.decoder = PointDecoder(sam, level.decoder)
        if compile:
            vars(self.decoder)["decode"] = compiled_or_plain(self.decoder.decode, "the decoder")
        self.side = int(sam.image_encoder.img_size)
        self.threshold = float(sam.mask_threshold)
        self.grids = amg.build_all_layer_point_grids(
            settings.points_per_side, settings.crop_n_layers, settings.crop_n_points_downscale_factor
        )

    @torch.no_grad()
    def label(self, image: RgbImage, resized: RgbImage | None = None) -> GeneratedMasks:
        """Label one RGB uint8 (H, W, 3) image; ``resized``, if at hand, is what ``resize`` makes of it.

        Raises ``torch.OutOfMemoryError`` if a GPU's memory is not enough for one point at a time.
        """
        (labelled,) = self.label_all([(image, resized)])
        return labelled

    @torch.no_grad()
    def label_all(self, photos: Sequence[tuple[RgbImage, RgbImage | None]]) -> list[GeneratedMasks]:
        """Label several images, given as ``label`` takes them, whose crops the encoder takes in batches."""
        crops = [self._crops((image.shape[0], image.shape[1])) for image, _ in photos]
        every = [
            (image, crop, resized)
            for (image, resized), of_photo in zip(photos, crops, strict=True)
            for crop in of_photo
        ]
        with self.stage("encoder"):
            embedded = iter(self.embedder.embed_crops(every))
        labelled = []
        for (image, _), of_photo in zip(photos, crops, strict=True):
            embeddings = dict(zip(of_photo, islice(embedded, len(of_photo)), strict=True))
            size = (image.shape[0], image.shape[1])
            labelled.append(self.batch.fit(partial(self._label, size, of_photo, embeddings)))
        return labelled

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count what is handed to the device inside to a stage, if there is a clock."""
        return nullcontext() if self.clock is None else self.clock.stage(name)

    def _crops(self, size: tuple[int, int]) -> dict[CropBox, int]:
        """Return the crops of an image of ``size`` height, width, and the layer of each."""
        settings = self.settings
        boxes, layers = amg.generate_crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
        return {tuple(box): layer for box, layer in zip(boxes, layers, strict=True)}

    def _label(
        self, size: tuple[int, int], crops: Mapping[CropBox, int], embeddings: Mapping[CropBox, Tensor]
    ) -> GeneratedMasks:
        settings = self.settings
        parts = [
            self._label_crop(embeddings[crop], Frame(self.side, crop), self.grids[layer], size)
            for crop, layer in crops.items()
        ]
        found = _join(parts)
        if len(crops) > 1:  # of duplicates between crops, those of smaller crops are kept
            width, height = (found.crops[:, 2:] - found.crops[:, :2]).unbind(1)
            found = found.take(found.nms(1 / (width * height), settings.crop_nms_thresh))
        cleaned: Mapping[int, Rle] = {}
        if settings.min_mask_region_area > 0:
            found, cleaned = self._clean(found, size)
        corners = found.boxes.cpu().numpy()
        return GeneratedMasks(
            size=size,
            logits=to_host(found.logits).numpy(),
            frames=tuple(Frame.crop(self.side, crop) for crop in found.crops.tolist()),
            boxes=np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1),
            points=found.points.cpu().numpy(),
            areas=found.areas.cpu().numpy(),
            predicted_iou=found.predicted_iou.double().cpu().numpy(),
            stability=found.stability.double().cpu().numpy(),
            embeddings=embeddings,
            cleaned=cleaned,
        )

    def _label_crop(
        self, embedding: Tensor, frame: Frame, grid: npt.NDArray[np.float64], size: tuple[int, int]
    ) -> _FoundMasks:
        """Return the masks of a crop, whose ``embedding`` is (1, C, g, g), that all filters and its NMS leave."""
        height, width = frame.crop_size
        points = grid * np.array([width, height])
        with self.stage("decoder"):
            image = self.decoder.prepare(embedding)
        step = self.decoder.points_at_once(self.batch.size)
        batches = [points[start : start + step] for start in range(0, len(points), step)]
        found = _join(self.lanes.spread(lambda batch: self._decode(batch, image, frame, size), batches))
        return found.take(found.nms(found.predicted_iou, self.settings.box_nms_thresh)).in_photo()

    @torch.no_grad()
    def _decode(
        self, points: npt.NDArray[np.float64], image: PointImage, frame: Frame, size: tuple[int, int]
    ) -> _FoundMasks:
        """Decode points of a crop, three masks each, and keep those that pass every filter but NMS."""
        settings, sam = self.settings, self.embedder.sam
        coords = torch.as_tensor(frame.to_input(points), device=sam.device)
        foreground = torch.ones(len(points), 1, dtype=torch.int, device=sam.device)
        sparse, _ = sam.prompt_encoder(points=(coords[:, None], foreground), boxes=None, masks=None)
        with self.stage("decoder"):
            decoded = self.decoder.decode(image, sparse)
            iou = decoded.predicted_iou
            wanted = iou > settings.pred_iou_thresh if settings.pred_iou_thresh > 0 else torch.ones_like(iou).bool()
            logits = self.decoder.masks(decoded, wanted)
        with self.stage("regions"):
            regions = measure(logits, frame, self.threshold, settings.stability_score_offset)
        candidates = _FoundMasks(
            logits=logits,
            predicted_iou=iou[wanted],
            stability=regions.stability,
            areas=regions.areas,
            boxes=regions.boxes,
            points=torch.as_tensor(points, device=iou.device)[wanted.nonzero()[:, 0]],
            crops=torch.tensor(frame.crop_box, device=iou.device).expand(len(logits), -1),
        )
        height, width = size
        keep = ~amg.is_box_near_crop_edge(regions.boxes, list(frame.crop_box), [0, 0, width, height])
        keep &= (regions.areas > 0) & (regions.areas < settings.max_area_share * height * width)
        if settings.stability_score_thresh > 0:
            keep &= regions.stability >= settings.stability_score_thresh
        return candidates.take(keep)

    def _clean(self, found: _FoundMasks, size: tuple[int, int]) -> tuple[_FoundMasks, dict[int, Rle]]:
        """Remove small holes and islands; of masks that are duplicates then, prefer those that had none.

        Also returns the masks that changed, by their number among those that are left.
        """
        logits, areas, boxes = (values.cpu().clone() for values in (found.logits, found.areas, found.boxes))
        changed: dict[int, Rle] = {}
        for k, crop in enumerate(found.crops.tolist()):
            frame = Frame.crop(self.side, crop)
            mask = _draw_in_photo(logits[k].numpy(), frame, size)
            cleaned, has_changed = clean_mask(mask, self.settings.min_mask_region_area)
            if has_changed:
                changed[k] = encode_rle(cleaned)
                logits[k] = follow_mask(logits[k], frame, mask, cleaned)
                areas[k] = int(np.count_nonzero(cleaned))
                boxes[k] = torch.tensor(box_of(cleaned))
        device = found.logits.device
        found = replace(found, logits=logits.to(device), areas=areas.to(device), boxes=boxes.to(device))
        untouched = torch.tensor([float(k not in changed) for k in range(len(found))], device=device)
        kept = found.nms(untouched, max(self.settings.box_nms_thresh, self.settings.crop_nms_thresh))
        return found.take(kept), {new: changed[old] for new, old in enumerate(kept.tolist()) if old in changed}


def _draw_in_photo(logits: npt.NDArray[np.float32], frame: Frame, size: tuple[int, int]) -> Mask:
    x0, y0, x1, y1 = frame.crop_box
    mask = np.zeros(size, np.bool_)
    mask[y0:y1, x0:x1] = draw(logits, frame, 0.0)
    return mask
