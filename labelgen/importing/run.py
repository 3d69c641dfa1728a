"""``labelgen import`` from top to bottom: plan the photos, and make units of the masks that files have of them."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import click

from sum_factory.labelgen.engine.serial import in_order
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.growing_plan import NAMES_SHOWN
from sum_factory.labelgen.importing.annotations import Index, open_annotations
from sum_factory.labelgen.importing.convert import ImportedMasks, import_masks_of
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.job import Event, ImageDone, Job, MasksWork, PendingUnits, UnitReport
from sum_factory.labelgen.keys import Reserve
from sum_factory.labelgen.layers import ANNOTATIONS, imported_layer
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.outages import Outages
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.progress import RunSummary
from sum_factory.labelgen.run import work
from sum_factory.labelgen.sam import read_sam, recorded_sam
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.images import digest, open_photo
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile, read_listed
from sum_factory.shared.placement import resized_size
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.settings_differ import REMEDY_FOR_SETTINGS, require_same
from sum_factory.shared.shards.dataset import DATASET, Layer, Unit, read_dataset, require_dataset
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage

REMEDY_FOR_ANNOTATIONS = "Give the annotations that the import began with, or another --shards folder."


@dataclass(frozen=True)
class ImportSummary:
    """What an import did: as ``labelgen run`` tells it, and the photos that have annotations and are not there."""

    run: RunSummary
    missing: tuple[str, ...]


def import_masks(
    settings: ImportSettings, say: Callable[[str], None] = click.echo, stop: Stop | None = None
) -> ImportSummary:
    """Make a shard set of masks that are there already; safe to repeat after any interruption, and to ``stop``.

    Raises ``SumError`` for anything that is not a single photo's own fault; those are recorded, and the import goes on.
    """
    stop, storage, passed_over = stop or Stop(), Storage(settings.shards), PassedOver()
    index = open_annotations(settings.format, settings.annotations)
    sam = read_sam(settings.sam, settings.model_type, TASKS[0], recorded_sam(storage), works_here=False)
    sha256 = index.annotations.sha256
    layer = imported_layer(settings.format, sha256, settings.exactness, sam.identity, settings.encoding)
    if not settings.extend:
        _require_same_annotations(storage, layer)
    listed = partial(_claimed, index, partial(list_photos, settings.images, passed_over=passed_over))
    with prepare(storage, listed, [(layer, REMEDY_FOR_SETTINGS)], settings.unit_size, settings.extend) as plan:
        if settings.extend:
            _record_annotations(storage, layer)
        importer = Importer(settings, index)
        summary = work(settings, _job(settings), plan, importer, say, stop)
        for note in (*plan.notes(), *passed_over.notes(), *importer.notes()):
            say(note)
        missing = tuple(index.unclaimed()) if plan.is_whole else ()
    if missing:
        names = ", ".join(map(printable, missing[:NAMES_SHOWN])) + (", ..." if len(missing) > NAMES_SHOWN else "")
        say(f"{len(missing)} photos that have annotations are not in --images: {names}")
    write_shared_files(storage)
    return ImportSummary(summary, missing)


def _job(settings: ImportSettings) -> Job:
    """Return the job of an import: its layer is that of the masks, for which no model is run."""
    runtime = Runtime("cpu", settings.exactness)
    return Job(settings.shards, settings.sam, settings.model_type, runtime, 1, MasksWork(AutomaskSettings()))


def _require_same_annotations(storage: Storage, layer: Layer) -> None:
    """Raise ``SettingsDifferError`` if the masks that are there were imported from others."""
    dataset = read_dataset(storage)
    there = None if dataset is None else dataset.layers.get(MASKS)
    if there is not None and ANNOTATIONS in there.provenance:
        stored, given = ({ANNOTATIONS: _latest(each)} for each in (there, layer))
        require_same("annotations", f"{storage.url}, layer {MASKS}", stored, given, REMEDY_FOR_ANNOTATIONS)


def _latest(layer: Layer) -> Any:
    """Return the digest of the annotations that were imported last: an extension adds one to those before."""
    told = layer.provenance[ANNOTATIONS]
    return told[-1] if isinstance(told, list) and told else told


def _record_annotations(storage: Storage, layer: Layer) -> None:
    """Have ``dataset.json`` tell the annotations of an extension behind those that it tells of."""
    with storage.locked():
        dataset = require_dataset(storage)
        there = dataset.layers[MASKS]
        known = there.provenance.get(ANNOTATIONS, [])
        if (new := _latest(layer)) != known and new not in known:
            told = {**there.provenance, ANNOTATIONS: [*(known if isinstance(known, list) else [known]), new]}
            layers = {**dataset.layers, MASKS: replace(there, provenance=told)}
            storage.write(DATASET, replace(dataset, layers=layers).to_json())


def _claimed(index: Index, list_all: Callable[[Reserve], Iterable[PhotoFile]], reserve: Reserve) -> Iterator[PhotoFile]:
    """Yield the photos of a listing, and have the index note them."""
    index.clear()
    for photo in list_all(reserve):
        index.claim(photo)
        yield photo


class Importer:
    """Makes units of the masks that files have of their photos, in this process."""

    def __init__(self, settings: ImportSettings, index: Index) -> None:
        self.shards = ShardSet.open(settings.shards)
        self.index = index
        self.outages = Outages(settings.wait_for_photos, settings.missing_photos)
        self.counts: Counter[str] = Counter()
        self.cores = settings.threads or usable_cores()

    def run(self, units: PendingUnits, stop: Stop) -> Iterator[Event]:
        """Make ``units``; a stop is heeded between units, and when it is overdue between photos."""
        self.outages.is_stopping = lambda: stop.is_requested
        yield from in_order(self, units, stop)

    def label_unit(self, unit: Unit, refused: Mapping[str, str] | None = None) -> Iterator[Event]:
        """Make the masks of a unit and commit them. Yields the progress of each photo and, last, the report."""
        if self.shards.storage.exists(manifest_path(MASKS, unit.number)):
            yield self._report_of_committed(unit)
            return
        digests: dict[str, str | None] = {}
        writer = UnitWriter(self.shards.dataset, self.shards.layer(MASKS), unit, digests)
        for number, made in enumerate(self._side_by_side(unit, digests)):
            try:
                size, masks = made.result()
            except ImageError as error:
                writer.add_failure(number, str(error))
                yield ImageDone(0, str(error))
                continue
            writer.add_image(number, size, masks.labels, masks.columns, {})
            self.counts.update(crowds=masks.crowds, too_small=masks.too_small, cut=masks.cut)
            yield ImageDone(len(masks.labels))
        record, _ = writer.commit(self.shards.storage)
        yield UnitReport(unit.number, record.images, record.masks, tuple(writer.errors))

    def _side_by_side(
        self, unit: Unit, digests: dict[str, str | None]
    ) -> Iterator[Future[tuple[tuple[int, int], ImportedMasks]]]:
        """Yield what is made of the photos of a unit, in their order: one per core at a time, and as many waiting."""
        with ThreadPoolExecutor(self.cores) as pool:
            made: deque[Future[tuple[tuple[int, int], ImportedMasks]]] = deque()
            try:
                for photo in unit.images:
                    made.append(pool.submit(self._import, photo, unit, digests))
                    if len(made) > 2 * self.cores:
                        yield made.popleft()
                while made:
                    yield made.popleft()
            finally:
                pool.shutdown(cancel_futures=True)

    def _report_of_committed(self, unit: Unit) -> UnitReport:
        table, record = self.shards.manifest(unit.number, MASKS, (*WHICH, "error"))
        errors = dict(zip(table["image_index"].to_pylist(), table["error"].to_pylist(), strict=True))
        return UnitReport(unit.number, record.images, record.masks, tuple(filter(None, errors.values())))

    def _import(
        self, photo: PhotoFile, unit: Unit, digests: dict[str, str | None]
    ) -> tuple[tuple[int, int], ImportedMasks]:
        """Return the size of a photo, height and width, and its masks. Raises ``ImageError`` for what is its fault."""
        try:
            data = self.outages.read(photo, unit.images, partial(read_listed, photo))
        except InputError as error:
            raise ImageError(str(error)) from error
        digests[photo.key] = digest(data)
        opened = open_photo(data, photo.name)
        pixels, _ = opened.decode()  # a photo that is damaged would be of no use later
        height, width = pixels.shape[:2]
        side = self.shards.input_side
        if 0 in resized_size(height, width, side):
            raise ImageError(f"{photo.name}: {width} x {height} is too thin for SAM's square of {side} px; cut it up")
        annotated, scored = self.index.read(photo), self.index.annotations.is_scored
        try:
            masks = import_masks_of(annotated, (height, width), opened.is_turned, side, scored)
        except ImageError as error:
            raise ImageError(f"{photo.name}: {error}") from error
        return (height, width), masks

    def notes(self) -> Iterator[str]:
        """Yield what people should know of masks that were left out or cut in the units that were made here."""
        if self.counts["crowds"]:
            yield f"left out {self.counts['crowds']} crowds"
        if self.counts["too_small"]:
            side = self.shards.input_side
            yield (
                f"left out {self.counts['too_small']} masks that cover no more than half of any cell, of 4 x 4 pixels "
                f"of SAM's input of {side}: a SAM of a larger input has smaller cells (--sam)"
            )
        if self.counts["cut"]:
            yield f"cut {self.counts['cut']} polygons that end beyond their photos"
