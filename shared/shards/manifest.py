"""The manifest of a unit in a layer: a Parquet file with one row per mask, or one for an image that has none.

It is written last, and its presence is the only proof that the unit is committed. Its file metadata names the data
file's size and SHA-256 and the ids of the unit and the layer, and seals it (``shared/store/seal.py``).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import LARGEST_UNIT, MOST_UNITS, REMEDY_FOR_DATA, unit_name
from sum_factory.shared.store.records import Record
from sum_factory.shared.store.seal import SEAL, require_seal, seal, with_room

COMMON_COLUMNS = [
    ("image", pa.string()),
    ("image_index", pa.int32()),
    ("height", pa.int32()),
    ("width", pa.int32()),
    ("error", pa.string()),
    ("mask", pa.int32()),
    ("offset", pa.int64()),
    ("length", pa.int32()),
    ("crc32", pa.uint32()),
]
"""Columns of every layer. ``offset`` and ``length`` are the extent of the blob, or the chunk, in the data file. A row
whose ``mask`` is null stands for an image without masks: ``error`` says why, or is null if SAM found none. In other
layers than those of masks and maps, ``mask`` counts what a layer has of an image in their place: its crops, or its one
photo. An encoding may add columns of its own."""
COMMON_NAMES = tuple(name for name, _ in COMMON_COLUMNS)
CROP_BOX = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
"""Columns of the crop that a mask was found in: x0, y0, x1, y1 in the photo, x1 and y1 exclusive."""
CROP_COLUMNS = tuple((name, pa.int32()) for name in CROP_BOX)

LEAST_ROWS = 1 << 12
"""Rows that even the smallest file may have; others have fewer than bytes: a row's CRC-32 alone takes four."""
LARGEST_TEXTS = 1 << 30
"""Bytes of a column of texts, at most."""
MOST_COLUMNS = 64
MOST_FILES = 16
"""Data files of a unit, at most."""
_TYPES = (pa.string(), pa.int32(), pa.int64(), pa.uint8(), pa.uint32(), pa.float32(), pa.bool_())
_TEXTS = pa.dictionary(pa.int32(), pa.string())
_OPTIONAL_DIGEST = re.compile("([0-9a-f]{32}|[0-9a-f]{64})?")
_METADATA_KEY = "sum_factory"


@dataclass(frozen=True)
class UnitRecord:
    """What a manifest says of its unit as a whole."""

    unit: int
    unit_id: str
    layer_id: str
    images: int
    masks: int
    """Rows that have a ``mask``: masks, in a layer of embeddings crops, in one of photos photos."""
    errors: int
    data_bytes: int
    data_sha256: str
    masks_sha256: str = ""
    """For a layer of uncertainty, logits or embeddings, the ``data_sha256`` of the masks that these are of."""
    unknown: int = 0
    """For a layer of uncertainty or logits, the masks without a map or logits."""
    photos_id: str = ""
    """Hash of the SHA-256 of the files of all images: of which photos, to the byte, the data are."""
    files: tuple[tuple[int, str], ...] = ()
    """Size and SHA-256 of each data file, where there are several: then ``data_bytes`` and ``data_sha256`` are of all
    of them, one after the other."""

    @property
    def each_file(self) -> tuple[tuple[int, str], ...]:
        """Size and SHA-256 of each data file, in the order of ``data_files``."""
        return self.files or ((self.data_bytes, self.data_sha256),)


def crop_of(row: Mapping[str, Any]) -> CropBox:
    """Return the crop that a row of a manifest is of."""
    x0, y0, x1, y1 = (int(row[name]) for name in CROP_BOX)
    return x0, y0, x1, y1


def manifest_path(layer: str, number: int) -> str:
    """Return the path of a unit's manifest inside the shard set."""
    return f"manifest/{layer}/{unit_name(number)}.parquet"


def write_manifest(rows: pa.Table, record: UnitRecord) -> bytes:
    """Return the bytes of a manifest; equal input gives equal bytes."""
    described = json.dumps(with_room(asdict(record)), sort_keys=True)
    sink = io.BytesIO()
    # Without a copy of the Arrow schema, which would hold the metadata again, as they were before the seal.
    with pq.ParquetWriter(sink, rows.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(rows)
        writer.add_key_value_metadata({_METADATA_KEY: described})
    return seal(sink.getvalue())


def read_manifest(data: bytes, name: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, UnitRecord]:
    """Parse a manifest, or only some ``columns`` of it. What its rows may hold is for ``manifest_checks`` to say.

    Raises ``ShardError``, naming the file, if any of it is damaged or was edited.
    """
    with _explained(name):
        require_seal(data)
        table = read_parquet(data, columns)
        return table, _parse_metadata(table.schema.metadata)


def read_record(data: bytes, name: str) -> UnitRecord:
    """Parse only what a manifest says of its unit as a whole. Raises ``ShardError`` as ``read_manifest`` does."""
    with _explained(name):
        require_seal(data)
        return _parse_metadata(pq.read_schema(pa.BufferReader(data)).metadata)


def check_manifest(name: str, check: Callable[[], None]) -> None:
    """Call ``check``. What it raises on a manifest called ``name`` becomes a ``ShardError`` that names the manifest."""
    with _explained(name):
        check()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn whatever bytes that anybody may have written make a parser raise into a ``ShardError``."""
    try:
        yield
    except (Exception, MemoryError) as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise ShardError(f"{name}: damaged ({told}); {REMEDY_FOR_DATA}") from error


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Parse a Parquet file that anybody may have written, or only some ``columns`` of it, in bounded memory.

    All on this thread: Arrow's own threads cost more than they save on files of this size, and one that still lets go
    of a Python object when the process ends brings it down ("terminate called without an active exception").

    Raises ``ValueError``, or what pyarrow does, for a file that is damaged, lacks a column, has columns that are not of
    numbers or texts, or is many times larger in memory than on disk.
    """
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=_texts_of(data), pre_buffer=False)
    names = file.schema_arrow.names
    missing = [name for name in columns or () if name not in names]
    if missing or len({*names}) < len(names) or len(names) > MOST_COLUMNS:
        raise ValueError(f"column {missing[0]} is missing" if missing else "its columns are not those of any layer")
    wrong = [field for field in file.schema_arrow if field.type not in (*_TYPES, _TEXTS)]
    if wrong:
        raise ValueError(f"column {wrong[0].name[:80]} of type {str(wrong[0].type)[:80]}: not expected here")
    if file.metadata.num_rows > max(len(data), LEAST_ROWS):
        raise ValueError(f"{file.metadata.num_rows} rows in {len(data)} bytes")
    table = file.read(None if columns is None else list(columns), use_threads=False)
    if len(table) != file.metadata.num_rows:
        raise ValueError(f"{len(table)} rows, {file.metadata.num_rows} by its own count")
    for number, field in enumerate(table.schema):
        if field.type == _TEXTS:
            table = table.set_column(number, pa.field(field.name, pa.string()), _plain(table[field.name], field.name))
    table.validate(full=True)
    return table


def _texts_of(data: bytes) -> list[str]:
    """Return the names of the columns of texts, which are read as they are stored: each text once."""
    return [field.name for field in pq.read_schema(pa.BufferReader(data)) if field.type == pa.string()]


def _plain(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Return a column of texts that were each read once. Raises ``ValueError`` if all of them are too many bytes."""
    total = 0
    for chunk in column.chunks:
        chunk.validate(full=True)
        lengths = pc.binary_length(chunk.dictionary).fill_null(0).to_numpy(zero_copy_only=False)
        counts = pc.value_counts(chunk.indices.drop_null())
        used = counts.field("values").to_numpy(zero_copy_only=False)
        total += int((lengths[used] * counts.field("counts").to_numpy(zero_copy_only=False)).sum())
    if total > LARGEST_TEXTS:
        raise ValueError(f"column {name[:80]}: {total} bytes of text")
    return column.cast(pa.string())


def rows_of_images(table: pa.Table) -> list[list[dict[str, Any]]]:
    """Return the rows of a manifest, image by image."""
    images: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        images.setdefault(row["image_index"], []).append(row)
    return [rows for _, rows in sorted(images.items())]


def _parse_metadata(metadata: dict[bytes, bytes] | None) -> UnitRecord:
    told = Record.parse((metadata or {}).get(_METADATA_KEY.encode(), b"null"))
    told.only((SEAL, *(each.name for each in fields(UnitRecord))))
    files = told.items("files", MOST_FILES) if "files" in told.entries else ()
    described = [Record.of(dict(zip(("size", "sha256"), file, strict=True)), "files") for file in files]
    later = {name: told.text(name, _OPTIONAL_DIGEST) for name in ("masks_sha256", "photos_id") if name in told.entries}
    return UnitRecord(
        unit=told.number("unit", most=MOST_UNITS),
        unit_id=told.id("unit_id"),
        layer_id=told.id("layer_id"),
        images=told.number("images", 1, LARGEST_UNIT),
        masks=told.number("masks"),
        errors=told.number("errors"),
        data_bytes=told.number("data_bytes"),
        data_sha256=told.digest("data_sha256"),
        unknown=told.number("unknown") if "unknown" in told.entries else 0,
        files=tuple((file.number("size"), file.digest("sha256")) for file in described),
        **later,
    )
