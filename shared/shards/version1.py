"""Read a shard set of format version 1, whose labels have up to 128 steps and whose small files have no seal.

It differs from version 2 (``docs/shards.md``) in nothing else: the format version is part of the layer ids, and a
manifest names the SHA-256 of its rows, ``rows_sha256``, where one of today names that of its file.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sum_factory.shared.canonical_json import content_id
from sum_factory.shared.compiled_codec import decode_labels, decode_maps, decode_refined
from sum_factory.shared.errors import ShardError
from sum_factory.shared.label_codec import HEADER, MOST_STEPS, band_of, frame_of_steps, inflate, unpack_bits
from sum_factory.shared.shards.dataset import DATASET, Dataset, Layer, PlannedImage, Unit, is_uncertainty, unit_path
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path, rows_of_images
from sum_factory.shared.shards.samples import Sample
from sum_factory.shared.shards.seal import is_sealed
from sum_factory.shared.shards.tar_layer import tar_path
from sum_factory.shared.storage import Storage
from sum_factory.shared.uncertainty_codec import LENGTH, cut_frame, refined_label

VERSION = 1
MOST_STEPS_THEN = 128
REMEDY = "restore the file from where the shard set was made; what is sound of it can be migrated without"


@dataclass(frozen=True)
class Version1:
    """A shard set of version 1, opened. ``layer_ids`` are those of then; ``dataset.layers`` have others today."""

    storage: Storage
    dataset: Dataset
    layer_ids: Mapping[str, str]

    @classmethod
    def open(cls, url: str) -> Version1 | None:
        """Open the shard set at ``url``, or return None if what is there is not of version 1.

        Raises ``ShardError`` if it is damaged.
        """
        storage = Storage(url)
        name = storage.path(DATASET)
        try:
            data = storage.read(DATASET)
            record = json.loads(data)
            if record["format"] != VERSION or is_sealed(data):
                return None
            fields = {key: dict(value) for key, value in record["layers"].items()}
            ids = {layer: value.pop("id") for layer, value in fields.items()}
            layers = {layer: Layer(**value) for layer, value in fields.items()}
            dataset = Dataset(record["unit_size"], tuple(record["units"]), record["images"], layers)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardError(f"{name}: damaged or edited ({error}); {REMEDY}") from error
        for layer in layers.values():
            parts = [layer.name, layer.encoding, layer.settings, layer.weights]
            if content_id([VERSION, list(dataset.unit_ids), *parts]) != ids[layer.name]:
                raise ShardError(f"{name}: layer {layer.name} does not match its id; {REMEDY}")
        return cls(storage, dataset, ids)

    def layer_id(self, name: str) -> str:
        """Return the id of a layer."""
        return self.layer_ids[name]

    def committed(self, layer: str) -> list[int]:
        """Return the numbers of the units of ``layer`` that are committed, in order."""
        names = set(self.storage.names(f"manifest/{layer}"))
        numbers = range(len(self.dataset.unit_ids))
        return [number for number in numbers if manifest_path(layer, number).rpartition("/")[2] in names]

    def unit(self, number: int) -> Unit:
        """Return the plan of a unit. Raises ``ShardError`` if it is missing, damaged or of another shard set."""
        name = unit_path(number)
        try:
            record = json.loads(self.storage.read(name))
            unit = Unit(record["unit"], tuple(PlannedImage(**image) for image in record["images"]))
            if (unit.number, unit.id) != (number, self.dataset.unit_ids[number]):
                raise ValueError("its images are not those of the unit")
        except FileNotFoundError:
            raise ShardError(f"{self.storage.path(name)}: missing; {REMEDY}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{self.storage.path(name)}: damaged or edited ({error}); {REMEDY}") from error
        return unit

    def samples(self, number: int, layer: str) -> list[Sample]:
        """Read a unit of a layer, its frames as they were written. Raises ``ShardError`` if anything does not fit."""
        table, record = self.manifest(number, layer)
        name = self.storage.path(tar_path(layer, number))
        try:
            data = self.storage.read(tar_path(layer, number))
        except FileNotFoundError:
            raise ShardError(f"{name}: missing, but its manifest is there; {REMEDY}") from None
        if (len(data), hashlib.sha256(data).hexdigest()) != (record.data_bytes, record.data_sha256):
            raise ShardError(f"{name}: its bytes are not those that were committed; {REMEDY}")
        images = rows_of_images(table)
        if [rows[0]["image"] for rows in images] != [image.key for image in self.unit(number).images]:
            raise ShardError(f"{name}: its images are not those of the unit; {REMEDY}")
        samples = []
        for rows in images:
            masks = [row for row in rows if row["mask"] is not None]
            frames = [data[row["offset"] : row["offset"] + row["length"]] for row in masks]
            if any(zlib.crc32(frame) != row["crc32"] for frame, row in zip(frames, masks, strict=True)):
                raise ShardError(f"{name}: a mask of image {rows[0]['image']} fails its checksum; {REMEDY}")
            samples.append(Sample(rows, frames))
        return samples

    def manifest(self, number: int, layer: str) -> tuple[pa.Table, UnitRecord]:
        """Read the manifest of a unit. Raises ``ShardError`` if it is not committed, damaged, or another layer's."""
        name = self.storage.path(manifest_path(layer, number))
        try:
            table = pq.read_table(pa.BufferReader(self.storage.read(manifest_path(layer, number))))
            described = json.loads(table.schema.metadata[b"sum_factory"])
            if described.pop("rows_sha256") != rows_sha256(table):
                raise ValueError("its rows do not have the SHA-256 that they were written with")
            record = UnitRecord(**described)
            if (record.unit, record.unit_id) != (number, self.dataset.unit_ids[number]):
                raise ValueError("it is of another unit")
            if record.layer_id != self.layer_ids[layer]:
                raise ValueError("it is of another layer")
        except FileNotFoundError:
            raise ShardError(f"{name}: missing; this unit is not in layer {layer} yet") from None
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{name}: damaged ({error}); {REMEDY}") from error
        return table, record


def rows_sha256(rows: pa.Table) -> str:
    """Hash names, types and values of all columns, as version 1 did."""
    hasher = hashlib.sha256()
    for field, column in zip(rows.schema, rows.columns, strict=True):
        hasher.update(f"{field.name}:{field.type};".encode())
        hasher.update(column.is_null().to_numpy().tobytes())
        if pa.types.is_string(field.type):
            hasher.update(json.dumps(column.to_pylist()).encode())
        else:
            zero = False if pa.types.is_boolean(field.type) else 0
            hasher.update(column.fill_null(zero).to_numpy().tobytes())
    return hasher.hexdigest()


def sample_of_today(sample: Sample, layer: str) -> tuple[Sample, int]:
    """Return a sample of version 1 with frames of version 2, and of how many the label was framed anew.

    Raises ``ShardError``, naming the image, if a frame does not decode.
    """
    try:
        if is_uncertainty(layer):
            frames = [_map_of_today(frame) if frame else frame for frame in sample.frames]
            decode_maps([frame for frame in frames if frame])
            decode_refined([frame for frame in frames if frame and refined_label(frame)])
        else:
            frames = [label_of_today(frame) for frame in sample.frames]
            decode_labels(frames)
    except ShardError as error:
        raise ShardError(f"image {sample.rows[0]['image']}: {error}; {REMEDY}") from error
    return Sample(sample.rows, frames), sum(new != was for new, was in zip(frames, sample.frames, strict=True))


def _map_of_today(frame: bytes) -> bytes:
    part, refined = cut_frame(frame)
    return LENGTH.pack(len(part)) + part + (label_of_today(refined) if refined else b"")


def label_of_today(frame: bytes) -> bytes:
    """Return a label's frame of version 1 as one of version 2: itself, unless it has 128 steps.

    Such a label keeps its signs and its median t. Of a cell's step q it keeps m / (m + t) = (q + 1/2) / 128, put into
    the step of 127 that holds it: floor(127 (2 q + 1) / 256). Raises ``ShardError`` on damaged bytes.
    """
    try:
        last_row, last_column, top, left, bottom, right, typical, steps = HEADER.unpack_from(frame)
        if steps <= MOST_STEPS:
            return frame
        height, width = bottom - top + 1, right - left + 1
        if steps != MOST_STEPS_THEN or not (top <= bottom <= last_row and left <= right <= last_column):
            raise ValueError("its header contradicts itself")
        signs, q = unpack_bits(inflate(frame[HEADER.size :], largest=2 * height * width), height, width)
        if q.size != np.count_nonzero(band_of(signs)) or q.max(initial=0) >= steps:
            raise ValueError("its magnitudes do not fit its boundary")
    except (struct.error, zlib.error, ValueError) as error:
        raise ShardError(f"a label frame of {len(frame)} bytes does not decode ({error})") from error
    positive = np.zeros((last_row + 1, last_column + 1), np.uint8)
    positive[top : bottom + 1, left : right + 1] = signs
    fewer = (2 * q.astype(np.int64) + 1) * MOST_STEPS // (2 * steps)
    return frame_of_steps(positive, typical, MOST_STEPS, fewer.astype(np.uint8))
