"""A unit of a layer as it was written: image by image, with its blobs and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.encoding import open_reader
from sum_factory.shared.shards.kinds import schema_of
from sum_factory.shared.shards.manifest import COMMON_NAMES, CROP_BOX, manifest_path, rows_of_images
from sum_factory.shared.shards.reader import HeldFiles, UnitRows
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter, sha256_of
from sum_factory.shared.store.storage import Storage

REMEDY = "run `labelgen verify`, which says how to mend it"


class UnitImage(NamedTuple):
    """One image of a unit in a layer: its rows of the manifest, and the blob of each row that is a mask's."""

    rows: Sequence[dict[str, Any]]
    blobs: Sequence[bytes]


def read_unit_images(shards: ShardSet, number: int, layer: str) -> list[UnitImage]:
    """Read a committed unit of a layer, in the order of its images. Raises ``ShardError`` if anything does not fit."""
    table, record = shards.manifest(number, layer)
    name = shards.storage.path(manifest_path(layer, number))
    files = {}
    for file, (_, sha256) in zip(shards.data_files(number, layer), record.each_file, strict=True):
        files[file] = _read(shards.storage, file)
        if sha256_of([files[file]]) != sha256:
            raise ShardError(f"{shards.storage.path(file)}: its bytes are not those that were committed; {REMEDY}")
    rows = UnitRows.from_manifest(table, record, name)
    held = HeldFiles(shards.storage, files)
    reader = open_reader(held, shards.dataset, shards.layer(layer), lambda number: rows)
    blobs = iter(reader.blobs(number, range(len(rows))))
    images = rows_of_images(table)
    if [of_image[0]["image"] for of_image in images] != [image.key for image in shards.unit(number).images]:
        raise ShardError(f"{name}: its images are not those of the unit; {REMEDY}")
    return [UnitImage(of_image, [next(blobs) for row in of_image if row["mask"] is not None]) for of_image in images]


def _read(storage: Storage, file: str) -> bytes:
    try:
        return storage.read(file)
    except FileNotFoundError:
        raise ShardError(f"{storage.path(file)}: missing, but its manifest is there; {REMEDY}") from None


def add_unit_image(writer: UnitWriter, index: int, image: UnitImage) -> None:
    """Add an image to a unit that is being written, with what was known of it."""
    first = image.rows[0]
    if first["mask"] is None and first["error"] is not None:
        writer.add_failure(index, first["error"])
        return
    own = [name for name in schema_of(writer.layer.name).names if name not in COMMON_NAMES]
    masks = [row for row in image.rows if row["mask"] is not None]
    size = first["height"], first["width"]
    crops = [[row[name] for name in CROP_BOX] for row in masks if CROP_BOX[0] in own]
    whole = all(crop == [0, 0, size[1], size[0]] for crop in crops)
    columns = {name: [row[name] for row in masks] for name in own}
    writer.add_image(index, size, image.blobs, columns, {} if whole else {"crop_box": crops}, first["error"])
