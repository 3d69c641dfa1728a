"""The manifest of a unit in a layer: a Parquet file with one row a mask, or one for an image that has none.

It is written last, and its presence is the only proof that the unit is committed. Its file metadata names the data
file's size and SHA-256 and the ids of the unit and the layer, and seals it (``shared/store/seal.py``).
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import REMEDY_FOR_DATA, unit_name
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
"""Columns of every layer. ``offset`` and ``length`` place the blob, or the chunk, in the data file. A row whose
``mask`` is null stands for an image without masks: ``error`` says why, or is null if SAM found none. An encoding may
add columns of its own."""
COMMON_NAMES = tuple(name for name, _ in COMMON_COLUMNS)
CROP_BOX = ("crop_x0", "crop_y0", "crop_x1", "crop_y1")
"""Columns of the crop that a mask was found in: x0, y0, x1, y1 in the photo, x1 and y1 exclusive."""
CROP_COLUMNS = tuple((name, pa.int32()) for name in CROP_BOX)

_METADATA_KEY = "sum_factory"


@dataclass(frozen=True)
class UnitRecord:
    """What a manifest says of its unit as a whole."""

    unit: int
    unit_id: str
    layer_id: str
    images: int
    masks: int
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


def read_table(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, or some columns of it, on this thread alone.

    Arrow's own threads cost more than they save on files of this size, and one that still lets go of a Python object
    when the process ends brings it down ("terminate called without an active exception").
    """
    with pq.ParquetFile(pa.BufferReader(data), pre_buffer=False) as file:
        return file.read(columns=None if columns is None else list(columns), use_threads=False)


def read_manifest(data: bytes, name: str, columns: Sequence[str] | None = None) -> tuple[pa.Table, UnitRecord]:
    """Parse a manifest, or only some ``columns`` of it.

    Raises ``ShardError``, naming the file, if any of it is damaged or was edited.
    """
    try:
        require_seal(data)
        table = read_table(data, columns)
        record = _parse_metadata(table.schema.metadata)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{name}: damaged ({error}); {REMEDY_FOR_DATA}") from error
    return table, record


def read_record(data: bytes, name: str) -> UnitRecord:
    """Parse only what a manifest says of its unit as a whole. Raises ``ShardError`` as ``read_manifest`` does."""
    try:
        require_seal(data)
        return _parse_metadata(pq.read_schema(pa.BufferReader(data)).metadata)
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{name}: damaged ({error}); {REMEDY_FOR_DATA}") from error


def rows_of_images(table: pa.Table) -> list[list[dict[str, Any]]]:
    """Return the rows of a manifest, image by image."""
    images: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        images.setdefault(row["image_index"], []).append(row)
    return [rows for _, rows in sorted(images.items())]


def _parse_metadata(metadata: dict[bytes, bytes]) -> UnitRecord:
    described = json.loads(metadata[_METADATA_KEY.encode()])
    del described[SEAL]
    files = tuple((size, sha256) for size, sha256 in described.pop("files", ()))
    return UnitRecord(**described, files=files)
