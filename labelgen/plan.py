"""Plan a run: cut the listed photos into units, or find which of them a shard set has already. No photo is read.

A listing that ends soon is planned whole before anything is written, and before anything is labelled. One that takes
longer is planned while it goes on: a unit can be labelled as soon as its plan is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain, count, islice
from typing import Never

from sum_factory.labelgen.comparison import Comparison, ListPhotos, Spool, batches, with_key
from sum_factory.labelgen.growing_plan import Plan
from sum_factory.labelgen.keys import Keys
from sum_factory.labelgen.planned_photos import PlannedPhotos
from sum_factory.shared.errors import SettingsDifferError, SettingsError, ShardError
from sum_factory.shared.exactness import Exactness, require_level
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.progress import track
from sum_factory.shared.settings_differ import require_same
from sum_factory.shared.shards.dataset import (
    DATASET,
    Dataset,
    Layer,
    Unit,
    add_units,
    read_dataset,
    read_unit,
    require_same_layer,
    unit_path,
)
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage

UNITS_HELD, SECONDS_HELD = 256, 10.0
"""A listing of fewer units, that takes no longer, is planned whole before anything is written."""
ATTEMPTS = 10
"""How often a plan is begun anew because another run has written one meanwhile."""
GIVE_THE_SAME = "Give the same --images, or another --shards folder."
GIVE_EXTEND = "Give --extend to label the new ones too, the same --images, or another --shards folder."

UnitIdAndSize = tuple[str, int]
"""What ``dataset.json`` says of a unit: its id and its size."""


class _OvertakenError(Exception):
    """Another run has planned another unit in the place of this one."""


def prepare(
    storage: Storage,
    list_photos: ListPhotos,
    layers: Sequence[tuple[Layer, str]],
    unit_size: int,
    extend: bool = False,
    exactness: Exactness | None = None,
) -> Plan:
    """Return the plan of a run over the photos that are listed, of which no byte is read.

    ``layers`` are those that the run makes, the masks first, each with what to do if it is there with other settings. A
    shard set that is new gets a plan. One that is there must have been made with the same unit size, and these layers
    with the same settings and weights, or ``SettingsDifferError`` names what differs. The photos of its plan are found
    in the listing by place, or by key where they have moved. Those that are gone are told of; one of another size is
    refused by name, and so are photos that are new, unless ``extend`` is set: then they are added, as units of their
    own. Where the first listing was never finished, it is now.

    ``exactness``, if given, is that of the masks: another one is refused with the option that goes on.
    """
    for _ in range(ATTEMPTS):
        dataset = read_dataset(storage) or _recovered(storage, layers[0][0], unit_size)
        if dataset is not None:
            _require_alike(storage, dataset, layers, unit_size, exactness)
            with suppress(_OvertakenError):
                return _Replanning(storage, dataset, extend).plan(list_photos)
        elif extend:
            raise SettingsError(
                f"{storage.url}: no shard set to extend is there; check --shards, or leave --extend out"
            )
        elif (plan := _begin(storage, list_photos, layers[0][0], unit_size)) is not None:
            return plan
    raise SettingsDifferError(
        f"{storage.url}: other runs are planning other images into it all the time; give one command after the other"
    )


def _require_alike(
    storage: Storage,
    dataset: Dataset,
    layers: Sequence[tuple[Layer, str]],
    unit_size: int,
    exactness: Exactness | None,
) -> None:
    for layer, remedy in layers:
        existing = dataset.layers.get(layer.name)
        if existing is not None:
            if exactness is not None and layer is layers[0][0]:
                require_level(f"{storage.url}, layer {layer.name}", existing.settings, exactness)
            require_same_layer(storage.url, existing, layer, remedy)
    require_same("settings", storage.url, {"unit_size": dataset.unit_size}, {"unit_size": unit_size})


def _recovered(storage: Storage, layer: Layer, unit_size: int) -> Dataset | None:
    """Return what a lost ``dataset.json`` said, as the plans of the units tell it; None if there are no plans.

    Raises ``ShardError`` if plans are missing too.
    """
    empty = Dataset(unit_size, (), 0, {layer.name: layer})
    planned = PlannedPhotos(ShardSet(storage, empty))
    if not planned.numbers:
        return None
    if (written := read_dataset(storage)) is not None:
        return written  # by another run that has begun since: a run writes this file before any plan
    if planned.missing:
        name = storage.path(unit_path(planned.missing[0]))
        raise ShardError(f"{storage.path(DATASET)}: missing, and so is {name}; restore one of them")
    sizes = [planned.size_of(number) for number in planned.numbers]
    if max(sizes) != unit_size and len(sizes) > 1:
        require_same("settings", storage.url, {"unit_size": max(sizes)}, {"unit_size": unit_size})
    return empty.with_units([(planned.ids[number], size) for number, size in zip(planned.numbers, sizes, strict=True)])


def cut(listed: Iterable[Sequence[PhotoFile]], unit_size: int, numbers: Iterable[int]) -> Iterator[Unit | None]:
    """Cut lists of photos into units with these numbers.

    The last unit takes the remainder. Yields None after each input list, so the caller can pause.
    """
    left: list[PhotoFile] = []
    following = iter(numbers)
    for photos in listed:
        left += photos
        whole = len(left) - len(left) % unit_size
        for start in range(0, whole, unit_size):
            yield Unit(next(following), tuple(left[start : start + unit_size]))
        del left[:whole]
        yield None
    if left:
        yield Unit(next(following), tuple(left))


def _begin(storage: Storage, list_photos: ListPhotos, layer: Layer, unit_size: int) -> Plan | None:
    """Plan a new shard set; return None if another run was first, whose plan counts.

    ``dataset.json`` is written first and once. If the listing is at its end by then, it names all units, and plans that
    a run did not live to write are made again.
    """
    plan, keys = Plan(storage), Keys()
    with_keys = (with_key(photo, keys.take(photo.key)) for photo in plan.counted(list_photos(keys.reserve)))
    units = cut(batches(with_keys), unit_size, count())
    held, is_whole = _hold(plan, units)
    named_units = [_id_and_size(unit) for unit in held] if is_whole else []
    dataset = Dataset(unit_size, (), 0, {layer.name: layer}).with_units(named_units)
    if not storage.create(DATASET, dataset.to_json()):
        return None
    if is_whole:
        for unit in track(held, "writing plans", "unit"):
            storage.write(unit_path(unit.number), unit.to_json())
            plan.add_listed(unit, unit.recorded())
        plan.is_whole = True
    else:
        plan.take(_write_all(plan, chain(held, units), {}), seconds=0)
    return plan


def _id_and_size(unit: Unit) -> UnitIdAndSize:
    return unit.id, len(unit.images)


def _hold(plan: Plan, units: Iterator[Unit | None]) -> tuple[list[Unit], bool]:
    """Return the units of a listing that ends soon, or its first ones, and whether these are all."""
    held: list[Unit] = []
    until = time.monotonic() + SECONDS_HELD
    with plan.listing_stage() as stage:
        for unit in units:
            if unit is None:
                stage.reach(plan.listed)
            else:
                held.append(unit)
            if len(held) >= UNITS_HELD or (held and time.monotonic() > until):
                return held, False
        stage.reach(plan.listed)
    return held, True


def _write_all(plan: Plan, units: Iterator[Unit | None], named_units: dict[int, UnitIdAndSize]) -> Iterator[None]:
    """Write the plans of a first listing as they come; at last have ``dataset.json`` name all of them.

    ``named_units`` are those that are there, by number.
    """
    for unit in units:
        if unit is not None:
            try:
                _append(plan, unit)
            except _OvertakenError:
                raise SettingsDifferError(
                    f"{plan.storage.url}: another run is planning other images into it. {GIVE_THE_SAME}"
                ) from None
            named_units[unit.number] = _id_and_size(unit)
        yield
    _name_units(plan, 0, named_units)


def _append(plan: Plan, unit: Unit) -> None:
    """Write the plan of a unit unless it is there. Raises ``_OvertakenError`` if that of another unit is."""
    there = unit.recorded()
    if not plan.storage.create(unit_path(unit.number), unit.to_json()):
        there = read_unit(plan.storage, unit.number)
        if there.id != unit.id:
            raise _OvertakenError
    plan.add_listed(unit, there)


def _name_units(plan: Plan, first: int, named_units: dict[int, UnitIdAndSize]) -> None:
    """Have ``dataset.json`` name all units from number ``first`` on, and write anew the files that follow from it."""
    add_units(plan.storage, first, [named_units[number] for number in range(first, len(plan.sizes))])
    write_shared_files(plan.storage)
    plan.is_whole = True


class _Replanning:
    """Compares a listing with the plan of a shard set that is there, and adds to that plan."""

    def __init__(self, storage: Storage, dataset: Dataset, extend: bool) -> None:
        self.storage, self.dataset, self.extend = storage, dataset, extend
        self.shards = ShardSet(storage, dataset)
        self.planned = PlannedPhotos(self.shards)
        self.named_units = {number: (id, self.planned.size_of(number)) for number, id in self.planned.ids.items()}
        self.result = Plan(storage)
        self.comparison = Comparison(storage.url, self.planned, extend)

    def plan(self, list_photos: ListPhotos) -> Plan:
        """Return the plan. Raises ``_OvertakenError`` if another extension was written meanwhile."""
        plan = self.result
        new = self.comparison.new(lambda reserve: plan.counted(list_photos(reserve)))
        if not self.dataset.unit_ids and not self.extend:
            plan.sizes |= {number: size for number, (_, size) in self.named_units.items()}
            plan.take(self._finish_first(new), SECONDS_HELD)
            return plan
        with Spool() as spool:
            with plan.listing_stage() as stage:
                for photos in new:
                    spool.add(photos)
                    stage.reach(plan.listed)
            self._take_stock()
            replanned = self._plan_missing(spool)
            self._require_same(spool, replanned)
            self.storage.create(DATASET, self.dataset.to_json())  # if it was lost
            for unit in replanned:
                self.storage.write(unit_path(unit.number), unit.to_json())
                self.named_units[unit.number] = _id_and_size(unit)
            for number in sorted(self.named_units):
                self._add(number)
            left = islice(spool, sum(size for _, size in map(_id_and_size, replanned)), None)
            for added in cut(batches(left), self.dataset.unit_size, self._free_numbers()):
                if added is not None:
                    _append(plan, added)
                    self.named_units[added.number] = _id_and_size(added)
        if len(plan.sizes) > len(self.dataset.unit_ids):
            _name_units(plan, len(self.dataset.unit_ids), self.named_units)
        plan.is_whole = True
        return plan

    def _finish_first(self, new: Iterator[list[PhotoFile]]) -> Iterator[None]:
        """Go on with a first listing that was not finished: a unit can be labelled once all its photos are found."""
        units = cut(self._of_same_images(new), self.dataset.unit_size, self._free_numbers())
        waiting = set(self.named_units)

        def found(number: int) -> None:
            waiting.discard(number)
            self._add(number)

        self.comparison.on_whole = found
        yield from _write_all(self.result, chain(units, self._rest(waiting)), self.named_units)

    def _of_same_images(self, new: Iterator[list[PhotoFile]]) -> Iterator[list[PhotoFile]]:
        """Pass new photos on. Raises ``SettingsDifferError`` if any come before a planned one: it is another folder.

        "Before" is by batches: within one, new photos may be first.
        """
        for photos in new:
            if photos and self.named_units and not self.planned.seen.any():
                self._take_stock()
                self._refuse_other_images(len(photos), photos[0].key)
            yield photos

    def _rest(self, waiting: set[int]) -> Iterator[Unit | None]:
        """At the end of the listing, have those units labelled, too, of which photos were not found: moved or gone."""
        self._take_stock()
        for number in sorted(waiting):
            self._add(number)
            yield None

    def _free_numbers(self) -> Iterator[int]:
        """Yield the numbers of units that are to be planned: first those of lost plans, then the next ones."""
        gaps = [number for number in self.planned.missing if number >= len(self.dataset.unit_ids)]
        return chain(gaps, count(self.shards.unit_count))

    def _add(self, number: int) -> None:
        if (moved := self.comparison.moved(number)) is not None:
            self.result.moved[number] = moved
        self.result.add(number, self.named_units[number][1])

    def _take_stock(self) -> None:
        """Note what the listing said of planned photos, now that it is at its end."""
        plan, compared = self.result, self.comparison
        plan.gone = list(self.planned.gone())
        plan.restamped, plan.first_restamped = compared.restamped, compared.first_restamped

    def _plan_missing(self, new: Spool) -> list[Unit]:
        """Plan again the units whose plans are missing; each must be the one that ``dataset.json`` names."""
        replanned = []
        photos = iter(new)
        for number in (number for number in self.planned.missing if number < len(self.dataset.unit_ids)):
            unit = Unit(number, tuple(islice(photos, self.dataset.size_of(number))))
            if unit.id != self.dataset.unit_ids[number]:
                raise SettingsDifferError(
                    f"{self.storage.path(unit_path(number))}: missing, and {self.storage.url} was made of other "
                    f"images, or they changed since. Restore it, or: {GIVE_THE_SAME}"
                )
            replanned.append(unit)
        return replanned

    def _require_same(self, new: Spool, replanned: Sequence[Unit]) -> None:
        """Raise ``SettingsDifferError`` if there are new photos that nobody asked for, or another order."""
        if self.extend:
            return
        expected = sum(len(unit.images) for unit in replanned)
        if new.length > expected:
            self._refuse_other_images(new.length - expected, next(islice(new, expected, None)).key)
        if not self.dataset.extended and self.shards.is_planned and not self.planned.is_in_order:
            raise SettingsDifferError(
                f"{self.storage.url}: was made of other images: the same images come in another order. {GIVE_THE_SAME}"
            )

    def _refuse_other_images(self, new: int, first_new: str) -> Never:
        gone = self.result.gone
        reasons = [f"{len(gone)} planned images are gone, the first is {gone[0]!r}"] if gone else []
        reasons.append(f"{new} images are new, the first is {first_new!r}")
        raise SettingsDifferError(f"{self.storage.url}: was made of other images: {'; '.join(reasons)}. {GIVE_EXTEND}")
