"""``masks``: the pseudo-labels. A blob is a label (``codecs.label``). ``digest`` is the SHA-256 of the file that was
labelled, which nothing else records; null if it could not be read. ``predicted_iou`` and ``stability`` are null where a
mask was imported without."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from sum_factory.shared.codecs.fast import decode_labels
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.placement import CELL, Frame
from sum_factory.shared.shards.dataset import MASKS, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import (
    GRID_COLUMNS,
    MASK_AXES,
    MASK_MEANING,
    STEP_COLUMNS,
    ArrayRows,
    Columns,
    RowCells,
    ZarrLayout,
    label_blob,
    size_columns,
    step_columns,
)
from sum_factory.shared.shards.kinds.kind import LayerKind, Row, UnitUnderCheck, faults_by_mask, input_side_of
from sum_factory.shared.shards.manifest import CROP_COLUMNS, crop_of
from sum_factory.shared.store.records import Record

LARGEST_SIDE = 1 << 13
"""Pixels of a side of a SAM's input, at most."""


def zarr_layout(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return the one array of labels."""
    side = input_side_of(dataset) // CELL
    label = Array("label", (side, side), MASK_AXES, MASK_MEANING)

    def split(blobs: Sequence[bytes]) -> tuple[ArrayRows, Columns]:
        labels = decode_labels(blobs)
        return [labels.grid], {**size_columns(labels.sizes), **step_columns(labels, "")}

    def join(cells: RowCells, row: Columns) -> bytes:
        return label_blob(cells[0], row, "")

    return ZarrLayout((label,), (*GRID_COLUMNS, *STEP_COLUMNS), split, join)


def faults(checked: UnitUnderCheck) -> Iterator[str]:
    """Yield which labels do not decode, or are of another size than their crop."""

    def fault_of(row: Row, blob: bytes, mask: Row, number: int) -> str | None:
        expected = Frame(checked.shards.input_side, crop_of(mask)).interpolation_cells
        return None if decode_label(blob).shape == expected else "it is of another size"

    return faults_by_mask(checked, fault_of)


def require_settings(layer: Layer) -> None:
    """Raise ``ValueError`` if the weights do not tell the input of the SAM that made the masks."""
    sam = Record.of(layer.weights, "weights").record("sam")
    if sam.number("image_size", CELL, LARGEST_SIDE) % CELL:
        raise ValueError(f"weights.sam.image_size: expected a multiple of {CELL}")


KIND = LayerKind(
    require_settings=require_settings,
    name=MASKS,
    per="mask",
    columns=(
        *((f"box_{name}", pa.int32()) for name in "xywh"),
        ("area", pa.int64()),
        ("point_x", pa.float32()),
        ("point_y", pa.float32()),
        ("predicted_iou", pa.float32()),
        ("stability", pa.float32()),
        *CROP_COLUMNS,
        ("digest", pa.string()),
    ),
    zarr_layout=zarr_layout,
    member="labels",
    faults=faults,
    contents="masks",
    planes=lambda layer: ("label",),
)
