"""The layers ``logits`` and ``embeddings`` of a shard set: what SAM put out, for maps of uncertainty to be made of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.embedding import decode_embedding
from sum_factory.shared.codecs.logits import decode_logits
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS
from sum_factory.shared.shards.manifest import CROP_BOX
from sum_factory.shared.shards.reader import are_known
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet


def read_full_logits(shards: ShardSet, unit: int, image: ImageRows) -> list[npt.NDArray[np.float32] | None]:
    """Read the logits of an image's masks on the whole square, float32 (S, S) each, or None where they are not known.

    Raises ``ShardError`` if the unit is not in the layer, is of other masks, or if its data are missing, fail their
    CRC-32, or do not decode.
    """
    blobs = shards.reader(LOGITS).blobs(unit, _masks_of(image))
    try:
        return [decode_logits(blob) if blob else None for blob in blobs]
    except ShardError as error:
        raise ShardError(f"{shards.storage.url}, layer {LOGITS}, image {image.key}: {error}") from error


def are_logits_known(shards: ShardSet, unit: int, image: ImageRows) -> npt.NDArray[np.bool_]:
    """Return of which of an image's masks there are logits, bool (K,), from the manifest alone."""
    return are_known(shards.reader(LOGITS).rows(unit), np.array(_masks_of(image), np.int64))


def kept_crops(shards: ShardSet, unit: int, index: int) -> dict[CropBox, int]:
    """Return of which crops of image ``index`` of a unit there are embeddings, and their row in the unit."""
    rows = shards.reader(EMBEDDINGS).rows(unit)
    first, end = rows.first[index : index + 2].tolist()
    boxes = zip(*(rows[name][first:end].tolist() for name in CROP_BOX), strict=True)
    return {box: row for row, box in enumerate(boxes, first)}


def read_embedding(shards: ShardSet, unit: int, index: int, crop: CropBox) -> npt.NDArray[np.float32] | None:
    """Read the embedding of a crop of image ``index`` of a unit, float32 (C, g, g), or None if it was not kept.

    Raises ``ShardError`` as ``read_full_logits``.
    """
    row = kept_crops(shards, unit, index).get(crop)
    if row is None:
        return None
    (blob,) = shards.reader(EMBEDDINGS).blobs(unit, [row])
    try:
        return decode_embedding(blob)
    except ShardError as error:
        raise ShardError(f"{shards.storage.url}, layer {EMBEDDINGS}, image {index} of unit {unit}: {error}") from error


def _masks_of(image: ImageRows) -> range:
    """Return the numbers of an image's masks in the unit."""
    return range(image.first, image.first + len(image.masks))
