"""Take back the units of which photos could not be labelled, so that a run makes them anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow.compute as pc

from sum_factory.labelgen.sets.repair import Broken, files_of, take_back
from sum_factory.labelgen.threads import GeneratorPool
from sum_factory.shared.progress import track
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

READERS = 8
"""Manifests that are read at once."""
ALL = "all"
"""Every kind of error."""


def take_back_failed(shards: ShardSet, kind: str, made: Sequence[str]) -> list[str]:
    """Take back the units with errors of masks that say ``kind``, whatever their case, or any error if it is "all".

    All layers of such a unit go: masks that are made anew may be others. Files are moved aside as ``repair`` does, a
    manifest before its data and masks last. Returns what people should know: how many there were, and which layers a
    run that makes the layers ``made`` does not make again. Raises ``ShardError`` for a manifest that is damaged.
    """
    numbers = [
        number
        for number in track(shards.committed(MASKS), "looking for errors", "unit")
        if any(_says(error, kind) for error in errors_of(shards, number))
    ]
    if not numbers:
        return [f"no unit has an error that says {kind!r}" if kind != ALL else "no unit has an error"]
    layers = [*(layer for layer in shards.dataset.layers if layer != MASKS), MASKS]
    there = [(layer, number) for number in numbers for layer in layers if _is_there(shards, layer, number)]
    broken = tuple(Broken(layer, number, (), files_of(shards, layer, number)) for layer, number in there)
    folder = take_back(shards.storage, broken)
    notes = [f"{len(numbers)} units with errors are made anew; what was there is in {shards.storage.path(folder)}"]
    others = sorted({layer for layer, _ in there} - {*made})
    if others:
        notes.append(f"this run does not make {', '.join(others)} again: give the command that made it")
    return notes


def errors_of(shards: ShardSet, number: int) -> list[str]:
    """Return why photos of a unit have no masks, one text a photo."""
    table, record = shards.manifest(number, MASKS, ("image_index", "error"))
    return [] if record.errors == 0 else pc.drop_null(table["error"]).to_pylist()


def count_errors(shards: ShardSet, layer: str, numbers: Collection[int]) -> int:
    """Return of how many images the units ``numbers`` of a layer hold an error, from the ends of their manifests."""
    with GeneratorPool(READERS) as pool:
        counts = pool.map(lambda number: shards.manifest(number, layer, WHICH)[1].errors, sorted(numbers))
        return sum(track(counts, "reading manifests", "unit", len(numbers)))


def _says(error: str, kind: str) -> bool:
    return kind == ALL or kind.casefold() in error.casefold()


def _is_there(shards: ShardSet, layer: str, number: int) -> bool:
    return shards.storage.exists(manifest_path(layer, number))
