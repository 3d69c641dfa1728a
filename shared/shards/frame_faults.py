"""What is wrong with the frames of a committed unit: each kind of layer has checks of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.uncertainty import STEPS, decode_uncertainty
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import Frame
from sum_factory.shared.shards.dataset import EMBEDDINGS, IMAGES, LOGITS, MASKS, is_of_masks, is_uncertainty
from sum_factory.shared.shards.manifest import UnitRecord
from sum_factory.shared.shards.photos import faults_of_photos
from sum_factory.shared.shards.reader import LayerReader
from sum_factory.shared.shards.sam_outputs import crop_of, fault_of_logits, faults_of_embeddings
from sum_factory.shared.shards.shard_set import ShardSet

Row = Mapping[str, Any]
BATCH = 64
"""Masks whose frames are held at once."""


def faults_of_frames(
    shards: ShardSet, held: LayerReader, rows: Sequence[Row], record: UnitRecord, layer: str
) -> Iterator[str]:
    """Yield what is wrong with what the frames of a unit decode to, and whether they are of the masks that are there.

    ``held`` reads the unit's data, ``rows`` are those of its manifest, ``record`` is what that says as a whole.
    """
    masks = rows
    if is_of_masks(layer):
        of_masks, masks_record = shards.manifest(record.unit, MASKS)
        if record.masks_sha256 != masks_record.data_sha256:
            yield f"its {'maps' if is_uncertainty(layer) else layer} are of other masks than those that are there"
        masks = of_masks.to_pylist()
        if layer != EMBEDDINGS and [_mask_of(row) for row in rows] != [_mask_of(mask) for mask in masks]:
            yield "its rows are not those of the masks"
            return
    framed = _with_frames(held, rows, record.unit)
    try:
        if layer == IMAGES:
            yield from faults_of_photos(framed, shards.input_side)
        elif layer == EMBEDDINGS:
            yield from faults_of_embeddings(framed, masks, shards.layer(layer).settings["shape"])
        else:
            yield from _faults_of_masks(shards, framed, masks, record.unit, layer)
    except ShardError as error:
        yield str(error)


def _with_frames(held: LayerReader, rows: Sequence[Row], unit: int) -> Iterator[tuple[Row, bytes]]:
    """Yield each row with its frame, which is empty for the row of an image without masks."""
    count = sum(row["mask"] is not None for row in rows)
    batches = (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
    frames = (frame for batch in batches for frame in held.frames(unit, batch))
    for row in rows:
        yield row, b"" if row["mask"] is None else next(frames)


def _faults_of_masks(
    shards: ShardSet, framed: Iterable[tuple[Row, bytes]], masks: Sequence[Row], unit: int, layer: str
) -> Iterator[str]:
    """Yield what is wrong with the labels, maps or logits of rows; ``masks`` are the same rows of the masks."""
    refined = "refined" in shards.layer(layer).parts
    pairs = ((*one, mask) for one, mask in zip(framed, masks, strict=True) if mask["mask"] is not None)
    for number, (row, data, mask) in enumerate(pairs):
        frame = Frame(shards.input_side, crop_of(mask))
        try:
            if is_uncertainty(layer):
                fault = _fault_of_map(row, data, frame, refined)
            elif layer == LOGITS:
                fault = fault_of_logits(shards, row, data, unit, number)
            else:
                fault = _fault_of_label(data, frame)
        except ShardError as error:
            fault = str(error)
        if fault is not None:
            yield f"mask {row['mask']} of image {row['image']}: {fault}"


def _fault_of_label(data: bytes, frame: Frame) -> str | None:
    """Return what is wrong with a label, if anything is. Raises ``ShardError`` if it does not decode."""
    return None if decode_label(data).shape == frame.low_res_size else "it is of another size"


def _fault_of_map(row: Row, data: bytes, frame: Frame, refined: bool) -> str | None:
    """Return what is wrong with the map of a row, if anything is. Raises ``ShardError`` if it does not decode."""
    if not row["u_valid"]:
        return "it is unknown, but has a map" if data or row["mean_u"] is not None else None
    decoded = decode_uncertainty(data)
    if decoded.u.shape != frame.low_res_size:
        return "its map is of another size"
    if (decoded.refined is not None) != refined:
        return "it has no refined label" if refined else "it has a refined label that no refiner made"
    rows, columns = frame.valid_size
    if row["mean_u"] is None or abs(float(np.mean(decoded.u[:rows, :columns])) - row["mean_u"]) > 1 / STEPS:
        return "its mean is not that of its map"
    return None


def _mask_of(row: Row) -> tuple[int, str, int | None]:
    """Return which mask, or which image without masks, a row is about."""
    return row["image_index"], row["image"], row["mask"]
