"""The encodings of a layer: where its data lie, what reads them, and what makes them."""

from __future__ import annotations

from collections.abc import Callable

from shared.errors import ShardError
from shared.shards.dataset import Dataset, Layer
from shared.shards.reader import LayerReader, Rows
from shared.shards.tar_layer import tar_path
from shared.shards.tar_reader import TarReader
from shared.storage import Storage

TAR = "tar"
ENCODINGS = (TAR,)


def data_files(layer: Layer, number: int) -> tuple[str, ...]:
    """Return the paths of a unit's data inside the shard set."""
    return (tar_path(layer.name, number),)


def open_reader(storage: Storage, dataset: Dataset, layer: Layer, rows: Callable[[int], Rows]) -> LayerReader:
    """Return what reads a layer; ``rows`` gives the masks of a unit. Raises ``ShardError`` for an unknown encoding."""
    if layer.encoding == TAR:
        return TarReader(storage, layer, rows)
    raise ShardError(
        f"{storage.url}: layer {layer.name} has encoding {layer.encoding!r}, this software reads {', '.join(ENCODINGS)}"
    )
