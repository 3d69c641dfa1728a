"""Reading a layer of a shard set, however it is encoded: which blobs there are, and the codes of those picked."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.shared.codecs.codes import Codes
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Layer
from sum_factory.shared.shards.image_rows import digests_of
from sum_factory.shared.shards.kinds import kinds, planes_of
from sum_factory.shared.shards.kinds.kind import Plane
from sum_factory.shared.shards.manifest import UnitRecord
from sum_factory.shared.store.storage import Storage

Picked = Sequence[int] | npt.NDArray[np.int64]
WHICH = ("image_index", "mask")
"""The columns of a manifest that tell which masks there are."""
LARGEST_SPAN = 1 << 20
"""Bytes of a data file that are read at once to get blobs that lie near each other."""


@dataclass(frozen=True)
class UnitRows:
    """The M rows of a unit's manifest that have a blob, in its order: the columns of numbers, (M,) each.

    A row is of a mask, of a photo or of a crop, as the kind of the layer says (``LayerKind.per``).

    Those of image i are ``first[i]`` to ``first[i + 1]``; ``first`` is int64 (I + 1,). A number that is null in the
    manifest is 0 here; a fraction that is null is NaN.
    """

    record: UnitRecord
    first: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[np.generic]]
    digests: Mapping[str, str | None] = field(default_factory=dict)
    """The SHA-256 of the file of each image, by its key, if they are those of a whole manifest of masks."""

    def __len__(self) -> int:
        return int(self.first[-1])

    def __getitem__(self, column: str) -> npt.NDArray[np.generic]:
        return self.columns[column]

    @classmethod
    def from_manifest(cls, table: pa.Table, record: UnitRecord, name: str) -> UnitRows:
        """Return the rows of a manifest. Raises ``ShardError`` if they do not come image by image."""
        masks = table.filter(pc.is_valid(table["mask"]))
        columns = {
            field.name: _as_numbers(masks[field.name], field.type)
            for field in masks.schema
            if not pa.types.is_string(field.type)
        }
        index = np.asarray(columns["image_index"], np.int64)
        if (np.diff(index) < 0).any() or (index < 0).any() or (index >= record.images).any():
            raise ShardError(f"{name}: its rows are not in the order of the images; delete it and run again")
        digests = digests_of(table) if {"image", "digest"} <= {*table.column_names} else {}
        return cls(record, np.searchsorted(index, np.arange(record.images + 1)), columns, digests)


def _as_numbers(column: pa.ChunkedArray, kind: pa.DataType) -> npt.NDArray[np.generic]:
    missing = False if pa.types.is_boolean(kind) else float("nan") if pa.types.is_floating(kind) else 0
    return np.asarray(column.fill_null(missing).to_numpy())


class DataStore(Protocol):
    """Where data files are read: a ``Storage``, or what stands in for one."""

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or its bytes ``start`` to ``end`` (exclusive). Raises ``FileNotFoundError``."""

    def path(self, name: str) -> str:
        """Return what to call a file in a message."""


@dataclass(frozen=True)
class HeldFiles:
    """The data files of a unit, read as a whole: a ``DataStore`` of what a reader asks for bit by bit."""

    storage: Storage
    files: Mapping[str, bytes]

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return a file, or its bytes ``start`` to ``end`` (exclusive)."""
        return self.files[name][start:end]

    def path(self, name: str) -> str:
        """Return what to call a file in a message."""
        return self.storage.path(name)


class LayerReader(Protocol):
    """Reads blobs of a layer at random, by the numbers of their rows in the unit: 0 to M - 1, as ``UnitRows`` has them.

    It keeps what it read of the manifests, which do not change once they are written. All of it may be used by several
    threads at once.
    """

    def rows(self, unit: int) -> UnitRows:
        """Return the rows of a unit. Raises ``ShardError`` if it is not committed, damaged, or of other masks."""

    def read(self, unit: int, picked: Picked, plane: Plane) -> Codes:
        """Read and decode a ``plane`` ("label", "u" or "refined") of what is ``picked`` of a unit, and nothing else.

        Raises ``ShardError`` if the layer has no such plane, if nothing is known of one of them, and for data that are
        missing, fail their CRC-32, or do not decode.
        """

    def blobs(self, unit: int, picked: Picked) -> list[bytes]:
        """Return blobs as the codecs of the layer's kind made them, whatever the encoding.

        The blob of a row of which nothing is known is empty. Raises ``ShardError`` as ``read``.
        """


def require_plane(layer: Layer, plane: Plane, rows: UnitRows, picked: npt.NDArray[np.int64], place: str) -> None:
    """Raise ``ShardError`` if a layer has no such plane, or nothing is known of one of the masks ``picked``."""
    if plane not in planes_of(layer):
        raise ShardError(f"{place}: layer {layer.name} has no {plane}, but {' and '.join(planes_of(layer))}")
    unknown = np.flatnonzero(~are_known(rows, picked))
    if unknown.size:
        raise ShardError(f"{place}: nothing is known of mask {picked[unknown[0]]} of unit {rows.record.unit}")


def are_known(rows: UnitRows, picked: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which of the masks ``picked`` have data: all but those whose map is unknown, bool (K,)."""
    for kind in kinds().values():
        if kind.known_column and kind.known_column in rows.columns:
            return np.asarray(rows[kind.known_column][picked], np.bool_)
    return np.ones(len(picked), np.bool_)


def read_blobs(
    storage: DataStore, name: str, rows: UnitRows, picked: npt.NDArray[np.int64], prefix: str = ""
) -> list[bytes]:
    """Read blobs, or chunks, of a data file, at once if they lie near each other, and check their CRC-32.

    The columns ``offset``, ``length`` and ``crc32``, behind ``prefix``, tell where. Raises ``ShardError``.
    """
    offsets, lengths, sums = (rows[f"{prefix}{column}"][picked].tolist() for column in ("offset", "length", "crc32"))
    spans = [(offset, offset + length) for offset, length in zip(offsets, lengths, strict=True) if length]
    start, end = min((first for first, _ in spans), default=0), max((last for _, last in spans), default=0)
    try:
        if end - start > LARGEST_SPAN:
            blobs = [
                storage.read(name, offset, offset + n) if n else b"" for offset, n in zip(offsets, lengths, strict=True)
            ]
        else:
            data = storage.read(name, start, end) if end else b""
            blobs = [data[offset - start : offset - start + n] for offset, n in zip(offsets, lengths, strict=True)]
    except FileNotFoundError:
        raise ShardError(f"{storage.path(name)}: missing; run `labelgen verify`") from None
    for blob, offset, crc32 in zip(blobs, offsets, sums, strict=True):
        if zlib.crc32(blob) != crc32:
            raise ShardError(
                f"{storage.path(name)}: the blob at byte {offset} fails its checksum; run `labelgen verify`"
            )
    return blobs
