"""What is wrong with the blobs of a committed unit, beside what each kind of layer finds wrong with its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import MASKS
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.kinds.kind import Row, UnitUnderCheck
from sum_factory.shared.shards.manifest import UnitRecord
from sum_factory.shared.shards.reader import LayerReader
from sum_factory.shared.shards.shard_set import ShardSet

BATCH = 64
"""Masks whose blobs are held at once."""


def faults_of_blobs(
    shards: ShardSet, reader: LayerReader, rows: Sequence[Row], record: UnitRecord, layer: str
) -> Iterator[str]:
    """Yield what is wrong with what the blobs of a unit decode to, and whether they are of the masks that are there.

    ``reader`` reads the unit's data, ``rows`` are those of its manifest, ``record`` is what that says as a whole.
    """
    kind, masks = kind_of(layer), rows
    if kind.of_masks:
        of_masks, masks_record = shards.manifest(record.unit, MASKS)
        if record.masks_sha256 != masks_record.data_sha256:
            yield f"its {kind.contents} are of other masks than those that are there"
        masks = of_masks.to_pylist()
        if kind.per == "mask" and [_mask_of(row) for row in rows] != [_mask_of(mask) for mask in masks]:
            yield "its rows are not those of the masks"
            return
    try:
        with_blobs = _with_blobs(reader, rows, record.unit)
        yield from kind.faults(UnitUnderCheck(shards, record.unit, shards.layer(layer), with_blobs, masks))
    except ShardError as error:
        yield str(error)


def _with_blobs(reader: LayerReader, rows: Sequence[Row], unit: int) -> Iterator[tuple[Row, bytes]]:
    """Yield each row with its blob, which is empty for the row of an image without masks."""
    count = sum(row["mask"] is not None for row in rows)
    batches = (range(start, min(start + BATCH, count)) for start in range(0, count, BATCH))
    blobs = (blob for batch in batches for blob in reader.blobs(unit, batch))
    for row in rows:
        yield row, b"" if row["mask"] is None else next(blobs)


def _mask_of(row: Row) -> tuple[int, str, int | None]:
    """Return which mask, or which image without masks, a row is about."""
    return row["image_index"], row["image"], row["mask"]
