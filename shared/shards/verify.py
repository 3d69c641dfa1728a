"""Check a shard set: counts, checksums, and that every frame decodes. Nothing is changed."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from shared.errors import ShardError
from shared.label_codec import decode_label
from shared.shards.dataset import DATASET, REMEDY_FOR_UNIT, Dataset, unit_name, unit_path
from shared.shards.manifest import UnitRecord, manifest_path
from shared.shards.shard_set import MASKS, ShardSet
from shared.shards.tar_layer import read_samples, tar_path


@dataclass(frozen=True)
class UnitCheck:
    """What the check of one unit found; ``problems`` name the file and what to do."""

    unit: int
    record: UnitRecord | None
    problems: tuple[str, ...]


def verify(shards: ShardSet) -> Iterator[UnitCheck]:
    """Check every unit of the ``masks`` layer; one that is not committed yet is no problem and is not yielded."""
    committed = set(shards.committed())
    stray = _data_without_manifest(shards, committed)
    sizes = []
    for number, unit_id in enumerate(shards.dataset.unit_ids):
        problems = []
        try:
            unit = shards.unit(number)
            sizes.append(len(unit.images))
            if unit.id != unit_id:
                problems.append(f"{shards.storage.path(unit_path(number))}: of another shard set; {REMEDY_FOR_UNIT}")
        except ShardError as error:
            problems.append(str(error))
        record = None
        if number in committed:
            try:
                record = _verify_unit(shards, number)
            except ShardError as error:
                problems.append(str(error))
        problems = list(dict.fromkeys(problems))
        if number in committed or problems:
            yield UnitCheck(number, record, tuple(problems))
    if len(sizes) == len(shards.dataset.unit_ids) and not _sizes_fit(shards.dataset, sizes):
        name = shards.storage.path(DATASET)
        yield UnitCheck(-1, None, (f"{name}: unit_size or images do not match the units; it was edited; restore it",))
    for name in stray:
        yield UnitCheck(-1, None, (f"{name}: data without a manifest; running the same command again replaces it",))


def _sizes_fit(dataset: Dataset, sizes: list[int]) -> bool:
    """Whether units of these sizes are what cutting all images into units of ``unit_size`` gives."""
    full = all(size == dataset.unit_size for size in sizes[:-1])
    return full and all(0 < size <= dataset.unit_size for size in sizes) and sum(sizes) == dataset.image_count


def _data_without_manifest(shards: ShardSet, committed: set[int]) -> list[str]:
    known = {unit_name(number) for number in committed}
    return [
        shards.storage.path(f"{MASKS}/{name}")
        for name in shards.storage.names(MASKS)
        if PurePosixPath(name).stem not in known
    ]


def _verify_unit(shards: ShardSet, number: int) -> UnitRecord:
    table, record = shards.manifest(number)
    name = shards.storage.path(tar_path(MASKS, number))
    manifest = shards.storage.path(manifest_path(MASKS, number))
    remedy = f"delete {manifest} and run the same command again"
    try:
        data = shards.storage.read(tar_path(MASKS, number))
    except FileNotFoundError:
        raise ShardError(f"{name}: missing, but its manifest is there; {remedy}") from None
    if len(data) != record.data_bytes:
        raise ShardError(f"{name}: {len(data)} bytes, expected {record.data_bytes}; {remedy}")
    if hashlib.sha256(data).hexdigest() != record.data_sha256:
        raise ShardError(f"{name}: its bytes do not have the SHA-256 of the manifest; {remedy}")
    rows = table.to_pylist()
    masks = [row for row in rows if row["mask"] is not None]
    errors = [row for row in rows if row["error"] is not None]
    images = {row["image_index"] for row in rows}
    counts = (len(images), len(masks), len(errors))
    if counts != (record.images, record.masks, record.errors) or record.images != len(shards.unit(number).images):
        raise ShardError(f"{manifest}: {counts} images, masks and errors do not match its own counts; {remedy}")
    for row in masks:
        frame = data[row["offset"] : row["offset"] + row["length"]]
        if zlib.crc32(frame) != row["crc32"]:
            raise ShardError(f"{name}: mask {row['mask']} of image {row['image']} fails its checksum; {remedy}")
        decode_label(frame)
    if sum(len(frames) for _, frames in read_samples(data, name)) != len(masks):
        raise ShardError(f"{name}: the tar's members do not hold the masks of the manifest; {remedy}")
    return record
