"""``labelgen convert``: bring a shard set, in the other encoding, into a new folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version

import click

from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.progress import track
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.shards.dataset import (
    DATASET,
    UNITS,
    Dataset,
    Layer,
    add_layer,
    add_units,
    read_dataset,
    unit_name,
    unit_path,
)
from sum_factory.shared.shards.encoding import libraries, write_shared_files
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_images import add_unit_image, read_unit_images
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage

REMEDY = "Give the folder that this shard set was converted into before, or a new one."


@dataclass(frozen=True)
class ConversionSummary:
    """What a conversion did; a unit counts once for each of its layers.

    ``problems`` say which units were not brought over, and why.
    """

    units: int
    units_before: int
    units_done: int
    problems: tuple[str, ...]

    def lines(self) -> str:
        """Return the summary for people."""
        if not self.units_done and not self.problems:
            return f"{self.units_before} of {self.units} units of all layers present, nothing to do"
        before = f" ({self.units_before} were there before)" if self.units_before else ""
        return (
            f"{self.units_done} of {self.units} units of all layers brought over{before}, {len(self.problems)} problems"
        )


def convert(url: str, out: str, encoding: str, say: Callable[[str], None] = click.echo) -> ConversionSummary:
    """Bring the shard set at ``url`` to ``out``, in ``encoding``; safe to repeat.

    ``url`` is not touched. A unit that is damaged is left out and named, and the others go on. Raises
    ``ShardError`` if there is no such shard set, or nothing to be done; ``SettingsDifferError`` if ``out`` holds
    another one.
    """
    old = ShardSet.open(url)
    if all(layer.encoding == encoding for layer in old.dataset.layers.values()):
        raise ShardError(f"{url}: is in the encoding {encoding} already")
    shards = _prepare(old, Storage(out), encoding)
    layers = (MASKS, *sorted(name for name in old.dataset.layers if name != MASKS))
    planned = [(layer, number) for layer in layers for number in old.committed(layer)]
    there = {layer: set(shards.committed(layer)) for layer in layers}
    pending = [(layer, number) for layer, number in planned if number not in there[layer]]
    if pending and len(pending) < len(planned):
        say(f"{len(planned) - len(pending)} of {len(planned)} units of all layers present, bringing the rest over")
    problems = _write_plans(old, shards)
    failed = set[tuple[str, int]]()
    for layer, number in track(pending, "converting", "unit"):
        try:
            _bring_over(old, shards, number, layer)
        except ShardError as error:
            failed.add((layer, number))
            if not (kind_of(layer).of_masks and (MASKS, number) in failed):  # which were named
                problems.append(str(error))
    before, done = len(planned) - len(pending), len(pending) - len(failed)
    distinct = tuple(dict.fromkeys(problems))  # a plan that is lost stops every layer of its unit
    return ConversionSummary(len(planned), before, done, distinct)


def _prepare(old: ShardSet, storage: Storage, encoding: str) -> ShardSet:
    """Return the new shard set, made if it is not there: the same units and layers, with what ids they have there."""
    layers = _new_layers(old, encoding)
    dataset = read_dataset(storage)
    if dataset is None:
        storage.create(DATASET, replace(old.dataset, layers={MASKS: layers[MASKS]}).to_json())
        dataset = read_dataset(storage)
    assert dataset is not None, "it was there, or has just been written"
    _require_same_units(storage, dataset, old.dataset)
    known = len(dataset.unit_ids)
    if added := old.dataset.unit_ids[known:]:  # since the last conversion
        add_units(storage, known, [(id, old.dataset.size_of(known + k)) for k, id in enumerate(added)])
    for layer in layers.values():
        add_layer(storage, layer, REMEDY)
    return ShardSet(storage, write_shared_files(storage))


def _write_plans(old: ShardSet, shards: ShardSet) -> list[str]:
    """Write the plans of all units that are not there, also of those that no layer has; return what is wrong."""
    there, problems = set(shards.storage.names(UNITS)), []
    for number in track(range(old.unit_count), "writing plans", "unit"):
        if f"{unit_name(number)}.json" not in there:
            try:
                shards.storage.write(unit_path(number), old.unit(number).to_json())
            except ShardError as error:
                problems.append(str(error))
    return problems


def _new_layers(old: ShardSet, encoding: str) -> dict[str, Layer]:
    """Describe the layers of the new shard set, the masks first.

    Where a layer's settings name another layer by its id, as those of maps name the masks, they name the new one.
    """
    made: dict[str, Layer] = {}
    ids: dict[str, str] = {}
    for name in sorted(old.dataset.layers, key=lambda name: (name != MASKS, name)):
        layer = old.dataset.layers[name]
        settings = {
            key: ids.get(value, value) if isinstance(value, str) else value for key, value in layer.settings.items()
        }
        origin = {"url": old.storage.url, "encoding": layer.encoding, "layer_id": old.layer_id(name)}
        told = {"converted_from": origin, "converted_by": f"sum-factory {version('sum-factory')}"}
        kept = {key: value for key, value in layer.provenance.items() if key not in libraries(layer.encoding)}
        provenance = {**kept, **told, **libraries(encoding)}
        made[name] = replace(layer, encoding=encoding, settings=settings, provenance=provenance)
        ids[old.layer_id(name)] = made[name].id
    return made


def _require_same_units(storage: Storage, there: Dataset, wanted: Dataset) -> None:
    """Raise ``SettingsDifferError`` if another shard set is there: its units must be the first of those wanted."""
    require_same("settings", storage.url, {"unit_size": there.unit_size}, {"unit_size": wanted.unit_size}, REMEDY)
    if there.unit_ids != wanted.unit_ids[: len(there.unit_ids)]:
        raise SettingsDifferError(f"{storage.url}: is of other images. {REMEDY}")


def _bring_over(old: ShardSet, shards: ShardSet, number: int, layer: str) -> None:
    """Write a unit of a layer, data first and manifest last."""
    record, masks_sha256 = old.manifest(number, layer)[1], ""
    if record.masks_sha256:
        if record.masks_sha256 != old.manifest(number, MASKS)[1].data_sha256:
            raise ShardError(f"{old.storage.url}: layer {layer}, unit {number}: its data are of other masks")
        masks_sha256 = shards.manifest(number)[1].data_sha256
    writer = UnitWriter(shards.dataset, shards.layer(layer), old.unit(number), old.digests(number))
    for index, image in enumerate(read_unit_images(old, number, layer)):
        add_unit_image(writer, index, image)
    writer.commit(shards.storage, masks_sha256)
