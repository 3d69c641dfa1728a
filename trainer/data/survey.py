"""Look over a shard set before it is trained on: whether all of it is there and whole, and which images have masks.

Of each unit the plan, the manifests and the sizes of the data files are checked, a few units at once, and hardly
anything is kept. The rows of the manifests are read, and the manifests checked again, when a sample needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from sum_factory.shared.errors import ShardError
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import PHOTOS
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path
from sum_factory.shared.shards.photos import require_photos
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.store.canonical_json import content_id

THREADS = 4
"""Units that are checked at once: hashing and reading Parquet release the interpreter's lock, and stores answer
slowly."""


@dataclass(frozen=True)
class SurveyedUnit:
    """A committed unit: the numbers of its images that have masks, int32 (N,), ascending, and what the manifest of each
    layer says of it as a whole."""

    number: int
    images: npt.NDArray[np.int32]
    records: Mapping[str, UnitRecord]

    @property
    def content(self) -> str:
        """Hash of what the manifests say, the SHA-256 of all data included."""
        return content_id([self.number, {layer: asdict(record) for layer, record in self.records.items()}])

    def require_unchanged(self, record: UnitRecord, layer: str, shards: ShardSet) -> None:
        """Raise ``ShardError`` if ``record``, read later from the same manifest, differs from the surveyed one."""
        if record != self.records[layer]:
            raise ShardError(
                f"{shards.storage.path(manifest_path(layer, self.number))}: changed since training began; start again "
                "when nobody writes to the shard set any more"
            )


def survey(shards: ShardSet, layers: Sequence[str]) -> list[SurveyedUnit]:
    """Check the committed units of a shard set in ``layers``, and return them in order; ``masks`` is one of these.

    Raises ``ShardError`` for the first unit of which a plan or a manifest is missing or damaged, data are missing or
    cut short, maps are of other masks, or the layer ``photos`` lacks a photo.
    """
    numbers = shards.committed()
    with ThreadPoolExecutor(THREADS, "survey") as pool:
        units = pool.map(partial(_survey_unit, shards, layers), numbers)
        return list(track(units, f"checking {shards.storage.url}", "unit", len(numbers)))


def _survey_unit(shards: ShardSet, layers: Sequence[str], number: int) -> SurveyedUnit:
    masks = shards.read_rows(number, MASKS, WHICH)
    records = {MASKS: masks.record}
    for layer in layers:
        if layer == PHOTOS:
            records[layer] = require_photos(shards, number, masks)
        elif layer != MASKS:
            rows = shards.read_rows(number, layer, WHICH, masks.record)
            if not np.array_equal(rows.first, masks.first):
                name = shards.storage.path(manifest_path(layer, number))
                raise ShardError(f"{name}: its rows are not those of the masks; run `labelgen verify`")
            records[layer] = rows.record
        shards.require_whole(number, layer, records[layer])
    shards.unit(number)
    return SurveyedUnit(number, np.flatnonzero(np.diff(masks.first)).astype(np.int32), records)
