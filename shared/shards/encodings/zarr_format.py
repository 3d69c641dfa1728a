"""The bytes of a Zarr v3 array that is sharded twice: shard, group of rows, row.

Written here and not by zarr-python, so that a shard is one string of bytes that depends on its chunks and on nothing
else, put in one piece. A shard has room for many more rows than it holds, and the index of a shard is not compressed:
with one index for all rows, 16 bytes each, most of the bytes would be the index of rows that are not there. So the
rows of a group share an index, and the shard's own index is of groups.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import google_crc32c
import numpy as np

GROUP = 64
"""Rows that share an index."""
INDEX_ENTRY = struct.Struct("<2Q")
_CHECKSUM = struct.Struct("<I")
_ABSENT = INDEX_ENTRY.pack(2**64 - 1, 2**64 - 1)
GROUP_INDEX_SIZE = GROUP * INDEX_ENTRY.size + _CHECKSUM.size


@dataclass(frozen=True)
class Array:
    """An array whose rows are cells of one shape and type; a chunk is one row, compressed with Zstandard."""

    name: str
    cells: tuple[int, ...]
    axes: tuple[str, ...]
    """What the dimensions are called: that of the rows, then those of the cells."""
    meaning: str
    """What the values mean, for people who read the array without this project's documents."""
    dtype: Literal["uint8", "float16", "float32"] = "uint8"
    fill: int | float | Literal["NaN"] = 0
    """What a row reads as that has no chunk."""
    level: int = 9
    """Of Zstandard. For codes of masks, level 19 saves 6 % more, and takes 80 times as long."""
    length: str | None = None
    """The manifest's column that says how many of the cells' first axis a row fills; None if it fills them all, or if
    a reader wants the zeros beyond too."""

    @property
    def type(self) -> np.dtype[Any]:
        """The type of a cell in memory and, little-endian, on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    def metadata(self, rows: int, shard_rows: int) -> bytes:
        """Return ``zarr.json`` of ``rows`` rows, ``shard_rows`` a shard."""
        packed: dict[str, Any] = {"name": "bytes"}
        if self.type.itemsize > 1:
            packed["configuration"] = {"endian": "little"}
        leaf = [packed, {"name": "zstd", "configuration": {"level": self.level, "checksum": False}}]
        return _to_json(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": [rows, *self.cells],
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_rows, *self.cells]}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": self.fill,
                "codecs": [_sharded([GROUP, *self.cells], [_sharded([1, *self.cells], leaf)])],
                "dimension_names": list(self.axes),
                "attributes": {"meaning": self.meaning},
                "storage_transformers": [],
            }
        )


def group_metadata() -> bytes:
    """Return ``zarr.json`` of a group."""
    return _to_json({"zarr_format": 3, "node_type": "group", "attributes": {}})


def _sharded(chunk_shape: list[int], codecs: list[dict[str, Any]]) -> dict[str, Any]:
    index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    return {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": chunk_shape,
            "codecs": codecs,
            "index_codecs": index_codecs,
            "index_location": "end",
        },
    }


def _to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


class ShardWriter:
    """Builds a shard of ``rows`` rows, a multiple of ``GROUP``, in memory, from the chunks of the first of them."""

    def __init__(self, rows: int) -> None:
        assert rows % GROUP == 0, "a shard is whole groups"
        self.rows, self.count = rows, 0
        self._parts: list[bytes] = []
        self._size = 0
        self._groups: list[bytes] = []  # the shard's index
        self._chunks: list[bytes] = []  # the index of the group that is being written
        self._start = 0

    def add(self, chunk: bytes) -> int:
        """Add the chunk of the next row, empty for a row that is absent; return its offset in the shard."""
        assert self.count < self.rows, "the caller knows how many rows there are"
        if len(self._chunks) == GROUP:
            self._close_group()
        offset = self._size
        self._chunks.append(INDEX_ENTRY.pack(offset - self._start, len(chunk)) if chunk else _ABSENT)
        self._write(chunk)
        self.count += 1
        return offset

    def finish(self) -> bytes:
        """Close the shard and return its bytes."""
        if self._chunks:
            self._close_group()
        self._write(_index(self._groups, self.rows // GROUP))
        return b"".join(self._parts)

    def _close_group(self) -> None:
        if self._size > self._start:
            self._write(_index(self._chunks, GROUP))
            self._groups.append(INDEX_ENTRY.pack(self._start, self._size - self._start))
        else:
            self._groups.append(_ABSENT)
        self._chunks, self._start = [], self._size

    def _write(self, part: bytes) -> None:
        self._parts.append(part)
        self._size += len(part)


def _index(entries: Sequence[bytes], count: int) -> bytes:
    """Return the index of ``count`` places, of which the first are ``entries``, with its CRC-32C."""
    index = b"".join(entries) + _ABSENT * (count - len(entries))
    return index + _CHECKSUM.pack(google_crc32c.value(index))
