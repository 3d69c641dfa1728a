"""The layers ``logits`` and ``embeddings`` of a shard set: what SAM put out, for maps of uncertainty to be made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.embedding import decode_embedding
from sum_factory.shared.codecs.logits import decode_logits
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CELL, CropBox
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, MASKS
from sum_factory.shared.shards.manifest import CROP_BOX
from sum_factory.shared.shards.shard_set import LabelledImage, ShardSet


def read_kept_logits(shards: ShardSet, unit: int, image: LabelledImage) -> list[npt.NDArray[np.float32] | None]:
    """Read the logits of an image's masks on the whole square, float32 (S, S) each, or None where they are not known.

    Raises ``ShardError`` if the unit is not in the layer, is of other masks, or if its data are missing, fail their
    CRC-32, or do not decode.
    """
    frames = shards.reader(LOGITS).frames(unit, _masks_of(image))
    try:
        return [decode_logits(frame) if frame else None for frame in frames]
    except ShardError as error:
        raise ShardError(f"{shards.storage.url}, layer {LOGITS}, image {image.key}: {error}") from error


def are_logits_known(shards: ShardSet, unit: int, image: LabelledImage) -> npt.NDArray[np.bool_]:
    """Return of which of an image's masks there are logits, bool (K,), from the manifest alone."""
    return np.asarray(shards.reader(LOGITS).rows(unit)["valid"][list(_masks_of(image))], np.bool_)


def fault_of_logits(shards: ShardSet, row: Mapping[str, Any], data: bytes, unit: int, mask: int) -> str | None:
    """Return what is wrong with the logits ``data`` of mask ``mask`` of a unit, whose row of the manifest this is.

    Their signs must be those of the label, unless that is damaged: the check of the masks says so. Raises
    ``ShardError`` if they do not decode.
    """
    if not row["valid"]:
        return "its logits are not known, but there are some" if data else None
    logits, cells = decode_logits(data), shards.input_side // CELL
    if logits.shape != (cells, cells):
        return "its logits are of another size"
    try:
        label = shards.reader(MASKS).read(unit, [mask], "label").values(0)
    except ShardError:
        return None
    agree = np.array_equal(logits[: label.shape[0], : label.shape[1]] > 0, label > 0)
    return None if agree else "its logits and its label do not agree"


def kept_crops(shards: ShardSet, unit: int, index: int) -> dict[CropBox, int]:
    """Return of which crops of image ``index`` of a unit there are embeddings, and their row in the unit."""
    rows = shards.reader(EMBEDDINGS).rows(unit)
    first, end = rows.first[index : index + 2].tolist()
    boxes = zip(*(rows[name][first:end].tolist() for name in CROP_BOX), strict=True)
    return {box: row for row, box in enumerate(boxes, first)}


def read_embedding(shards: ShardSet, unit: int, index: int, crop: CropBox) -> npt.NDArray[np.float32] | None:
    """Read the embedding of a crop of image ``index`` of a unit, float32 (C, g, g), or None if it was not kept.

    Raises ``ShardError`` as ``read_kept_logits``.
    """
    row = kept_crops(shards, unit, index).get(crop)
    if row is None:
        return None
    (frame,) = shards.reader(EMBEDDINGS).frames(unit, [row])
    try:
        return decode_embedding(frame)
    except ShardError as error:
        raise ShardError(f"{shards.storage.url}, layer {EMBEDDINGS}, image {index} of unit {unit}: {error}") from error


def crop_of(row: Mapping[str, Any]) -> CropBox:
    """Return the crop that a row of a manifest is of."""
    x0, y0, x1, y1 = (int(row[name]) for name in CROP_BOX)
    return x0, y0, x1, y1


def faults_of_embeddings(
    frames: Iterable[tuple[Mapping[str, Any], bytes]], masks: Sequence[Mapping[str, Any]], shape: Sequence[int]
) -> Iterator[str]:
    """Yield what is wrong with the embeddings of a unit, whose rows these are with their data.

    There is one of each crop in which there is one of the ``masks``, in the order of these, of ``shape`` C, g, g.
    """
    expected: dict[int, dict[CropBox, None]] = {}
    for mask in masks:
        crops = expected.setdefault(mask["image_index"], {})
        if mask["mask"] is not None:
            crops[crop_of(mask)] = None
    found: dict[int, list[CropBox]] = {}
    for row, data in frames:
        if row["error"] is not None:
            expected[row["image_index"]] = {}
        crops_found = found.setdefault(row["image_index"], [])
        if row["mask"] is None:
            continue
        crops_found.append(crop_of(row))
        try:
            if decode_embedding(data).shape != tuple(shape):
                yield f"embedding {row['mask']} of image {row['image']}: it is of another size"
        except ShardError as error:
            yield f"embedding {row['mask']} of image {row['image']}: {error}"
    for index, crops in expected.items():
        if found.get(index) != list(crops):
            yield f"the embeddings of image {index} are not those of the crops of its masks"


def _masks_of(image: LabelledImage) -> range:
    """Return the numbers of an image's masks in the unit."""
    return range(image.first, image.first + len(image.masks))
