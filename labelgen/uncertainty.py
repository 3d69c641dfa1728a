"""Uncertainty maps of masks that SAM made (SUM, Sec. 3.2.3): by a refiner, by how far two models differ, or from the
confidence of SAM or of its stored labels.

The labels in a shard set keep magnitudes near the boundary only, so a mask's logits s are decoded again: of the three
outputs for its point, on the embedding of its crop, the one that is the label. A run that labels and refines in one
pass does the same on the embeddings that it has, so that both ways give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sum_factory.labelgen.formulas import FORMULAS, LABEL_FORMULAS, difference
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.codecs.uncertainty import encode_uncertainty
from sum_factory.shared.exactness import LEVELS, Exactness
from sum_factory.shared.masks import ious
from sum_factory.shared.memory import BatchSize
from sum_factory.shared.placement import CELL, CropBox, Frame
from sum_factory.shared.sam.decode import (
    BOX_MAX,
    BOX_MIN,
    PAD,
    POSITIVE,
    PromptedModel,
    Prompts,
    decode_prompts,
    embed_prompts,
)
from sum_factory.shared.sam.point_decoder import POINT_OUTPUTS, PointDecoder, PointImage
from sum_factory.shared.sam.refiner import Refiner
from sum_factory.shared.sam.upstream import Sam

LEAST_IOU = 0.5
"""An output that agrees less with the label, on the low-resolution grid, is not where the label came from."""
REFERENCE_SIDE = 1024
"""The longer side of the crop that ``min_refine_area`` counts pixels of."""

Embed = Callable[[CropBox], Tensor | None]
"""Gives the embedding (1, C, g, g) of a crop of the image at hand, or None if it is not to be had."""


@dataclass(frozen=True)
class MaskToRefine:
    """One mask as the ``masks`` layer holds it: its row of the manifest, and its blob of the label codec.

    ``point`` is x, y and ``box`` x0, y0, x1, y1 in pixels of the photo; ``area`` is in its pixels too.
    """

    frame: Frame
    point: tuple[float, float]
    box: tuple[int, int, int, int]
    area: int
    label: bytes
    logits: npt.NDArray[np.float32] | None = None
    """Its logits s on the whole square, (S, S), if they were kept: then they are not decoded again."""

    @classmethod
    def from_row(cls, row: Mapping[str, Any], label: bytes, side: int) -> MaskToRefine:
        """Return the mask of a manifest row, whose values may not have been rounded to the manifest's types yet."""
        return cls(
            frame=Frame(side, (row["crop_x0"], row["crop_y0"], row["crop_x1"], row["crop_y1"])),
            point=(float(np.float32(row["point_x"])), float(np.float32(row["point_y"]))),
            box=(row["box_x"], row["box_y"], row["box_x"] + row["box_w"], row["box_y"] + row["box_h"]),
            area=row["area"],
            label=label,
        )

    @property
    def area_at_reference(self) -> float:
        """Pixels that the mask would have if its crop were ``REFERENCE_SIDE`` pixels long."""
        return self.area * (REFERENCE_SIDE / max(self.frame.crop_size)) ** 2


@dataclass(frozen=True)
class UncertaintyMap:
    """The encoded map of a mask and its mean over ``Frame.photo_cells``, or neither: then the map is unknown."""

    blob: bytes = b""
    mean_u: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether the map is known."""
        return self.mean_u is not None


NO_MAP = UncertaintyMap()
"""The map of a mask whose uncertainty is unknown."""


class UncertaintyMaker:
    """Makes the maps of an image's masks; holds SAM, and the refiner or the teacher, on one device, in eval mode."""

    def __init__(
        self,
        sam: Sam,
        refiner: Refiner | None,
        settings: UncertaintySettings,
        batch: int,
        teacher: Sam | None = None,
        exactness: Exactness = "exact",
    ) -> None:
        takes_refiner = settings.needs_refiner or (settings.compares_models and teacher is None)
        assert (refiner is not None) == takes_refiner, "checked when the layer was described"
        self.sam, self.refiner, self.teacher = sam, refiner, teacher
        self.settings, self.batch = settings, BatchSize(batch)
        self.decoder = PointDecoder(sam, LEVELS[exactness].decoder)

    @torch.no_grad()
    def make(
        self, masks: Sequence[MaskToRefine], embed: Embed, embed_for_teacher: Embed | None = None
    ) -> list[UncertaintyMap]:
        """Make the maps of the masks of one image, in order; ``embed`` is called at most once a crop, and so is
        ``embed_for_teacher``, if there is a teacher.

        Masks that need an embedding which is not to be had are unknown. When a GPU's memory runs out, fewer are made
        together from then on, and the image is begun anew. Raises ``torch.OutOfMemoryError`` if one at a time is too
        much.
        """
        if self.settings.compares_models:
            second = embed if self.teacher is None else embed_for_teacher
            assert second is not None, "a teacher sees the photo"
            return self.batch.fit(lambda: self._compare(masks, embed, second))
        if self.settings.reads_labels:
            cells = int(self.sam.image_encoder.img_size) // CELL
            masks = [replace(mask, logits=logits_of_label(mask.label, cells)) for mask in masks]
        return self.batch.fit(lambda: self._make(masks, embed))

    def _compare(self, masks: Sequence[MaskToRefine], embed: Embed, second: Embed) -> list[UncertaintyMap]:
        """Make the maps of masks by how far SAM and the other model differ in what they make of a mask's box."""
        maps = [NO_MAP] * len(masks)
        for crop_box in dict.fromkeys(mask.frame.crop_box for mask in masks):
            own = embed(crop_box)
            other = own if self.teacher is None else second(crop_box)
            if own is None or other is None:
                continue
            indices = [k for k, mask in enumerate(masks) if mask.frame.crop_box == crop_box]
            for start in range(0, len(indices), self.batch.size):
                chunk = indices[start : start + self.batch.size]
                boxes = _boxes_of([masks[k] for k in chunk]).to(own)
                other_model = self.teacher or self.refiner
                said = predict_from_boxes(self.sam, own, boxes), predict_from_boxes(other_model, other, boxes)
                usable = torch.stack([each.isfinite().flatten(1).all(1) for each in said]).all(0)
                made = _encoded(difference(*said), usable, masks[chunk[0]].frame, [b""] * len(chunk))
                for k, one in zip(chunk, made, strict=True):
                    maps[k] = one
        return maps

    def _make(self, masks: Sequence[MaskToRefine], embed: Embed) -> list[UncertaintyMap]:
        maps = [self._map_if_small(mask) for mask in masks]
        crops: dict[CropBox, list[int]] = {}
        for k, mask in enumerate(masks):
            if maps[k] is None:
                crops.setdefault(mask.frame.crop_box, []).append(k)
        for crop_box, indices in crops.items():
            needing = {k for k in indices if self.refiner is not None or masks[k].logits is None}
            embedding = embed(crop_box) if needing else None
            if embedding is None:
                indices = [k for k in indices if k not in needing]
            again = any(masks[k].logits is None for k in indices)
            image = self.decoder.prepare(embedding) if again and embedding is not None else None
            for start in range(0, len(indices), self.batch.size):
                chunk = indices[start : start + self.batch.size]
                for k, made in zip(chunk, self._make_chunk([masks[k] for k in chunk], embedding, image), strict=True):
                    maps[k] = made
        return [made or NO_MAP for made in maps]

    def _map_if_small(self, mask: MaskToRefine) -> UncertaintyMap | None:
        """Return the all-zero map of a mask that is too small to be refined, else None."""
        if mask.area_at_reference >= self.settings.min_refine_area:
            return None
        return UncertaintyMap(encode_uncertainty(np.zeros(mask.frame.interpolation_cells, np.float32), mask.label), 0.0)

    def _make_chunk(
        self, masks: Sequence[MaskToRefine], embedding: Tensor | None, image: PointImage | None
    ) -> list[UncertaintyMap]:
        """Make the maps of masks of one crop, whose ``embedding`` is (1, C, g, g), prepared for points as ``image``.

        Without a refiner, and if the logits of all masks were kept, neither is needed.
        """
        frame = masks[0].frame
        rows, columns = frame.interpolation_cells
        device = self.sam.device
        points = photo_to_input([mask.point for mask in masks], frame).to(device)
        s, agreement = self._logits_of(masks, points, image)
        usable = (agreement >= LEAST_IOU) & s.isfinite().flatten(1).all(1)
        refined: list[bytes] = [b""] * len(masks)
        if self.refiner is None:
            u = {**FORMULAS, **LABEL_FORMULAS}[self.settings.source](s)
        else:
            assert embedding is not None, "made for the refiner"
            boxes = _boxes_of(masks).to(embedding)
            index = torch.zeros(len(masks), dtype=torch.int64, device=embedding.device)
            r = self.refiner.refine(embedding, index, points, boxes, s)
            usable &= r.isfinite().flatten(1).all(1)
            u = difference(s, r)
            r_cut = r[:, :rows, :columns].cpu().numpy()
            refined = [encode_label(r_cut[k]) if usable[k] else b"" for k in range(len(masks))]
        return _encoded(u, usable, frame, refined)

    def _logits_of(
        self, masks: Sequence[MaskToRefine], points: Tensor, image: PointImage | None
    ) -> tuple[Tensor, Tensor]:
        """Return the logits s (P, H, W) of masks on the whole square, and how far they are those of the labels, (P,).

        Those that were not kept are decoded again.
        """
        cells = int(self.sam.image_encoder.img_size) // CELL
        s, agreement = points.new_empty(len(masks), cells, cells), points.new_ones(len(masks))
        for k, mask in enumerate(masks):
            if mask.logits is not None:
                s[k] = torch.from_numpy(mask.logits)
        lacking = [k for k, mask in enumerate(masks) if mask.logits is None]
        if lacking:
            assert image is not None, "prepared for them"
            labels = torch.from_numpy(np.stack([decode_label(masks[k].label) > 0 for k in lacking])).to(points.device)
            s[lacking], agreement[lacking] = self._decode_again(points[lacking], labels, image)
        return s, agreement

    def _decode_again(self, points: Tensor, labels: Tensor, image: PointImage) -> tuple[Tensor, Tensor]:
        """Decode the points (P, 2) that gave the ``labels``, bool (P, h, w), of ``Frame.interpolation_cells``.

        Returns the logits s (P, H, W) on the whole square of the output that agrees best with the label, and the IoU
        (P,) of both. Where the label has cells, s is given the label's signs.
        """
        count, rows, columns = labels.shape
        coords = torch.stack([points, torch.zeros_like(points)], 1)
        token_types = torch.tensor([[POSITIVE, PAD]], device=points.device).expand(count, -1)
        sparse, _ = embed_prompts(self.sam, Prompts(coords, token_types))
        everything = torch.ones(count, POINT_OUTPUTS, dtype=torch.bool, device=points.device)
        outputs = torch.cat(
            [
                self.decoder.masks(self.decoder.decode(image, some), everything[: len(some)])
                for some in torch.split(sparse, self.decoder.points_at_once(self.batch.size))
            ]
        )
        outputs = torch.unflatten(outputs, 0, (count, POINT_OUTPUTS))
        agreement, best = ious(outputs[..., :rows, :columns] > 0, labels[:, None], empty=0.0).max(1)
        s = outputs[torch.arange(count, device=points.device), best].clone()
        own = s[:, :rows, :columns]
        own.copy_(torch.where(labels, own.abs(), -own.abs()))
        return s, agreement


def _encoded(u: Tensor, usable: Tensor, frame: Frame, refined: Sequence[bytes]) -> list[UncertaintyMap]:
    """Encode maps (P, H, W) on the square of one crop, with what a refiner made of the masks; unknown if not usable."""
    height, width = frame.photo_cells
    rows, columns = frame.interpolation_cells
    means = u[:, :height, :width].double().mean((1, 2)).tolist()
    u_cut = u[:, :rows, :columns].cpu().numpy()
    return [
        UncertaintyMap(encode_uncertainty(u_cut[k], refined[k]), means[k]) if usable[k] else NO_MAP
        for k in range(len(u_cut))
    ]


def predict_from_boxes(model: PromptedModel | None, embedding: Tensor, boxes: Tensor) -> Tensor:
    """Return the logits (P, H, W) that a model makes of boxes (P, 4), on the embedding (1, C, g, g) of one crop."""
    assert model is not None, "checked when the layer was described"
    corners = boxes.view(-1, 2, 2)
    token_types = torch.tensor([[BOX_MIN, BOX_MAX]], device=boxes.device).expand(len(boxes), -1)
    index = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    return decode_prompts(model, embedding, index, Prompts(corners, token_types))[0][:, 0]


def logits_of_label(blob: bytes, cells: int) -> npt.NDArray[np.float32]:
    """Return what a label decodes to, float32 (cells, cells): beyond its own grid as at the grid's edge."""
    label = decode_label(blob)
    beyond = [(0, cells - size) for size in label.shape]
    return np.pad(label, beyond, mode="edge")


def _boxes_of(masks: Sequence[MaskToRefine]) -> Tensor:
    """Return the boxes of masks of one crop in pixels of the square input, float32 (P, 4)."""
    corners = [corner for mask in masks for corner in (mask.box[:2], mask.box[2:])]
    return photo_to_input(corners, masks[0].frame).view(-1, 4)


def photo_to_input(coords: Sequence[Sequence[float]], frame: Frame) -> Tensor:
    """Map points (x, y) of the photo to pixels of the square input of ``frame``, float32 (N, 2)."""
    relative: npt.NDArray[np.float64] = np.asarray(coords, np.float64).reshape(-1, 2) - frame.crop_box[:2]
    return torch.from_numpy(frame.to_input(relative).astype(np.float32))
