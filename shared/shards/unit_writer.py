"""Write one unit of one layer: collect its images, then commit data and manifest in this order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from sum_factory.shared.shards.dataset import Dataset, Layer, Unit
from sum_factory.shared.shards.encoding import data_files, new_encoder
from sum_factory.shared.shards.kinds import is_unknown, schema_of
from sum_factory.shared.shards.manifest import (
    UnitRecord,
    manifest_path,
    read_record,
    write_manifest,
)
from sum_factory.shared.store.canonical_json import content_id
from sum_factory.shared.store.storage import Storage


@dataclass
class UnitWriter:
    """Collects the images of ``unit`` in their order, in memory, and commits them to a layer of ``dataset``."""

    dataset: Dataset
    layer: Layer
    unit: Unit
    digests: Mapping[str, str | None] = field(default_factory=dict)
    """SHA-256 of each file by key, None if unreadable. Fill it in before ``add_image``."""
    errors: list[str] = field(default_factory=list)
    """Why images have no data, or masks no map; one per image at most."""
    _rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._encoder = new_encoder(self.dataset, self.layer)

    def add_image(
        self,
        index: int,
        size: tuple[int, int],
        blobs: Sequence[bytes],
        columns: Mapping[str, Sequence[Any]],
        meta: Mapping[str, Any],
        error: str | None = None,
    ) -> None:
        """Add image ``index`` of the unit, of ``size`` height, width, with one blob for each mask, crop or photo.

        ``columns`` are the layer's own columns of the manifest, one value per mask each; ``meta`` goes to the sample's
        JSON. ``error`` says why the masks of an image have no maps.
        """
        image, (height, width) = self.unit.images[index], size
        digest = self.digests.get(image.key)
        described = {"digest": digest, "height": height, "width": width, **meta}
        if error is not None:
            described["error"] = error
            self.errors.append(error)
        self._encoder.add(image.key, blobs, described)
        of_image = {"image": image.key, "image_index": index, "height": height, "width": width, "error": error}
        of_image["digest"] = digest  # only the manifests of masks have this column
        own = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        rows = [{**of_image, "mask": k, **(own[k] if columns else {})} for k in range(len(blobs))]
        self._rows += rows or [of_image]

    def add_failure(self, index: int, error: str) -> None:
        """Add image ``index`` of the unit as one that could not be labelled."""
        image = self.unit.images[index]
        digest = self.digests.get(image.key)
        self._encoder.add(image.key, [], {"digest": digest, "error": error})
        self._rows.append({"image": image.key, "image_index": index, "error": error, "digest": digest})
        self.errors.append(error)

    def commit(self, storage: Storage, masks_sha256: str = "") -> tuple[UnitRecord, bool]:
        """Write the data, then the manifest, unless another run has committed the unit.

        Returns the record that is committed then, and whether it is of the data collected here.
        """
        names = data_files(self.dataset, self.layer, self.unit.number)
        contents, extents = self._encoder.finish()
        files = dict(zip(names, contents, strict=True))
        for row, extent in zip((row for row in self._rows if "mask" in row), extents, strict=True):
            row |= extent
        record = UnitRecord(
            unit=self.unit.number,
            unit_id=self.unit.id,
            layer_id=self.layer.id,
            images=len(self.unit.images),
            masks=sum("mask" in row for row in self._rows),
            errors=len(self.errors),
            data_bytes=sum(map(len, files.values())),
            data_sha256=sha256_of(files.values()),
            masks_sha256=masks_sha256,
            unknown=sum(map(is_unknown, self._rows)),
            photos_id=content_id([self.digests.get(image.key) for image in self.unit.images]),
            files=tuple((len(data), sha256_of([data])) for data in files.values()) if len(files) > 1 else (),
        )
        schema = pa.schema([*schema_of(self.layer.name), *(pa.field(*column) for column in self._encoder.columns)])
        manifest = write_manifest(pa.Table.from_pylist(self._rows, schema=schema), record)
        committed = self._committed(storage)
        if committed is None or committed.masks_sha256 != masks_sha256:  # maps of masks that are gone are replaced
            for name, data in files.items():
                storage.write(name, data)
            if committed is not None:
                storage.write(manifest_path(self.layer.name, record.unit), manifest)
            elif not storage.create(manifest_path(self.layer.name, record.unit), manifest):
                self._make_agree(storage, record, files, manifest)
            committed = self._committed(storage)
        assert committed is not None, "a manifest was there, or has just been written"
        return committed, committed.data_sha256 == record.data_sha256

    def _committed(self, storage: Storage) -> UnitRecord | None:
        """Return the record of the unit if it is committed."""
        name = manifest_path(self.layer.name, self.unit.number)
        try:
            return read_record(storage.read(name), storage.path(name))
        except FileNotFoundError:
            return None

    def _make_agree(self, storage: Storage, record: UnitRecord, files: Mapping[str, bytes], manifest: bytes) -> None:
        """Make data and manifest agree after another run committed the unit while this one wrote its data.

        Both write equal bytes as a rule; two kinds of GPU, or an image that only one could read, make them differ. The
        other run's data stay if they match its manifest; if files of both runs are mixed, ours replace everything.
        """
        name = manifest_path(self.layer.name, record.unit)
        theirs = read_record(storage.read(name), storage.path(name))
        if sha256_of(map(storage.read, files)) == theirs.data_sha256:
            return
        for file, data in files.items():
            storage.write(file, data)
        storage.write(name, manifest)


def sha256_of(files: Iterable[bytes]) -> str:
    """Return the SHA-256 of a unit's data files, one after the other, in hexadecimal."""
    hasher = hashlib.sha256()
    for data in files:
        hasher.update(data)
    return hasher.hexdigest()
