"""The encodings of a layer: where its data lie, what makes them, and what reads them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Protocol

import pyarrow as pa

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import ENCODINGS, ZARR, Dataset, Layer, require_dataset
from sum_factory.shared.shards.encodings.tar_layer import TarEncoder, faults_of_tar, tar_path, tar_unit
from sum_factory.shared.shards.encodings.tar_reader import TarReader
from sum_factory.shared.shards.encodings.zarr_layer import (
    ZarrEncoder,
    added_columns,
    faults_of_shards,
    limits_of,
    metadata_files,
    prefixes_of,
    shard_path,
    zarr_unit,
)
from sum_factory.shared.shards.encodings.zarr_reader import ZarrReader
from sum_factory.shared.shards.kinds import kind_of, schema_of, zarr_layout_of
from sum_factory.shared.shards.manifest_checks import Bounds
from sum_factory.shared.shards.reader import DataStore, LayerReader, UnitRows
from sum_factory.shared.store.storage import Storage


class LayerEncoder(Protocol):
    """Collects a unit's blobs in memory, image by image, and makes the bytes of its data files of them."""

    @property
    def columns(self) -> Sequence[tuple[str, pa.DataType]]:
        """What the encoding adds to the columns of the layer's manifests."""

    def add(self, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]) -> None:
        """Add an image, with one blob per mask.

        A mask of which nothing is known has an empty blob. ``meta`` is what is known of the image and its masks.
        Raises ``ShardError``, naming the image, for what the encoding has no room for.
        """

    def finish(self) -> tuple[tuple[bytes, ...], list[dict[str, Any]]]:
        """Return the bytes of each of the ``data_files`` of the unit, and what the manifest says of each blob's extent.

        Equal blobs give equal bytes with the same versions of the encoding's ``libraries``.
        """


def data_files(dataset: Dataset, layer: Layer, number: int) -> tuple[str, ...]:
    """Return the paths of a unit's data inside the shard set. Raises ``ShardError`` for an unknown encoding."""
    if layer.encoding == ZARR:
        return tuple(shard_path(layer.name, array, number) for array in zarr_layout_of(dataset, layer).arrays)
    _require_known(layer)
    return (tar_path(layer.name, number),)


def columns_of(dataset: Dataset, layer: Layer) -> pa.Schema:
    """Return all columns of a layer's manifests: those of its kind, and those that its encoding adds."""
    added = added_columns(zarr_layout_of(dataset, layer)) if layer.encoding == ZARR else ()
    return pa.schema([*schema_of(layer.name), *(pa.field(*column) for column in added)])


def bounds_of(dataset: Dataset, layer: Layer, images: int, sizes: Sequence[int]) -> Bounds:
    """Return what the manifest of a unit of a layer may hold; ``sizes`` are those of its data files in bytes."""
    columns = columns_of(dataset, layer)
    if layer.encoding != ZARR:
        return Bounds(columns, images, [("", size) for size in sizes])
    layout = zarr_layout_of(dataset, layer)
    files, of_data = list(zip(prefixes_of(layout), sizes, strict=True)), [name for name, _ in layout.columns]
    return Bounds(columns, images, files, limits_of(layout), kind_of(layer.name).known_column, of_data)


def unit_of(name: str) -> tuple[str, int] | None:
    """Return the layer and the unit that a file of this name holds data of, in any encoding; None for other names."""
    return tar_unit(name) or zarr_unit(name)


def layer_of(folder: str) -> str:
    """Return the layer whose data files, in any encoding, or whose shared files lie in a folder of this name."""
    return folder.partition(".zarr")[0] if folder.endswith(".zarr") or ".zarr/" in folder else folder


def shared_files(dataset: Dataset, layer: Layer) -> dict[str, bytes]:
    """Return the path and the content of the files of a layer that belong to no unit."""
    return metadata_files(dataset, layer) if layer.encoding == ZARR else {}


def write_shared_files(storage: Storage) -> Dataset:
    """Write anew the files of layers that belong to no unit, as ``dataset.json`` says; return the dataset.

    These files tell how many units there are, so whoever changes ``dataset.json`` calls this. On a disk, a lock covers
    reading and writing, so an older unit count cannot overwrite a newer one. Raises ``ShardError`` if ``dataset.json``
    is missing.
    """
    with storage.locked():
        dataset = require_dataset(storage)
        for layer in dataset.layers.values():
            for name, content in shared_files(dataset, layer).items():
                if not storage.create(name, content) and not is_sound(content, storage.read(name)):
                    storage.write(name, content)
        return dataset


def is_sound(content: bytes, found: bytes) -> bool:
    """Whether a file of a layer that belongs to no unit says what its ``content`` should, written by whatever version.

    Such files are those of Zarr alone.
    """
    from sum_factory.shared.shards.encodings.zarr_shards import describes_the_same

    return found == content or describes_the_same(found, content)


@cache
def libraries(encoding: str) -> Mapping[str, str]:
    """Return the version of each library that decides the bytes of an encoding, besides its content."""
    names = ("zarr", "numcodecs") if encoding == ZARR else ("webdataset",)
    return {**{name: version(name) for name in names}, "zlib": zlib.ZLIB_RUNTIME_VERSION}


def new_encoder(dataset: Dataset, layer: Layer) -> LayerEncoder:
    """Return what makes the data of one unit. Raises ``ShardError`` for an unknown encoding."""
    if layer.encoding == ZARR:
        return ZarrEncoder(dataset, layer)
    _require_known(layer)
    return TarEncoder(layer.name)


def open_reader(storage: DataStore, dataset: Dataset, layer: Layer, rows: Callable[[int], UnitRows]) -> LayerReader:
    """Return what reads a layer; ``rows`` gives the masks of a unit. Raises ``ShardError`` for an unknown encoding."""
    if layer.encoding == ZARR:
        return ZarrReader(storage, layer, zarr_layout_of(dataset, layer), rows)
    _require_known(layer)
    return TarReader(storage, layer, rows)


def faults_of_files(
    dataset: Dataset, layer: Layer, files: Mapping[str, bytes], rows: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Yield the name of a data file, and in what it differs from the extents in the manifest, whose ``rows`` these are.

    ``files`` are the unit's, in the order of ``data_files``. Raises ``ShardError``.
    """
    names = list(files)
    if layer.encoding == ZARR:
        faults = faults_of_shards(dataset, layer, list(files.values()), rows)
        yield from ((names[number], fault) for number, fault in faults)
    else:
        yield from ((names[0], fault) for fault in faults_of_tar(layer.name, files[names[0]], rows, names[0]))


def _require_known(layer: Layer) -> None:
    if layer.encoding not in ENCODINGS:
        raise ShardError(
            f"layer {layer.name} has encoding {layer.encoding!r}, and this software knows {' and '.join(ENCODINGS)}"
        )
