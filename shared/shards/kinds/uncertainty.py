"""``uncertainty/NAME``: maps of uncertainty, row for row the masks. A blob is a map u, and by a refiner the refined
label (``codecs.uncertainty``). Where ``u_valid`` is false the map is unknown: ``mean_u`` is null, the blob is empty,
and ``error`` says why if the photo is to blame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from sum_factory.shared.codecs.codes import map_blob
from sum_factory.shared.codecs.fast import decode_maps, decode_refined
from sum_factory.shared.codecs.uncertainty import STEPS, decode_uncertainty, refined_label
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CELL, Frame
from sum_factory.shared.shards.dataset import UNCERTAINTY, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import (
    GRID_COLUMNS,
    MASK_AXES,
    MASK_MEANING,
    NOTHING_KNOWN,
    STEP_COLUMNS,
    ArrayRows,
    Columns,
    RowCells,
    ZarrLayout,
    cut,
    label_blob,
    size_columns,
    step_columns,
)
from sum_factory.shared.shards.kinds.kind import LayerKind, Plane, Row, UnitUnderCheck, faults_by_mask, input_side_of
from sum_factory.shared.shards.manifest import crop_of


def planes(layer: Layer) -> tuple[Plane, ...]:
    """Return the map u and, made by a refiner, the refined label."""
    return ("u", "refined") if "refiner" in layer.weights else ("u",)


def zarr_layout(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return an array of maps and, made by a refiner, one of refined labels."""
    side = input_side_of(dataset) // CELL
    return _refined_maps(side) if "refined" in planes(layer) else _maps(side)


def _maps(side: int) -> ZarrLayout:
    def split(blobs: Sequence[bytes]) -> tuple[ArrayRows, Columns]:
        if any(map(refined_label, blobs)):
            raise ShardError("a map of a layer without a refiner has a refined label")
        maps = decode_maps(blobs)
        return [maps.grid], size_columns(maps.sizes)

    def join(cells: RowCells, row: Columns) -> bytes:
        return map_blob(cut(cells[0], row))

    return ZarrLayout((_u(side),), GRID_COLUMNS, split, join)


def _refined_maps(side: int) -> ZarrLayout:
    refined = Array("refined", (side, side), MASK_AXES, MASK_MEANING.replace("the mask", "the refined mask"))

    def split(blobs: Sequence[bytes]) -> tuple[ArrayRows, Columns]:
        maps, labels = decode_maps(blobs), decode_refined(blobs)
        if not np.array_equal(maps.sizes, labels.sizes):
            raise ShardError("a map and its refined label are of two sizes")
        return [maps.grid, labels.grid], {**size_columns(maps.sizes), **step_columns(labels, "refined_")}

    def join(cells: RowCells, row: Columns) -> bytes:
        return map_blob(cut(cells[0], row), label_blob(cells[1], row, "refined_"))

    columns = (*GRID_COLUMNS, *((f"refined_{name}", kind) for name, kind in STEP_COLUMNS))
    return ZarrLayout((_u(side), refined), columns, split, join)


def _u(side: int) -> Array:
    meaning = f"u = code / 250; {NOTHING_KNOWN}: nothing is known of this mask, or there is none"
    return Array("u", (side, side), MASK_AXES, meaning, fill=NOTHING_KNOWN)


def faults(checked: UnitUnderCheck) -> Iterator[str]:
    """Yield which maps do not decode, are of another size than their mask, or do not have the mean of their row."""
    has_refined = "refined" in planes(checked.layer)

    def fault_of(row: Row, blob: bytes, mask: Row, number: int) -> str | None:
        return _fault_of_map(row, blob, Frame(checked.shards.input_side, crop_of(mask)), has_refined)

    return faults_by_mask(checked, fault_of)


def _fault_of_map(row: Row, data: bytes, frame: Frame, refined: bool) -> str | None:
    """Return what is wrong with the map of a row, if anything is. Raises ``ShardError`` if it does not decode."""
    if not row["u_valid"]:
        return "it is unknown, but has a map" if data or row["mean_u"] is not None else None
    decoded = decode_uncertainty(data)
    if decoded.u.shape != frame.interpolation_cells:
        return "its map is of another size"
    if (decoded.refined is not None) != refined:
        return "it has no refined label" if refined else "it has a refined label that no refiner made"
    rows, columns = frame.photo_cells
    if row["mean_u"] is None or abs(float(np.mean(decoded.u[:rows, :columns])) - row["mean_u"]) > 1 / STEPS:
        return "its mean is not that of its map"
    return None


KIND = LayerKind(
    name=UNCERTAINTY,
    per="mask",
    columns=(("mean_u", pa.float32()), ("u_valid", pa.bool_())),
    zarr_layout=zarr_layout,
    member="uncertainty",
    faults=faults,
    contents="maps",
    lacking="maps",
    is_family=True,
    of_masks=True,
    known_column="u_valid",
    planes=planes,
)
