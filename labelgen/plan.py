"""Plan a run: cut the images into units, or find that the shard set already holds this very plan."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from typing import Never, TypeVar

from sum_factory.labelgen.sources import ImageRef
from sum_factory.labelgen.threads import GeneratorPool
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.images import digest
from sum_factory.shared.photo_files import read_bytes
from sum_factory.shared.places import absolute
from sum_factory.shared.precision import Resolved
from sum_factory.shared.progress import track
from sum_factory.shared.shards.dataset import (
    DATASET,
    REMEDY_FOR_SETTINGS,
    Dataset,
    Layer,
    PlannedImage,
    Unit,
    read_dataset,
    read_unit,
    require_same,
    require_same_layer,
    unit_name,
    unit_path,
)
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage

HASHING_THREADS = 8


def prepare(
    storage: Storage,
    refs: Sequence[ImageRef],
    layer: Layer,
    unit_size: int,
    on_image: Callable[[], object] = lambda: None,
    precision: Resolved | None = None,
) -> tuple[Dataset, dict[int, Unit]]:
    """Return the dataset, writing it and the plans of its units first if the shard set is new.

    Also returns the plans, by unit number, that differ from those in the shard set because their photos lie elsewhere
    now: of all others nothing is held, so that memory does not grow with the number of units.

    An existing shard set must hold the same images in the same order, the same unit size and, for this layer, the
    same settings and weights; otherwise ``SettingsDifferError`` names what differs. An image whose time stamp or place
    changed is read again: only its content counts. ``on_image`` is called once an image; ``precision``, if given, is
    that of the layer, and says why it is what it is.

    ``dataset.json`` is written first and once: it holds the ids of the units, so of several runs the first one's plan
    counts, and unit files that a run did not live to write are made again.
    """
    dataset = read_dataset(storage)
    if dataset is None:
        dataset = _create(storage, refs, layer, unit_size, on_image)
        return (dataset, {}) if dataset is not None else prepare(storage, refs, layer, unit_size, precision=precision)
    existing = dataset.layers.get(layer.name)
    if existing is not None:
        if precision is not None:
            precision.require_recorded(f"{storage.url}, layer {layer.name}", existing.settings.get("precision"))
        require_same_layer(storage.url, existing, layer, REMEDY_FOR_SETTINGS)
    require_same("settings", storage.url, {"unit_size": dataset.unit_size}, {"unit_size": unit_size})
    planned = {unit_name(number) for number in range(len(dataset.unit_ids))}
    missing = planned - {name.removesuffix(".json") for name in storage.names("units")}
    if missing:
        return dataset, _restore_units(storage, dataset, missing, refs, on_image)
    return dataset, _require_same_images(storage, dataset, refs, on_image)


def _create(
    storage: Storage, refs: Sequence[ImageRef], layer: Layer, unit_size: int, on_image: Callable[[], object]
) -> Dataset | None:
    """Plan a new shard set; return None if another run was first, whose plan counts."""
    with _planned(refs, unit_size, on_image) as (ids, plans):
        dataset = Dataset(unit_size, ids, len(refs), {layer.name: layer})
        if not storage.create(DATASET, dataset.to_json()):
            return None
        for number, plan in enumerate(track(plans, "writing plans", "unit", len(ids))):
            storage.write(unit_path(number), plan)
    return dataset


@contextmanager
def _planned(
    refs: Sequence[ImageRef], unit_size: int, on_image: Callable[[], object]
) -> Iterator[tuple[tuple[str, ...], Iterator[bytes]]]:
    """Read all images and cut them into units; give the ids of the units, and their plans as they are written.

    Which ids there are is known only when all images are read; until then the plans wait on this machine's disk.
    """
    ids: list[str] = []
    lengths: list[int] = []
    images = _hash_all(refs, on_image)
    with tempfile.TemporaryFile() as aside:
        while of_unit := tuple(islice(images, unit_size)):
            unit = Unit(len(ids), of_unit)
            ids.append(unit.id)
            lengths.append(aside.write(unit.to_json()))
        aside.seek(0)
        yield tuple(ids), (aside.read(length) for length in lengths)


def _restore_units(
    storage: Storage, dataset: Dataset, missing: set[str], refs: Sequence[ImageRef], on_image: Callable[[], object]
) -> dict[int, Unit]:
    """Plan again and write the unit files that are missing; the plan must be the one that ``dataset.json`` tells of.

    Returns the plans that differ from the files that are there.
    """
    moved = {}
    with _planned(refs, dataset.unit_size, on_image) as (ids, plans):
        if ids != dataset.unit_ids:
            raise SettingsDifferError(
                f"{storage.url}: was made of other images, or they changed since. "
                "Give the same --images, or another --shards folder."
            )
        for number, plan in enumerate(track(plans, "writing plans", "unit", len(ids))):
            if unit_name(number) in missing:
                storage.write(unit_path(number), plan)
            elif (unit := Unit.from_json(plan, unit_path(number))) != read_unit(storage, number):
                moved[number] = unit
    return moved


def _require_same_images(
    storage: Storage, dataset: Dataset, refs: Sequence[ImageRef], on_image: Callable[[], object]
) -> dict[int, Unit]:
    """Compare the images with the plans, unit by unit; return the plans of those whose images lie elsewhere now."""
    moved = {}
    start = 0
    for unit in _read_units(storage, dataset):
        of_unit = refs[start : start + len(unit.images)]
        if [ref.key for ref in of_unit] != [image.key for image in unit.images]:
            _refuse_other_images(storage, dataset, refs)
        start += len(of_unit)
        images = [replace(image, url=absolute(image.url)) for image in unit.images]  # as not every version wrote it
        elsewhere = [i for i, ref in enumerate(of_unit) if asdict(ref) != _place(images[i])]
        for i, image in zip(elsewhere, _hash_all([of_unit[i] for i in elsewhere], lambda: None), strict=True):
            if image.digest != images[i].digest:
                raise SettingsDifferError(
                    f"{of_unit[i].name}: changed since the shard set at {storage.url} was planned (image "
                    f"{image.key!r}); restore the file, or label into another --shards folder"
                )
            images[i] = image
        if tuple(images) != unit.images:
            moved[unit.number] = replace(unit, images=tuple(images))
        for _ in of_unit:
            on_image()
    if start != len(refs):
        _refuse_other_images(storage, dataset, refs)
    return moved


def _read_units(storage: Storage, dataset: Dataset) -> Iterator[Unit]:
    """Yield the plans of all units. Raises ``ShardError`` if one is damaged or of another shard set."""
    shards = ShardSet(storage, dataset)
    with GeneratorPool(HASHING_THREADS) as pool:
        for numbers in _pieces(range(len(dataset.unit_ids)), 8 * HASHING_THREADS):
            yield from pool.map(shards.unit, numbers)


def _refuse_other_images(storage: Storage, dataset: Dataset, refs: Sequence[ImageRef]) -> Never:
    planned = {image.key for unit in _read_units(storage, dataset) for image in unit.images}
    found = {ref.key for ref in refs}
    gone, new = sorted(planned - found), sorted(found - planned)
    parts = [f"{len(gone)} planned images are gone, the first is {gone[0]!r}"] if gone else []
    parts += [f"{len(new)} images are new, the first is {new[0]!r}"] if new else []
    parts = parts or ["the same images come in another order"]
    raise SettingsDifferError(
        f"{storage.url}: was made of other images: {'; '.join(parts)}. "
        "Give the same --images, or another --shards folder."
    )


def _place(image: PlannedImage) -> dict[str, object]:
    return {name: value for name, value in asdict(image).items() if name != "digest"}


def _hash_all(refs: Sequence[ImageRef], on_image: Callable[[], object]) -> Iterator[PlannedImage]:
    def hash_one(ref: ImageRef) -> PlannedImage:
        return PlannedImage(digest=digest(read_bytes(ref)), **asdict(ref))

    with GeneratorPool(HASHING_THREADS) as pool:
        for piece in _pieces(refs, 64 * HASHING_THREADS):
            for image in pool.map(hash_one, piece):
                on_image()
                yield image


Item = TypeVar("Item")


def _pieces(items: Sequence[Item], length: int) -> Iterator[Sequence[Item]]:
    """Cut a sequence into pieces, so that a pool of threads does not take all of it at once."""
    return (items[start : start + length] for start in range(0, len(items), length))
