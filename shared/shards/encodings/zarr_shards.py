"""The files of a Zarr v3 array, as zarr writes them: its description, and shards that are put in one piece.

zarr encodes into a store in memory, of which each file is taken whole. Left to itself it starts five asyncio tasks and
a change of threads for every chunk: 200 to 700 us, where compressing one takes 12 to 45. So its codecs run one after
the other here (``_InOrder``), 30 to 40 us per chunk beside compressing, and the bytes are the same. A benchmark says
what writing a unit costs (``pipelines.bench.shards``).

Extents of chunks are read from a shard's indexes directly, since zarr does not tell them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import compress
from zarr.abc.codec import CodecPipeline
from zarr.abc.store import ByteSetter
from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer, default_buffer_prototype
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.indexing import SelectorTuple
from zarr.storage import MemoryStore

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.encodings.zarr_array import BLOCK, Array, Cells

DESCRIPTION = "zarr.json"
PIECE = 32 << 20
"""Bytes of cells that are handed to zarr at once, at most."""
_ENTRY = 16
"""Bytes of an index for each extent: offset and length, eight bytes each."""
_ABSENT = np.uint64(2**64 - 1)
MOST_BYTES = 1 << 48
"""Bytes of a shard, at most."""

Write = tuple[ByteSetter, ArraySpec, SelectorTuple, SelectorTuple, bool]


def describe_array(array: Array, rows: int, shard_rows: int) -> bytes:
    """Return ``zarr.json`` of an array of ``rows`` rows, ``shard_rows`` a shard."""
    files: dict[str, Buffer] = {}
    _create(files, array, rows, shard_rows)
    return files[DESCRIPTION].to_bytes()


def describe_group() -> bytes:
    """Return ``zarr.json`` of a group."""
    files: dict[str, Buffer] = {}
    zarr.create_group(MemoryStore(files))
    return files[DESCRIPTION].to_bytes()


def describes_the_same(one: bytes, other: bytes) -> bool:
    """Whether two ``zarr.json`` are read as the same array or group; False if one of them is damaged."""
    try:
        return bool(_read_description(one) == _read_description(other))
    except Exception:  # on damaged bytes zarr raises whatever it runs into
        return False


def _read_description(content: bytes) -> Any:
    """Return the JSON that zarr writes for what it reads. Raises ``ValueError`` if it makes up or drops anything."""
    prototype = default_buffer_prototype()
    node = zarr.open(MemoryStore({DESCRIPTION: prototype.buffer.from_bytes(content)}), mode="r")
    written = json.loads(node.metadata.to_buffer_dict(prototype)[DESCRIPTION].to_bytes())
    if written != json.loads(content):
        raise ValueError("it is not all that there is")
    return written


class ShardWriter:
    """Builds a shard of ``rows`` rows, a multiple of ``BLOCK``, in memory, from the first of them."""

    def __init__(self, array: Array, rows: int) -> None:
        self.array, self.rows, self.count = array, rows, 0
        self._files: dict[str, Buffer] = {}
        self._zarr = _create(self._files, array, rows, rows)
        fit = PIECE // array.row_bytes
        self._cells: Cells = np.empty((min(rows, max(1, fit - fit % BLOCK or fit)), *array.cells), array.type)
        self._held = 0

    def add(self, cells: Cells | None) -> None:
        """Add the next row, with zeros up to the end of each axis; None for one that has the fill value.

        Raises ``ShardError`` for cells that a row has no room for.
        """
        assert self.count < self.rows, "the caller knows how many rows there are"
        if self._held == len(self._cells):
            self._flush()
        row = self._cells[self._held]
        if cells is None:
            row[...] = self.array.fill_value
        else:
            if cells.ndim != len(self.array.cells) or any(map(int.__gt__, cells.shape, self.array.cells)):
                raise ShardError(
                    f"what is {cells.shape} large does not fit into a row of the array {self.array.name}, "
                    f"{self.array.cells}; make the layer with the encoding tar"
                )
            if cells.shape != row.shape:
                row[...] = 0
            row[tuple(map(slice, cells.shape))] = cells
        self._held += 1
        self.count += 1

    def finish(self) -> bytes:
        """Return the bytes of the shard; if all rows are absent, an index without extents: zarr would make no file."""
        self._flush()
        self._files.pop(DESCRIPTION)
        for shard in self._files.values():
            return shard.to_bytes()
        return bytes(CRC32C().encode(np.full(self.rows // BLOCK * 2, _ABSENT)))

    def _flush(self) -> None:
        """Hand what is held to zarr."""
        if self._held:
            self._zarr[self.count - self._held : self.count] = self._cells[: self._held]
        self._held = 0


def extents_in(shard: bytes, rows: int, held: int) -> npt.NDArray[np.int64]:
    """Return where the chunks of the first ``held`` of a shard's rows lie: offset and length; 0, 0 if there is none.

    Those of the block of the last of them are returned, too: int64 (R, 2). Raises ``ShardError`` if an index is cut
    short or does not have its CRC-32C, or if there is a chunk beyond.
    """
    blocks = _read_index(shard, rows // BLOCK)
    extents = np.zeros((-(-held // BLOCK), BLOCK, 2), np.int64)
    if blocks[len(extents) :].any():
        raise ShardError("its index puts chunks beyond its rows")
    for number in np.flatnonzero(blocks[: len(extents), 1]):
        start, size = blocks[number].tolist()
        chunks = _read_index(shard[start : start + size], BLOCK)
        chunks[chunks[:, 1] > 0, 0] += start
        extents[number] = chunks
    return extents.reshape(-1, 2)


def _read_index(data: bytes, count: int) -> npt.NDArray[np.int64]:
    """Return the extents in the index at the end of a shard, or of a block."""
    if len(data) < count * _ENTRY + 4:
        raise ShardError("its index is cut short")
    try:
        index = CRC32C().decode(np.frombuffer(data, np.uint8)[-count * _ENTRY - 4 :])
        extents = np.frombuffer(index, "<u8").reshape(count, 2)
    except (RuntimeError, ValueError) as error:
        raise ShardError(f"its index is damaged ({error})") from error
    extents = np.where(extents == _ABSENT, np.uint64(0), extents)
    if (extents > len(data)).any() and (extents > MOST_BYTES).any():
        raise ShardError("its index puts chunks where there can be none")
    return extents.astype(np.int64)


def _create(files: dict[str, Buffer], array: Array, rows: int, shard_rows: int) -> Any:
    """Create an array, whose files appear in ``files``."""
    row = _Sharding(chunk_shape=(1, *array.cells), codecs=[BytesCodec(), _Zstd(level=array.level)])
    return zarr.create_array(
        MemoryStore(files),
        shape=(rows, *array.cells),
        chunks=(shard_rows, *array.cells),
        dtype=array.type,
        fill_value=array.type.type(array.fill_value),
        filters=None,
        compressors=None,
        serializer=_Sharding(chunk_shape=(BLOCK, *array.cells), codecs=[row]),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=array.axes,
        attributes={"meaning": array.meaning},
    )


class _InOrder(BatchedCodecPipeline):
    """zarr's pipeline of codecs, one chunk after the other and without a task for each."""

    async def write(self, batch_info: Iterable[Write], value: NDBuffer, drop_axes: tuple[int, ...] = ()) -> None:
        codec = self.array_bytes_codec
        for one in batch_info:
            setter, spec, of_chunk, of_value, is_whole = one
            if isinstance(codec, ShardingCodec):
                await codec._encode_partial_single(setter, value[of_value], of_chunk, spec)
            elif not is_whole:
                await super().write([one], value, drop_axes)
            elif _is_fill((cells := value[of_value]).as_numpy_array(), spec.fill_value):
                await setter.delete()
            else:
                data = await codec._encode_single(cells, spec)
                for compressor in self.bytes_bytes_codecs:
                    assert data is not None, "no codec here leaves a chunk out"
                    data = await compressor._encode_single(data, spec)
                assert data is not None, "no codec here leaves a chunk out"
                await setter.set(data)


def _is_fill(cells: Cells, fill: Any) -> bool:
    """Whether all cells have the fill value: zarr's own ``all_equal`` takes 100 to 350 us for it."""
    return bool((np.isnan(cells) if fill != fill else cells == fill).all())


class _Sharding(ShardingCodec):
    """zarr's sharding, of chunks that are encoded in order."""

    @property
    def codec_pipeline(self) -> CodecPipeline:
        return _InOrder.from_codecs(self.codecs)


class _Zstd(ZstdCodec):
    """zarr's Zstandard, which is numcodecs', without a change of threads for every chunk."""

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_bytes(compress(chunk_bytes.as_numpy_array(), self.level))
