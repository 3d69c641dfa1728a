"""What ``labelgen status`` tells of a shard set: from its manifests alone, so also while others make it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from sum_factory.labelgen.gpu_record import gpus_line
from sum_factory.labelgen.sets.pace import pace_of
from sum_factory.shared.names import printable
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import MASKS
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.manifest import UnitRecord
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.selection.opened import Selection
from sum_factory.shared.shards.shard_set import ShardSet


def status_of(shards: ShardSet, name: str) -> Iterator[str]:
    """Yield lines for people on the shard set, called ``name``, layer by layer, and on the images that were skipped.

    Manifests are read one at a time. Raises ``ShardError`` if one is damaged.
    """
    yield f"{name}: {shards.image_count} images in {shards.unit_count} units"
    if not shards.is_planned:
        yield "the plan is not finished: a run is listing photos, or was stopped when it did; the same command goes on"
    if isinstance(shards, Selection):
        yield f"a selection of {', '.join(base.storage.url for base in shards.bases)}"
    skipped: list[str] = []
    for layer in shards.dataset.layers:
        yield from _status_of_layer(shards, layer, skipped)
    if (gpus := gpus_line(shards.storage)) is not None:
        yield gpus
    yield from skipped


def _status_of_layer(shards: ShardSet, layer: str, skipped: list[str]) -> Iterator[str]:
    """Yield the lines on a layer, and add those on images that could not be labelled to ``skipped``."""
    done, kind = shards.committed(layer), kind_of(layer)
    has_maps = "mean_u" in dict(kind.columns)
    columns = (*WHICH, "image", "error", *(["mean_u"] if has_maps else []))
    totals: Counter[str] = Counter()
    known, sum_of_means = 0, 0.0
    faults: dict[str, str] = {}
    for number in track(done, f"reading manifests of {layer}", "unit"):
        table, record = shards.manifest(number, layer, columns)
        totals.update(_counts(record))
        faults |= _faults(table, layer)
        if has_maps:
            means = table["mean_u"].drop_null()
            known, sum_of_means = known + len(means), sum_of_means + (pc.sum(means).as_py() or 0.0)
    line = (
        f"layer {layer} ({shards.layer(layer).encoding}): {len(done)} of {shards.unit_count} units, "
        f"{totals['images']} images, {totals['masks']} {kind.counted}, {totals['errors']} errors, "
        f"{totals['bytes'] / 1e6:.1f} MB"
    )
    if has_maps:
        line += f", mean u {sum_of_means / known:.4f}" if known else ", no maps"
    if kind.known_column:
        line += f", {totals['unknown']} masks unknown"
    yield line
    if (pace := pace_of(shards, layer)) is not None:
        yield f"layer {layer}: {pace.line()}"
    if layer == MASKS:
        skipped += [f"skipped {image}: {error}" for image, error in faults.items()]
        return
    for image, error in faults.items():
        yield f"no {kind.lacking or layer} of {image}: {error}"


def _counts(record: UnitRecord) -> dict[str, int]:
    return {
        "images": record.images,
        "masks": record.masks,
        "errors": record.errors,
        "unknown": record.unknown,
        "bytes": record.data_bytes,
    }


def _faults(table: pa.Table, layer: str) -> dict[str, str]:
    """Return why images have nothing in a layer; where it is of masks, only those that have masks."""
    failed = table.filter(pc.is_valid(table["error"]))
    if kind_of(layer).known_column:
        failed = failed.filter(pc.is_valid(failed["mask"]))
    images, errors = (map(printable, failed[column].to_pylist()) for column in ("image", "error"))
    return dict(zip(images, errors, strict=True))
