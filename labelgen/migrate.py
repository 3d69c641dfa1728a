"""``labelgen migrate``: bring a shard set of an older format version into a new folder, unit by unit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import click
from tqdm import tqdm

from shared.compiled_codec import decode_labels, decode_maps, decode_refined
from shared.errors import SettingsDifferError, ShardError
from shared.shards.dataset import (
    DATASET,
    MASKS_OF_MAPS,
    Dataset,
    Layer,
    add_layer,
    is_uncertainty,
    read_dataset,
    require_same,
    unit_name,
    unit_path,
)
from shared.shards.manifest import schema_of
from shared.shards.shard_set import MASKS, ShardSet
from shared.shards.unit_writer import UnitWriter
from shared.shards.version1 import VERSION, Sample, Version1, label_of_today
from shared.storage import Storage
from shared.uncertainty_codec import LENGTH, cut_frame

REMEDY = "Give the folder that this shard set was migrated to before, or a new one."
OF_EVERY_LAYER = ("image", "image_index", "height", "width", "error", "mask", "offset", "length", "crc32")
"""Columns of a manifest that the writer fills in itself."""
TOLD_BY_WRITER = ("key", "digest", "height", "width", "length", "error")


@dataclass(frozen=True)
class MigrationSummary:
    """What a migration did; a unit counts once for each of its layers.

    ``reframed`` counts labels, also refined ones, that had more steps than fit today. ``problems`` say which units were
    not brought over, and why.
    """

    units: int
    units_before: int
    units_done: int
    reframed: int
    problems: tuple[str, ...]

    def lines(self) -> str:
        """Return the summary for people."""
        if not self.units_done and not self.problems:
            return f"{self.units_before} of {self.units} units of all layers present, nothing to do"
        before = f" ({self.units_before} were there before)" if self.units_before else ""
        return (
            f"{self.units_done} of {self.units} units of all layers brought over{before}, "
            f"{self.reframed} labels framed anew, {len(self.problems)} problems"
        )


def migrate(source: str, out: str, say: Callable[[str], None] = click.echo) -> MigrationSummary:
    """Bring the shard set of version 1 at ``source`` to ``out``; safe to repeat after any interruption.

    ``source`` is not touched. A unit that is damaged is left out and named, and the others go on. Raises
    ``ShardError`` if there is no such shard set, ``SettingsDifferError`` if ``out`` holds another one.
    """
    old = Version1.open(source)
    shards = _prepare(old, Storage(out))
    layers = (MASKS, *sorted(name for name in old.dataset.layers if name != MASKS))
    planned = [(layer, number) for layer in layers for number in old.committed(layer)]
    there = {layer: set(shards.committed(layer)) for layer in layers}
    pending = [(layer, number) for layer, number in planned if number not in there[layer]]
    if pending and len(pending) < len(planned):
        say(f"{len(planned) - len(pending)} of {len(planned)} units of all layers present, bringing the rest over")
    problems = _write_plans(old, shards)
    reframed = failed = 0
    with tqdm(total=len(pending), unit="unit", desc="migrating", disable=None, leave=False) as bar:
        for layer, number in pending:
            try:
                reframed += _bring_over(old, shards, number, layer)
            except ShardError as error:
                problems.append(str(error))
                failed += 1
            bar.update()
    before, done = len(planned) - len(pending), len(pending) - failed
    return MigrationSummary(len(planned), before, done, reframed, tuple(problems))


def _prepare(old: Version1, storage: Storage) -> ShardSet:
    """Return the new shard set, made if it is not there: the same units and layers, with what ids are today."""
    layers = _layers_of_today(old)
    dataset = read_dataset(storage)
    if dataset is None:
        storage.create(DATASET, replace(old.dataset, layers={MASKS: layers[MASKS]}).to_json())
        dataset = read_dataset(storage)
    assert dataset is not None, "it was there, or has just been written"
    _require_same_units(storage, dataset, old.dataset)
    for layer in layers.values():
        dataset = add_layer(storage, layer, REMEDY)
    return ShardSet(storage, dataset)


def _write_plans(old: Version1, shards: ShardSet) -> list[str]:
    """Write the plans of all units that are not there, also of those that no layer has; return what is wrong."""
    there, problems = set(shards.storage.names("units")), []
    for number in range(len(old.dataset.unit_ids)):
        if f"{unit_name(number)}.json" not in there:
            try:
                shards.storage.write(unit_path(number), old.unit(number).to_json())
            except ShardError as error:
                problems.append(str(error))
    return problems


def _layers_of_today(old: Version1) -> dict[str, Layer]:
    """Describe the layers as they are in the new shard set: masks first, whose id those of maps name."""
    made: dict[str, Layer] = {}
    for name in sorted(old.dataset.layers, key=lambda name: name != MASKS):
        layer, settings = old.dataset.layers[name], dict(old.dataset.layers[name].settings)
        if is_uncertainty(name):
            if settings.get(MASKS_OF_MAPS) != old.layer_ids[MASKS]:
                raise ShardError(f"{old.storage.path(DATASET)}: layer {name} is of other masks than are there")
            settings[MASKS_OF_MAPS] = made[MASKS].id(old.dataset.unit_ids)
        origin = {"url": old.storage.url, "format": VERSION, "layer_id": old.layer_ids[name]}
        provenance = {
            **layer.provenance,
            "migrated_from": origin,
            "migrated_by": f"sum-factory {version('sum-factory')}",
        }
        made[name] = replace(layer, settings=settings, provenance=provenance)
    return made


def _require_same_units(storage: Storage, there: Dataset, wanted: Dataset) -> None:
    """Raise ``SettingsDifferError`` if another shard set is there."""
    require_same("settings", storage.url, {"unit_size": there.unit_size}, {"unit_size": wanted.unit_size}, REMEDY)
    if there.unit_ids != wanted.unit_ids:
        raise SettingsDifferError(f"{storage.url}: is of other images. {REMEDY}")


def _bring_over(old: Version1, shards: ShardSet, number: int, layer: str) -> int:
    """Write a unit of a layer, data first and manifest last; return how many labels were framed anew."""
    unit, masks_sha256 = old.unit(number), ""
    if is_uncertainty(layer):
        record = old.record(number, layer)
        if record.masks_sha256 != old.record(number, MASKS).data_sha256:
            raise ShardError(f"{old.storage.url}: layer {layer}, unit {number}: its maps are of other masks")
        masks_sha256 = shards.manifest(number)[1].data_sha256
    writer = UnitWriter(layer, shards.layer_id(layer), unit)
    reframed = 0
    for index, sample in enumerate(old.samples(number, layer)):
        try:
            frames = _frames_of_today(layer, sample.frames)
        except ShardError as error:
            where = f"{old.storage.url}: layer {layer}, unit {number}, image {sample.rows[0]['image']}"
            raise ShardError(f"{where}: {error}") from error
        reframed += sum(new != was for new, was in zip(frames, sample.frames, strict=True))
        _add(writer, index, sample, frames)
    writer.commit(shards.storage, masks_sha256)
    return reframed


def _frames_of_today(layer: str, frames: list[bytes]) -> list[bytes]:
    """Return an image's frames as they are today. Raises ``ShardError`` if one does not decode."""
    if not is_uncertainty(layer):
        labels = [label_of_today(frame) for frame in frames]
        decode_labels(labels)
        return labels
    made: list[bytes] = []
    for frame in frames:
        if not frame:  # nothing is known of this mask
            made.append(frame)
            continue
        part, refined = cut_frame(frame)
        made.append(LENGTH.pack(len(part)) + part + (label_of_today(refined) if refined else b""))
    known = [frame for frame in made if frame]
    decode_maps(known)
    decode_refined([frame for frame in known if cut_frame(frame)[1]])
    return made


def _add(writer: UnitWriter, index: int, sample: Sample, frames: list[bytes]) -> None:
    """Add an image with what its old rows and its old sample say of it."""
    first = sample.rows[0]
    if first["mask"] is None and first["error"] is not None:
        writer.add_failure(index, first["error"])
        return
    own = [name for name in schema_of(writer.layer).names if name not in OF_EVERY_LAYER]
    masks = [row for row in sample.rows if row["mask"] is not None]
    columns: dict[str, list[Any]] = {name: [row[name] for row in masks] for name in own}
    meta = {name: value for name, value in sample.meta.items() if name not in TOLD_BY_WRITER}
    writer.add_image(index, (first["height"], first["width"]), frames, columns, meta, first["error"])
