"""Plan a run: cut the images into units, or find that the shard set already holds this very plan."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

from labelgen.sources import ImageRef
from shared.errors import SettingsDifferError, ShardError
from shared.images import digest
from shared.photos import read_bytes
from shared.shards.dataset import (
    DATASET,
    REMEDY_FOR_SETTINGS,
    REMEDY_FOR_UNIT,
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
from shared.storage import Storage

HASHING_THREADS = 8


def prepare(
    storage: Storage,
    refs: Sequence[ImageRef],
    layer: Layer,
    unit_size: int,
    on_image: Callable[[], object] = lambda: None,
) -> tuple[Dataset, list[Unit]]:
    """Return the dataset and its units, writing them first if the shard set is new.

    An existing shard set must hold the same images in the same order, the same unit size and, for this layer, the
    same settings and weights; otherwise ``SettingsDifferError`` names what differs. An image whose time stamp or place
    changed is read again: only its content counts. ``on_image`` is called once an image.

    ``dataset.json`` is written first and once: it holds the ids of the units, so of several runs the first one's plan
    counts, and unit files that a run did not live to write are made again.
    """
    dataset = read_dataset(storage)
    if dataset is None:
        return _create(storage, refs, layer, unit_size, on_image)
    existing = dataset.layers.get(layer.name)
    if existing is not None:
        require_same_layer(storage.url, existing, layer, REMEDY_FOR_SETTINGS)
    require_same("settings", storage.url, {"unit_size": dataset.unit_size}, {"unit_size": unit_size})
    planned = {unit_name(number) for number in range(len(dataset.unit_ids))}
    missing = planned - {name.removesuffix(".json") for name in storage.names("units")}
    if missing:
        return dataset, _restore_units(storage, dataset, missing, refs, on_image)
    units = [read_unit(storage, number) for number in range(len(dataset.unit_ids))]
    for unit, unit_id in zip(units, dataset.unit_ids, strict=True):
        if unit.id != unit_id:
            raise ShardError(f"{storage.path(unit_path(unit.number))}: of another shard set; {REMEDY_FOR_UNIT}")
    return dataset, _require_same_images(storage, units, refs, on_image)


def _create(
    storage: Storage, refs: Sequence[ImageRef], layer: Layer, unit_size: int, on_image: Callable[[], object]
) -> tuple[Dataset, list[Unit]]:
    units = _cut(list(_hash_all(refs, on_image)), unit_size)
    dataset = Dataset(unit_size, tuple(unit.id for unit in units), len(refs), {layer.name: layer})
    if not storage.create(DATASET, dataset.to_json()):  # another run was first: its plan counts
        return prepare(storage, refs, layer, unit_size)
    for unit in units:
        storage.write(unit_path(unit.number), unit.to_json())
    return dataset, units


def _cut(images: Sequence[PlannedImage], unit_size: int) -> list[Unit]:
    starts = range(0, len(images), unit_size)
    return [Unit(number, tuple(images[start : start + unit_size])) for number, start in enumerate(starts)]


def _restore_units(
    storage: Storage, dataset: Dataset, missing: set[str], refs: Sequence[ImageRef], on_image: Callable[[], object]
) -> list[Unit]:
    """Plan again and write the unit files that are missing; the plan must be the one that ``dataset.json`` tells of."""
    units = _cut(list(_hash_all(refs, on_image)), dataset.unit_size)
    if tuple(unit.id for unit in units) != dataset.unit_ids:
        raise SettingsDifferError(
            f"{storage.url}: was made of other images, or they changed since. "
            "Give the same --images, or another --shards folder."
        )
    for unit in units:
        if unit.name in missing:
            storage.write(unit_path(unit.number), unit.to_json())
    return units


def _require_same_images(
    storage: Storage, units: list[Unit], refs: Sequence[ImageRef], on_image: Callable[[], object]
) -> list[Unit]:
    planned = [image for unit in units for image in unit.images]
    _require_same_keys(storage, [image.key for image in planned], [ref.key for ref in refs])
    moved = [i for i, ref in enumerate(refs) if asdict(ref) != _place(planned[i])]
    for i, image in zip(moved, _hash_all([refs[i] for i in moved], lambda: None), strict=True):
        if image.digest != planned[i].digest:
            raise SettingsDifferError(
                f"{refs[i].name}: changed since the shard set at {storage.url} was planned (image {image.key!r}); "
                "restore the file, or label into another --shards folder"
            )
        planned[i] = image
    for _ in refs:
        on_image()
    found = iter(planned)
    return [replace(unit, images=tuple(next(found) for _ in unit.images)) for unit in units]


def _require_same_keys(storage: Storage, planned: list[str], found: list[str]) -> None:
    if planned == found:
        return
    gone, new = sorted(set(planned) - set(found)), sorted(set(found) - set(planned))
    parts = [f"{len(gone)} planned images are gone, the first is {gone[0]!r}"] if gone else []
    parts += [f"{len(new)} images are new, the first is {new[0]!r}"] if new else []
    parts = parts or ["the same images come in another order"]
    raise SettingsDifferError(
        f"{storage.url}: was made of other images: {'; '.join(parts)}. "
        "Give the same --images, or another --shards folder."
    )


def _place(image: PlannedImage) -> dict[str, object]:
    return {name: value for name, value in asdict(image).items() if name != "digest"}


def _hash_all(refs: Sequence[ImageRef], on_image: Callable[[], object]) -> Iterable[PlannedImage]:
    def hash_one(ref: ImageRef) -> PlannedImage:
        return PlannedImage(digest=digest(read_bytes(ref)), **asdict(ref))

    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        for image in pool.map(hash_one, refs):
            on_image()
            yield image
