"""Take back the units that lack photos because of an error, so that a run makes them anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow.compute as pc

from sum_factory.labelgen.sets.repair import Broken, files_of, take_back
from sum_factory.shared.progress import track
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.threads import GeneratorPool

READERS = 8
"""Manifests that are read at once."""
ALL = "all"
"""Every error."""


def take_back_failed(shards: ShardSet, text: str, made: Sequence[str]) -> list[str]:
    """Take back what a run that makes the layers ``made`` can make anew: units with errors that say ``text``, whatever
    their case, or any error if it is "all".

    With its masks all layers of a unit go: masks that are made anew may be others. Files are moved aside as ``repair``
    does, a manifest before its data and masks last. Returns what people should know: how many units there were, and
    which layers the run does not make again. Raises ``ShardError`` for a manifest that is damaged.
    """
    found = [
        (layer, number)
        for number in track(shards.committed(MASKS), "looking for errors", "unit")
        for layer in _to_be_made_anew(shards, text, number, made)
    ]
    if not found:
        return [f"no unit has an error that says {text!r}" if text != ALL else "no unit has an error"]
    folder = take_back(shards.storage, tuple(Broken(*one, (), files_of(shards, *one)) for one in found))
    count = len({number for _, number in found})
    notes = [f"{count} units with errors are made anew; what was there is in {shards.storage.path(folder)}"]
    others = sorted({layer for layer, _ in found} - {*made})
    if others:
        notes.append(f"this run does not make {', '.join(others)} again: give the command that made it")
    return notes


def _to_be_made_anew(shards: ShardSet, text: str, number: int, made: Sequence[str]) -> list[str]:
    """Return the layers of a unit that are to be taken back, in this order."""
    of_masks = _errors_of(shards, MASKS, number)
    if MASKS in made and any(_says(error, text) for error in of_masks):
        layers = [*(layer for layer in shards.dataset.layers if layer != MASKS), MASKS]
        return [layer for layer in layers if _is_there(shards, layer, number)]
    return [
        layer
        for layer in made
        if layer != MASKS and _is_there(shards, layer, number)
        # what lacks masks is in no layer, and for the same reason
        if any(_says(error, text) for error in _errors_of(shards, layer, number) - of_masks)
    ]


def _errors_of(shards: ShardSet, layer: str, number: int) -> set[str]:
    """Return why a layer lacks images of a unit."""
    table, record = shards.manifest(number, layer, ("image_index", "error"))
    return set() if record.errors == 0 else {*pc.drop_null(table["error"]).to_pylist()}


def count_errors(shards: ShardSet, layers: Sequence[str], numbers: Collection[int]) -> int:
    """Return of how many images the units ``numbers`` lack something in one of the ``layers``, from what manifests say
    of their unit as a whole."""

    def errors(number: int) -> int:
        return max(shards.manifest(number, layer, WHICH)[1].errors for layer in layers)

    with GeneratorPool(READERS) as pool:
        return sum(track(pool.map(errors, sorted(numbers)), "reading manifests", "unit", len(numbers)))


def _says(error: str, text: str) -> bool:
    return text == ALL or text.casefold() in error.casefold()


def _is_there(shards: ShardSet, layer: str, number: int) -> bool:
    return shards.storage.exists(manifest_path(layer, number))
