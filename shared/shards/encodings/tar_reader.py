"""Reads masks of a layer of tars at random, by the extents that the manifests give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sum_factory.shared.codecs.codes import Codes
from sum_factory.shared.codecs.fast import decode_labels, decode_maps, decode_refined
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import Layer
from sum_factory.shared.shards.encodings.tar_layer import tar_path
from sum_factory.shared.shards.kinds.kind import Plane
from sum_factory.shared.shards.reader import DataStore, Picked, UnitRows, read_blobs, require_plane


@dataclass(frozen=True)
class TarReader:
    """A ``LayerReader`` of tars; ``rows`` gives the masks of a unit."""

    storage: DataStore
    layer: Layer
    rows: Callable[[int], UnitRows]

    def read(self, unit: int, picked: Picked, plane: Plane) -> Codes:
        """Read and decode masks: see ``LayerReader``."""
        numbers, name = np.asarray(picked, np.int64), tar_path(self.layer.name, unit)
        require_plane(self.layer, plane, self.rows(unit), numbers, self.storage.path(name))
        blobs = read_blobs(self.storage, name, self.rows(unit), numbers)
        try:
            if plane == "u":
                return decode_maps(blobs)
            return (decode_labels(blobs) if plane == "label" else decode_refined(blobs)).codes()
        except ShardError as error:
            raise ShardError(f"{self.storage.path(name)}: {error}") from error

    def blobs(self, unit: int, picked: Picked) -> list[bytes]:
        """Return the blobs of masks: see ``LayerReader``."""
        return read_blobs(self.storage, tar_path(self.layer.name, unit), self.rows(unit), np.asarray(picked, np.int64))
