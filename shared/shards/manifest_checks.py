"""What the rows of a manifest may hold: checked for all rows at once, whenever a manifest is read.

A manifest may have been made by anybody, seal included. So what offsets, counts, sizes and crops it names is checked
before anything is read, made room for, or counted by them. Every fault is a ``ValueError`` that names column and row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.shared.shards.manifest import CROP_BOX

LARGEST_SIDE = 1 << 17
"""Pixels of a side of a photo, at most."""
LARGEST_PHOTO = 1 << 30
"""Pixels of a photo, at most."""
_SHARES = ("mean_u",)
_NULLABLE = ("mask", "error", "digest", "predicted_iou", "stability", *_SHARES)
"""Columns in which a row of a mask may have nothing. Imported masks need not have SAM's scores."""

Numbers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Bounds:
    """What the rows of the manifest of a unit in a layer have to fit.

    ``columns`` are those that the layer's manifests have, ``files`` the size in bytes of each data file and what its
    columns start with, ``images`` how many the unit has, ``limits`` the largest values of some columns. ``known`` is
    the column that is False where nothing is known of a mask, if there is one: there those ``of_data`` have nothing.
    """

    columns: pa.Schema
    images: int
    files: Sequence[tuple[str, int]]
    limits: Sequence[tuple[str, int]] = ()
    known: str = ""
    of_data: Sequence[str] = ()


def require_rows(table: pa.Table, bounds: Bounds) -> None:
    """Raise ``ValueError`` if the rows of a manifest, in the columns that were read, cannot be those of this unit.

    Columns that the layer's manifests do not have are refused, too.
    """
    for field in table.schema:
        index = bounds.columns.get_field_index(field.name)
        if index < 0 or bounds.columns.field(index).type != field.type:
            raise ValueError(f"column {field.name[:80]} of type {field.type}: not expected here")
    there = {*table.column_names}
    if {"image_index", "mask"} <= there:
        _require_order(table, bounds.images)
    if "image" in there:
        _require_keys(table)
    has_mask = pc.is_valid(table["mask"]).to_numpy() if "mask" in there else np.zeros(len(table), bool)
    faults = (*_faults_of_extents(table, bounds.files), *_faults_of_sizes(table, has_mask))
    for column, wrong in (*_lacking(table, has_mask, bounds), *faults, *_faults_of_values(table, bounds.limits)):
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise ValueError(f"row {row}: {column} is {ascii(table[column][row].as_py())[:80]}")


def require_columns(names: Sequence[str], bounds: Bounds) -> None:
    """Raise ``ValueError`` if a manifest lacks a column."""
    missing = [name for name in bounds.columns.names if name not in names]
    if missing:
        raise ValueError(f"column {missing[0]} is missing")


def _numbers(table: pa.Table, column: str) -> Numbers:
    return np.asarray(table[column].fill_null(0).to_numpy(), np.int64)


def _require_order(table: pa.Table, images: int) -> None:
    """Raise ``ValueError`` unless rows come image by image, and the masks of each in order, or a single row."""
    if table["image_index"].null_count:
        raise ValueError("image_index: a row has none")
    index = _numbers(table, "image_index")
    steps = np.diff(index, prepend=-1)
    if len(index) == 0 or ((steps != 0) & (steps != 1)).any() or index[-1] != images - 1:
        raise ValueError(f"image_index: expected the {images} images of the unit, in order")
    first = np.flatnonzero(steps)
    expected = np.arange(len(index)) - np.repeat(first, np.diff(first, append=len(index)))
    counts = np.repeat(np.diff(first, append=len(index)), np.diff(first, append=len(index)))
    is_null = pc.is_null(table["mask"]).to_numpy()
    if (is_null & (counts > 1)).any() or (~is_null & (_numbers(table, "mask") != expected)).any():
        raise ValueError("mask: expected the masks of each image, numbered from 0")


def _require_keys(table: pa.Table) -> None:
    """Raise ``ValueError`` unless every image has a key of its own, the same in all of its rows."""
    keys = table["image"]
    if keys.null_count:
        raise ValueError("image: a row has none")
    if "image_index" in table.column_names:
        codes = keys.combine_chunks().dictionary_encode()
        codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
        of_row, index = codes.indices.to_numpy(), _numbers(table, "image_index")
        same = np.diff(of_row) == 0
        if not np.array_equal(same, np.diff(index) == 0) or len(codes.dictionary) != 1 + int((~same).sum()):
            raise ValueError("image: expected a key of its own for every image")


def _lacking(table: pa.Table, has_mask: Flags, bounds: Bounds) -> Iterator[tuple[str, Flags]]:
    """Yield columns, and which rows of masks lack a value there that they must have."""
    is_known = has_mask
    if bounds.known and bounds.known in table.column_names:
        is_known = has_mask & table[bounds.known].fill_null(False).to_numpy()
    for name in table.column_names:
        if name in _NULLABLE or (name in bounds.of_data and bounds.known not in ("", *table.column_names)):
            continue
        wanted = is_known if name in bounds.of_data else has_mask
        yield name, wanted & pc.is_null(table[name]).to_numpy()


def _faults_of_extents(table: pa.Table, files: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Flags]]:
    """Yield columns of extents, and which rows have one outside its file, or make more than fit into it."""
    for prefix, size in files:
        names = f"{prefix}offset", f"{prefix}length"
        if not {*names} <= {*table.column_names}:
            continue
        offset, length = (_numbers(table, name) for name in names)
        yield names[0], (offset < 0) | (offset > size)
        yield names[1], (length < 0) | (length > size - np.clip(offset, 0, size)) | (np.cumsum(length) > size)


def _faults_of_sizes(table: pa.Table, has_mask: Flags) -> Iterator[tuple[str, Flags]]:
    """Yield columns of the sizes of photos and crops, and which rows have impossible ones."""
    if not {"height", "width"} <= {*table.column_names}:
        return
    height, width = _numbers(table, "height"), _numbers(table, "width")
    told = has_mask | pc.is_valid(table["height"]).to_numpy() | pc.is_valid(table["width"]).to_numpy()
    for name, side in (("height", height), ("width", width)):
        yield name, told & ((side < 1) | (side > LARGEST_SIDE))
    yield "height", told & (height * width > LARGEST_PHOTO)
    if {*CROP_BOX} <= {*table.column_names}:
        x0, y0, x1, y1 = (_numbers(table, name) for name in CROP_BOX)
        for name, wrong in zip(CROP_BOX, (x0 < 0, y0 < 0, (x1 <= x0) | (x1 > width), (y1 <= y0) | (y1 > height)),
                               strict=True):  # fmt: skip
            yield name, has_mask & wrong


def _faults_of_values(table: pa.Table, limits: Sequence[tuple[str, int]]) -> Iterator[tuple[str, Flags]]:
    """Yield columns of numbers, and which rows have one that is out of range."""
    for name, most in limits:
        if name in table.column_names:
            values = _numbers(table, name)
            yield name, (values < 0) | (values > most)
    for field in table.schema:
        column = table[field.name]
        if pa.types.is_floating(field.type):
            values = column.fill_null(0).to_numpy()
            yield field.name, ~np.isfinite(values)
            if field.name in _SHARES:
                yield field.name, (values < 0) | (values > 1)
        elif field.name == "digest":
            fits = pc.match_substring_regex(column, "^[0-9a-f]{64}$").fill_null(True)
            yield field.name, ~fits.to_numpy()
