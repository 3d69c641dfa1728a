"""What runs that died have left in a shard set: temporary files, and data that were never committed."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime

from sum_factory.shared.progress import Stage
from sum_factory.shared.shards.dataset import UNCERTAINTY
from sum_factory.shared.shards.encoding import layer_of, unit_of
from sum_factory.shared.shards.kinds import kinds
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.selection.plan import ROWS
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import TEMPORARY_PREFIX, Storage


@dataclass(frozen=True)
class LeftOver:
    """A file that belongs to nothing that is committed. ``manifest`` is the one that would commit it; a temporary file
    has none."""

    name: str
    size: int
    modified: datetime
    manifest: str | None

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return "temporary file" if self.manifest is None else "data without a manifest"


def left_overs(shards: ShardSet) -> Iterator[LeftOver]:
    """Yield the left-over files of a shard set, of any age, by name.

    Only names that the shard set gives out itself count: temporary files in its own folders, and data files of layers,
    also of those that ``dataset.json`` does not list.
    """
    with Stage("listing files"):
        files = shards.storage.files()
    layers = {*(name for name, kind in kinds().items() if not kind.is_family), *shards.dataset.layers}
    for name, size in files.items():
        manifest = _missing_manifest(name, layers, files)
        if manifest is None and not _is_temporary(name, layers):
            continue
        try:
            yield LeftOver(name, size, shards.storage.modified(name), manifest)
        except FileNotFoundError:  # a run has renamed it meanwhile
            continue


def temporaries(shards: ShardSet) -> Iterator[LeftOver]:
    """Yield the temporary files among the left-over ones."""
    return (left for left in left_overs(shards) if left.manifest is None)


def remove(storage: Storage, left: LeftOver) -> bool:
    """Delete a left-over file, unless a run has written it anew or committed it since; return whether it is gone."""
    try:
        if storage.modified(left.name) != left.modified:
            return False
        if left.manifest is not None and storage.exists(left.manifest):
            return False
        storage.delete(left.name)
    except FileNotFoundError:
        pass
    return True


def _is_temporary(name: str, layers: Collection[str]) -> bool:
    folder, _, file = name.rpartition("/")
    own = folder in ("", "units", ROWS) or _is_layer(layer_of(folder.removeprefix("manifest/")), layers)
    return own and file.startswith(TEMPORARY_PREFIX)


def _missing_manifest(name: str, layers: Collection[str], files: Collection[str]) -> str | None:
    """Return the manifest that would commit a data file, if the file is one and the manifest is not there."""
    of_unit = unit_of(name)
    if of_unit is None or not _is_layer(of_unit[0], layers):
        return None
    manifest = manifest_path(*of_unit)
    return manifest if manifest not in files else None


def _is_layer(folder: str, layers: Collection[str]) -> bool:
    return folder in layers or re.fullmatch(rf"{UNCERTAINTY}/[^/]+", folder) is not None
