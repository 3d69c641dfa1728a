"""``labelgen run`` and ``labelgen uncertainty`` from top to bottom: find what a shard set lacks, and make it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Protocol

import click

from sum_factory.labelgen.engine.cluster import Resources
from sum_factory.labelgen.engine.pool import RayExecutor
from sum_factory.labelgen.engine.pulse import Patience
from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.event_log import open_log
from sum_factory.labelgen.job import (
    Event,
    Job,
    MapsWork,
    MasksWork,
    PendingUnits,
    PlannedUnits,
    Units,
    WeightsRead,
)
from sum_factory.labelgen.layers import KEPT_LAYERS, maps_layer, masks_layer
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.progress import ProgressReporter, RunSummary
from sum_factory.labelgen.run_settings import RunSettings, UncertaintyRunSettings, WorkerSettings
from sum_factory.labelgen.sam import read_sam, recorded_sam
from sum_factory.labelgen.sets.retry import count_errors, take_back_failed
from sum_factory.labelgen.settings import (
    UncertaintySettings,
)
from sum_factory.shared.automask.settings import AutomaskSettings, settings_for
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.exactness import Exactness, exactness_of, require_level, settle
from sum_factory.shared.gpu.sizes import MEMORY_SHARE
from sum_factory.shared.sam.checkpoint import SamWeights, read_weights
from sum_factory.shared.sam.readings import READINGS
from sum_factory.shared.sam.runtime import Runtime, pick_device
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.settings_differ import REMEDY_FOR_SETTINGS, require_same
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, Layer, add_layer
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.originals import require_old_places, require_originals
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.store.storage import Storage

CPUS_ON_CLUSTER = 1.0
"""What a worker on a running cluster asks for, unless told otherwise."""
REMEDY_FOR_LAYER = "Give the settings, --use-kept and the refiner of the existing layer, or another --layer-name."
REMEDY_FOR_KEPT = "Leave the option out that keeps this layer, or give another --shards folder."
REMEDY_FOR_SAM = "Give --sam the weights that made the masks: the logits of another SAM are not those of these masks."


def run(settings: RunSettings, say: Callable[[str], None] = click.echo, stop: Stop | None = None) -> RunSummary:
    """Label all images that the shard set lacks; safe to repeat after any interruption, and to ``stop``.

    Raises ``SumError`` for anything that is not a single image's own fault; those are recorded, and the run goes on.
    """
    before = READINGS.since()
    passed_over = PassedOver()
    storage, photos = Storage(settings.shards), partial(list_photos, settings.images, passed_over=passed_over)
    sam = read_sam(settings.sam, settings.model_type, settings.task, recorded_sam(storage), _works_here(settings))
    automask = settings.automask
    if not isinstance(automask, AutomaskSettings):
        automask = settings_for(str(sam.identity["model_type"]), **automask)
    _tell_of_emulation(settings, settings.runtime.exactness)
    masks = masks_layer(automask, settings.runtime, sam.identity, settings.encoding, settings.stretch)
    if settings.refiner is None and settings.min_refine_area:
        raise SettingsError("--min-refine-area is about refining: give --refiner too")
    kept = [describe(masks, settings.encoding) for name, describe in KEPT_LAYERS.items() if settings.keeps(name)]
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=_runtime(settings, settings.runtime.exactness),
        points_per_batch=settings.points_per_batch,
        photos_per_batch=settings.photos_per_batch,
        masks=MasksWork(automask),
        kept=tuple(kept),
        wait_for_photos=settings.wait_for_photos,
        missing_photos=settings.missing_photos,
        task=sam.task,
    )
    if settings.refiner is not None:
        uncertainty = UncertaintySettings(min_refine_area=settings.min_refine_area)
        maps = maps_layer(
            settings.layer_name, uncertainty, settings.refiner, masks, settings.encoding, known_as=sam.known_as
        )
        job = replace(job, uncertainty=MapsWork(uncertainty, settings.refiner, maps))
    layers = [(masks, REMEDY_FOR_SETTINGS), *((layer, _remedy_for(layer)) for layer in job.added_layers)]
    with prepare(storage, photos, layers, settings.unit_size, settings.extend, settings.runtime.exactness) as plan:
        notes_said = [*plan.notes(), *(passed_over.notes() if plan.is_whole else ())]
        for note in notes_said:
            say(note)
        executor = make_executor(settings, job, sam.weights, before)
        summary = work(settings, job, plan, executor, say, stop or Stop(), _read_by_driver(sam.weights, before))
        for note in (*plan.notes(), *passed_over.notes()):  # a listing that went on meanwhile tells more at its end
            if note not in notes_said:
                say(note)
    write_shared_files(storage)  # in a store that cannot be locked planning and labelling may have written at once
    return summary


def add_uncertainty(
    settings: UncertaintyRunSettings, say: Callable[[str], None] = click.echo, stop: Stop | None = None
) -> RunSummary:
    """Make the uncertainty maps that a layer lacks, for all units that have masks; safe to repeat as ``run`` is.

    Raises ``SumError`` as ``run``. Masks of a photo that is gone or changed have no map, and the manifest says why; if
    there is not one photo of the units that are looked at first, ``InputError``: all of them lie elsewhere.
    """
    shards = ShardSet.open(settings.shards, photos_from=settings.photos_from)
    require_old_places(shards)
    masks, before = shards.layer(MASKS), READINGS.since()
    recorded = masks.weights["sam"]
    sam = read_sam(settings.sam, settings.model_type, recorded.get("task"), recorded, _works_here(settings))
    require_same("weights", f"{settings.shards}, layer {MASKS}", recorded, sam.identity, REMEDY_FOR_SAM)
    made_at = exactness_of(masks.settings)
    if made_at is None:
        raise ShardError(f"{settings.shards}, layer {MASKS}: precision: expected fp32 or bf16, found none of them")
    exactness = settings.exactness or made_at
    require_level(f"{settings.shards}, layer {MASKS}", masks.settings, exactness)
    _tell_of_emulation(settings, exactness)
    uncertainty = settings.uncertainty
    name = settings.layer_name or uncertainty.source
    numbers = shards.committed(MASKS)
    kept = [_require_kept(shards, layer, numbers) for layer in settings.use_kept]
    teacher = None
    if settings.teacher is not None:
        teacher = read_weights(settings.teacher).for_task(sam.task or TASKS[0]).identity
    maps = maps_layer(name, uncertainty, settings.refiner, masks, settings.encoding, kept, sam.known_as, teacher)
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=_runtime(settings, exactness),
        points_per_batch=settings.points_per_batch,
        photos_per_batch=settings.photos_per_batch,
        uncertainty=MapsWork(uncertainty, settings.refiner, maps, settings.use_kept, settings.teacher),
        photos_from=settings.photos_from,
        wait_for_photos=settings.wait_for_photos,
        missing_photos=settings.missing_photos,
        task=sam.task,
    )
    if _needs_photos(settings):
        _find_photos(shards, sorted({*numbers} - {*shards.committed(maps.name)}))
    if len(numbers) < shards.unit_count:
        say(f"{shards.unit_count - len(numbers)} of {shards.unit_count} units have no masks yet and are left out")
    executor = make_executor(settings, job, sam.weights, before)
    units = PlannedUnits(numbers, shards.size_of)
    return work(settings, job, units, executor, say, stop or Stop(), _read_by_driver(sam.weights, before))


def _runtime(settings: RunSettings | UncertaintyRunSettings, exactness: Exactness) -> Runtime:
    """Return where and how the run's workers run SAM."""
    share = settings.gpu_memory or MEMORY_SHARE * min(1.0, settings.gpus_per_worker or 1.0)
    return replace(settings.runtime, exactness=exactness, gpu_memory=share)


def _tell_of_emulation(settings: RunSettings | UncertaintyRunSettings, exactness: Exactness) -> None:
    """Say what bf16 costs where it has to be emulated; what the machines of a cluster have cannot be seen from here."""
    if settings.ray_address is None:
        settle(exactness, pick_device(settings.runtime.device))


def _needs_photos(settings: UncertaintyRunSettings) -> bool:
    """Whether maps cannot be made without photos, however much is kept."""
    uncertainty, kept = settings.uncertainty, settings.use_kept
    if uncertainty.reads_labels:
        return False
    embeds = uncertainty.needs_refiner or uncertainty.compares_models or LOGITS not in kept
    return settings.teacher is not None or (EMBEDDINGS not in kept and embeds)


def _find_photos(shards: ShardSet, pending: Sequence[int]) -> None:
    """Raise ``InputError`` if no photo that has masks is there, of the first, the middle and the last unit to be done:
    their maps would all be unknown."""
    numbers = sorted({pending[0], pending[len(pending) // 2], pending[-1]}) if pending else []
    labelled = ((shards.unit(number).images, shards.images(number)) for number in numbers)
    with_masks = ((planned, image) for planned, images in labelled for image in images if image.masks)
    require_originals(shards, ((planned[image.index], image.digest) for planned, image in with_masks))


def _require_kept(shards: ShardSet, name: str, units: Sequence[int]) -> Layer:
    """Return the kept layer called ``name``. Raises ``ShardError`` if it is not there, or lacks one of the units."""
    make = f"give the same `labelgen run` with --keep-{name} first, or leave --use-kept {name} out"
    if name not in shards.dataset.layers:
        raise ShardError(f"{shards.storage.url}: no layer {name} to make maps from; {make}")
    lacking = sorted({*units} - {*shards.committed(name)})
    if lacking:
        missing = shards.storage.path(manifest_path(name, lacking[0]))
        raise ShardError(f"{missing}: missing; layer {name} lacks {len(lacking)} of {len(units)} units; {make}")
    return shards.layer(name)


class Executor(Protocol):
    """Makes units, and tells how it gets on."""

    def run(self, units: PendingUnits, stop: Stop) -> Iterator[Event]: ...


class WorkSettings(Protocol):
    """What all commands are asked that make units."""

    @property
    def shards(self) -> str: ...
    @property
    def retry_errors(self) -> str | None: ...
    @property
    def max_errors(self) -> int | None: ...
    @property
    def log(self) -> str | None: ...


def work(
    settings: WorkSettings,
    job: Job,
    units: Units,
    executor: Executor,
    say: Callable[[str], None],
    stop: Stop,
    before: Sequence[Event] = (),
) -> RunSummary:
    """Have an executor make what ``units`` lack of the job's layers. What happened ``before`` is logged first."""
    storage = Storage(settings.shards)
    _describe(storage, job)
    shards = ShardSet(storage, write_shared_files(storage))
    if settings.retry_errors is not None:
        for note in take_back_failed(shards, settings.retry_errors, job.layers):
            say(note)
    done = set.intersection(*(set(shards.committed(layer)) for layer in job.layers))
    pending = PendingUnits(units, done.intersection(units.planned))
    total, present = len(units.planned), len(pending.done)
    if present and pending.planned:
        say(f"{present} of {total} units present, labelling the other {total - present}")

    with open_log(settings.log) as log, ProgressReporter(_images_of(pending)) as progress, stop.heeded():
        log.tell("run begun", shards=settings.shards, layers=job.layers, units=total, units_before=present)
        for event in before:
            log.take(event)
        for event in executor.run(pending, stop) if pending.planned or not units.is_whole else ():
            log.take(event)
            progress.take(event)
            if len(units.planned) != total:
                total = len(units.planned)
                progress.expect(_images_of(pending))
            if settings.max_errors is not None and len(progress.errors) > settings.max_errors:
                stop.request(f"after {len(progress.errors)} image errors, more than --max-errors {settings.max_errors}")
        with_maps = job.uncertainty is not None
        summary = progress.summary(len(units.planned), present, stop.reason, with_maps, units.is_whole)
        summary = replace(summary, errors_before=count_errors(shards, job.layers, pending.done))
        log.tell("run ended", **asdict(summary))
    _describe(storage, job)  # another run's copy of dataset.json may have come without the layers
    return summary


def _read_by_driver(weights: SamWeights | None, readings: tuple[int, int]) -> tuple[WeightsRead, ...]:
    """Return what this process has read of weights since ``readings``, unless it works with them itself."""
    if weights is not None:
        return ()
    return (WeightsRead(f"driver, process {os.getpid()}", *READINGS.since(*readings)),)


def _describe(storage: Storage, job: Job) -> None:
    """Have ``dataset.json`` describe all layers of a job."""
    for layer in job.added_layers:
        add_layer(storage, layer, _remedy_for(layer))


def _images_of(units: Units) -> int:
    return sum(map(units.size_of, units.planned))


def _works_here(settings: WorkerSettings) -> bool:
    return settings.workers == 0 and settings.ray_address is None


def _remedy_for(layer: Layer) -> str:
    return REMEDY_FOR_KEPT if kind_of(layer.name).is_kept else REMEDY_FOR_LAYER


def make_executor(
    settings: WorkerSettings,
    job: Job,
    weights: SamWeights | None = None,
    readings: tuple[int, int] = (0, 0),
) -> SerialExecutor | RayExecutor:
    """Return the executor that the settings ask for. Raises ``SettingsError`` if they contradict each other."""
    cores = settings.threads or usable_cores()
    if _works_here(settings):
        return SerialExecutor(job, cores, weights, readings)
    if settings.threads is not None and settings.ray_address is not None:
        raise SettingsError(
            f"--threads {settings.threads} is about this machine, --ray-address {settings.ray_address} about others; "
            "say what each worker gets with --cpus-per-worker"
        )
    workers, cpus = max(1, settings.workers), settings.cpus_per_worker
    if cpus is None:
        cpus = cores / workers if settings.ray_address is None else CPUS_ON_CLUSTER
        # Ray counts several CPUs in whole ones, and a part of one in ten-thousandths, which must not add up to more
        cpus = float(int(cpus)) if cpus > 1 else int(cpus * 10_000) / 10_000
    patience = Patience(settings.silent_after, settings.stuck_after)
    return RayExecutor(job, Resources(workers, settings.ray_address, settings.gpus_per_worker, cpus, patience))
