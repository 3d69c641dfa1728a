"""The layer ``logits`` of a shard set: what SAM put out for the masks, from which maps of uncertainty are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.errors import ShardError
from shared.frame import CELL
from shared.logits_codec import decode_logits
from shared.shards.dataset import LOGITS, MASKS
from shared.shards.shard_set import LabelledImage, ShardSet


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


def _masks_of(image: LabelledImage) -> range:
    """Return the numbers of an image's masks in the unit."""
    return range(image.first, image.first + len(image.masks))
