"""Make labels of the masks that a file has of one photo."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sum_factory.labelgen.importing.annotations import Annotated
from sum_factory.labelgen.importing.label import coverage, logits_of
from sum_factory.shared.annotations.coco_file import Record, is_crowd
from sum_factory.shared.annotations.segmentations import check_segmentations, draw
from sum_factory.shared.codecs.label import encode_label
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.masks import Mask, box_of, deepest_pixel
from sum_factory.shared.placement import Frame

COLUMNS = (
    *("box_x", "box_y", "box_w", "box_h", "area", "point_x", "point_y", "predicted_iou", "stability"),
    *("crop_x0", "crop_y0", "crop_x1", "crop_y1"),
)


@dataclass(frozen=True)
class ImportedMasks:
    """The labels of a photo with the masks layer's own columns of the manifest, and how many masks were left out:
    ``crowds``, and those that are ``too_small`` to cover more than half of any cell. ``cut`` counts polygons that end
    beyond the photo."""

    labels: Sequence[bytes]
    columns: Mapping[str, Sequence[Any]]
    crowds: int
    too_small: int
    cut: int


def import_masks_of(
    annotated: Annotated, size: tuple[int, int], is_turned: bool, side: int, scored: bool
) -> ImportedMasks:
    """Make the labels of a photo of ``size``, height and width, for a SAM of input ``side``.

    ``is_turned`` says whether EXIF turned the photo; ``scored`` whether every mask must have SA-1B's point and scores.
    Raises ``ImageError`` for a mask that cannot be drawn on this photo, or lacks what it must have.
    """
    _require_size(annotated, size, is_turned)
    crowds = [_is_crowd(annotated, each) for each in annotated.annotations]
    annotations = [each for each, crowd in zip(annotated.annotations, crowds, strict=True) if not crowd]
    cut = _require_sound(annotated, annotations, size)
    frame = Frame.whole(side, *size)
    labels: list[bytes] = []
    rows: list[tuple[Any, ...]] = []
    for annotation in annotations:
        mask = _drawn(annotated, annotation, size)
        point, scores = _point_of(annotated, annotation, size, scored), _scores_of(annotated, annotation, scored)
        logits = logits_of(coverage(mask, frame))
        if not (logits > 0).any():
            continue
        x0, y0, x1, y1 = box_of(mask)
        labels.append(encode_label(logits))
        box = (x0, y0, x1 - x0, y1 - y0)
        rows.append((*box, int(np.count_nonzero(mask)), *(point or deepest_pixel(mask)), *scores, *frame.crop_box))
    columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(COLUMNS, ())
    return ImportedMasks(labels, columns, sum(crowds), len(annotations) - len(labels), cut)


def _require_size(annotated: Annotated, size: tuple[int, int], is_turned: bool) -> None:
    told = annotated.size
    if told != (None, None) and told != size:
        drawn_on = f"masks drawn on {told[1]!r:.20} x {told[0]!r:.20}"
        upright = f"{size[1]} x {size[0]}" + (", as EXIF turns it" if is_turned else "")
        raise ImageError(
            f"{annotated.where}: {drawn_on}, and the photo is {upright}; give the photos that they were drawn on"
        )
    if is_turned and (told == (None, None) or size[0] == size[1]):
        raise ImageError(
            f"{annotated.where}: EXIF turns the photo, and nothing tells whether the masks were drawn on it as turned; "
            "save it upright"
        )


def _is_crowd(annotated: Annotated, annotation: Record) -> bool:
    crowd = is_crowd(annotation)
    if crowd is None:
        raise _wrong(annotated, annotation, f"has an iscrowd that is neither 0 nor 1: {annotation['iscrowd']!r:.40}")
    return crowd


def _require_sound(annotated: Annotated, annotations: Sequence[Record], size: tuple[int, int]) -> int:
    """Return how many polygons end beyond the photo. Raises ``ImageError`` for what cannot be drawn on it."""
    if not annotations:
        return 0
    segmentations = [each.get("segmentation") for each in annotations]
    checked = check_segmentations(segmentations, np.tile(np.array(size, np.int64), (len(annotations), 1)))
    for annotation, kind in zip(annotations, checked.kinds, strict=True):
        segmentation = annotation.get("segmentation")
        if kind:
            raise _wrong(annotated, annotation, f"is one of those that {kind}")
        if isinstance(segmentation, dict) and segmentation["size"] != list(size):
            raise _wrong(annotated, annotation, f"has an RLE of {segmentation['size']}, and the photo has {list(size)}")
    if checked.are_shares:
        raise ImageError(f"{annotated.where}: coordinates from 0 to 1; expected pixels, not shares of the photo's size")
    return len(checked.beyond)


def _drawn(annotated: Annotated, annotation: Record, size: tuple[int, int]) -> Mask:
    try:
        return draw(annotation["segmentation"], *size)
    except InputError as error:
        raise _wrong(annotated, annotation, str(error)) from error


def _point_of(
    annotated: Annotated, annotation: Record, size: tuple[int, int], scored: bool
) -> tuple[float, float] | None:
    """Return the point that SAM was given for a mask, x and y in the photo; None if none is told and none must be."""
    told = annotation.get("point_coords")
    if told is None and not scored:
        return None
    points = told if isinstance(told, list) and len(told) == 1 else [None]
    x, y = points[0] if isinstance(points[0], list) and len(points[0]) == 2 else (math.nan, math.nan)
    if not (_is_number(x) and _is_number(y) and 0 <= x <= size[1] and 0 <= y <= size[0]):
        raise _wrong(annotated, annotation, f"has point_coords {told!r:.60}; expected [[x, y]] within the photo")
    return float(x), float(y)


def _scores_of(annotated: Annotated, annotation: Record, scored: bool) -> tuple[float | None, float | None]:
    """Return the IoU that SAM predicted of a mask and its stability score; None where one is not told."""
    scores: list[float | None] = []
    for name in ("predicted_iou", "stability_score"):
        told = annotation.get(name)
        if not (_is_number(told) or (told is None and not scored)):
            raise _wrong(annotated, annotation, f"has {name} {told!r:.40}; expected a number")
        scores.append(told)
    return scores[0], scores[1]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) < 1e30


def _wrong(annotated: Annotated, annotation: Record, what: str) -> ImageError:
    return ImageError(f"{annotated.where}: annotation {annotation.get('id')!r:.80} {what}; mend it, or leave it out")
