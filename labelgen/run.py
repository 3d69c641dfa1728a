"""``labelgen run`` and ``labelgen uncertainty`` from top to bottom: find what a shard set lacks, and make it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, get_args

import click

from sum_factory.labelgen.engine.cluster import Resources
from sum_factory.labelgen.engine.pool import RayExecutor
from sum_factory.labelgen.engine.pulse import Patience
from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.event_log import open_log
from sum_factory.labelgen.job import (
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
from sum_factory.labelgen.masks.settings import AutomaskSettings, settings_for
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.plan import prepare
from sum_factory.labelgen.progress import ProgressReporter, RunSummary
from sum_factory.labelgen.sam import read_sam, recorded_sam
from sum_factory.labelgen.sets.retry import count_errors, take_back_failed
from sum_factory.labelgen.settings import (
    SILENT_SECONDS,
    STUCK_SECONDS,
    UNIT_SIZE,
    WAIT_SECONDS,
    Missing,
    UncertaintySettings,
)
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.precision import Precision, PrecisionSetting, Resolved, resolve, settle
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.sam.checkpoint import SamWeights
from sum_factory.shared.sam.readings import READINGS
from sum_factory.shared.sam.runtime import Runtime, pick_device
from sum_factory.shared.sam.settings import PACKAGED, TASKS
from sum_factory.shared.settings_differ import REMEDY_FOR_SETTINGS, require_same
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, REFINEMENT, TAR, Layer, add_layer
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


@dataclass(frozen=True)
class RunSettings:
    """What ``labelgen run`` was asked to do. ``workers`` 0 works in this process, without Ray.

    ``threads`` is how many cores of this machine to use, by default all that this process may use. They are divided
    among the workers on this machine, unless ``cpus_per_worker`` says what each gets; on a running cluster it is 1.

    ``automask`` may name some settings alone: the others are the defaults of the model. With ``extend``, photos that a
    shard set does not have are added to it.

    With the path of a ``refiner``, the run adds the uncertainty layer ``layer_name`` in the same pass; ``keep_photos``
    adds the photos at SAM's input side, ``keep_logits`` the masks' full logits, ``keep_embeddings`` what the image
    encoder made of them.
    """

    images: tuple[str, ...]
    """Where photos are: folders, tars, list files, patterns and single images, at paths or URLs."""
    shards: str
    """Folder or URL of the shard set."""
    sam: str = PACKAGED
    """SAM's weights: a file, a folder, an id on the Hugging Face hub, or vit_micro, which ships here."""
    model_type: str | None = None
    """vit_micro, vit_b, vit_l or vit_h: other weights are refused. By default it is read off the weights."""
    task: str = TASKS[0]
    """Of weights with a task prompt, such as SUM's own, the task whose vector is given with every point."""
    automask: AutomaskSettings | Mapping[str, float | None] = field(default_factory=AutomaskSettings)
    """Grid of points and filters: which masks are kept. All settings, or some, with the model's own for the others."""
    refiner: str | None = None
    """Weights of a refiner, or vit_micro for the one that ships here. Without it no maps are made."""
    layer_name: str = REFINEMENT
    """Name of the layer of maps, as in ``uncertainty/NAME``. Maps of another refiner need another one."""
    min_refine_area: int = 0
    """Masks of fewer pixels, in a photo whose longer side is 1024, are not refined but taken as certain. 0 refines
    all."""
    keep_photos: bool = False
    """Keep the photos, scaled to SAM's input side: training then needs no access to the originals."""
    keep_logits: bool = False
    """Keep SAM's logits of each mask: maps of confidence or entropy then need neither photos nor the encoder."""
    keep_embeddings: bool = False
    """Keep what the image encoder made of each photo: a later refiner then needs neither photos nor the encoder."""
    runtime: Runtime = field(default_factory=Runtime)
    """Device, precision of the image encoder, and whether the encoder is compiled."""
    stretch: bool = False
    """Stretch photos of more than 8 bits a channel, each from its darkest to its brightest values: for data in fewer
    bits than their files have. By default white is what the file calls white."""
    unit_size: int = UNIT_SIZE
    """Photos a unit, which are scheduled, committed and lost together. Give fewer where many workers share few
    photos."""
    extend: bool = False
    """Add photos that are new to the shard set that is there."""
    encoding: str = TAR
    """How layers lie on disk: tar takes fewer bytes, zarr is read faster."""
    points_per_batch: int = 64
    """Points decoded together. Fewer take less memory; results change by rounding errors at most."""
    workers: int = 0
    """Ray actors that label. 0 works in this process, without Ray."""
    ray_address: str | None = None
    """Address of a running Ray cluster, or "auto". By default one is started on this machine if there are workers."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker: 1, or 0.5 for two workers a GPU. 0 is none."""
    cpus_per_worker: float | None = None
    """Photos that a worker labels at once, one a core. By default the cores of this machine are divided among workers;
    on a running cluster it is 1."""
    threads: int | None = None
    """Cores of this machine to use. By default all that this process may use."""
    wait_for_photos: float = WAIT_SECONDS
    """Seconds to wait, in all, for a disk, folder or store that is gone while the run works. Then the run ends."""
    missing_photos: Missing = "wait"
    """What is done about photos that are gone together with all beside them: wait, or record that they are gone."""
    retry_errors: str | None = None
    """Make units anew that lack photos because of an error: "all", or those of whose errors one says this."""
    silent_after: float = SILENT_SECONDS
    """Seconds after which a Ray worker is replaced that is not heard of: it was stopped, or is out of reach."""
    stuck_after: float = STUCK_SECONDS
    """Seconds after which a Ray worker is replaced that is heard of, and gets nothing done, not even a part of a photo.
    Waiting for photos counts as getting on: ``wait_for_photos`` limits that."""
    max_errors: int | None = None
    """Stop when more photos than this could not be labelled. By default the run goes on, however many they are."""
    log: str | None = None
    """File to which one JSON line is appended for everything that happens. By default there is none."""

    def keeps(self, layer: str) -> bool:
        """Whether a kept layer is to be made: ``keep_`` and its name is a setting."""
        return bool(getattr(self, f"keep_{layer}"))


@dataclass(frozen=True)
class UncertaintyRunSettings:
    """What ``labelgen uncertainty`` was asked to do: add a layer to masks that are there.

    ``layer_name`` is by default the name of the source. ``use_kept`` names the kept layers that maps are made from, as
    far as they go. ``photos_from`` says where photos lie now that have moved since they were labelled. ``precision``
    must equal the masks' precision; None takes it. ``runtime.precision`` is ignored.
    """

    shards: str
    """Folder or URL of the shard set whose masks get maps."""
    refiner: str | None = None
    """Weights of a refiner, or vit_micro for the one that ships here. Only the source refinement takes one."""
    layer_name: str | None = None
    """Name of the layer of maps, as in ``uncertainty/NAME``. By default that of the source."""
    photos_from: Relocation = UNMOVED
    """Where photos lie now that have moved since they were labelled."""
    encoding: str = TAR
    """How layers lie on disk: tar takes fewer bytes, zarr is read faster."""
    uncertainty: UncertaintySettings = field(default_factory=UncertaintySettings)
    """Which source the maps are made by, and which masks are not refined."""
    use_kept: tuple[str, ...] = ()
    """Kept layers that maps are made from, as far as they go: logits, embeddings, or both."""
    sam: str = PACKAGED
    """SAM's weights: a file, a folder, an id on the Hugging Face hub, or vit_micro, which ships here."""
    model_type: str | None = None
    """vit_micro, vit_b, vit_l or vit_h: other weights are refused. By default it is read off the weights."""
    runtime: Runtime = field(default_factory=Runtime)
    """Device, precision of the image encoder, and whether the encoder is compiled."""
    precision: PrecisionSetting | None = None
    """Precision of the image encoder. By default that of the masks; any other is refused."""
    points_per_batch: int = 64
    """Points decoded together. Fewer take less memory; results change by rounding errors at most."""
    workers: int = 0
    """Ray actors that label. 0 works in this process, without Ray."""
    ray_address: str | None = None
    """Address of a running Ray cluster, or "auto". By default one is started on this machine if there are workers."""
    gpus_per_worker: float = 0.0
    """GPUs of each worker: 1, or 0.5 for two workers a GPU. 0 is none."""
    cpus_per_worker: float | None = None
    """Photos that a worker labels at once, one a core. By default the cores of this machine are divided among workers;
    on a running cluster it is 1."""
    threads: int | None = None
    """Cores of this machine to use. By default all that this process may use."""
    wait_for_photos: float = WAIT_SECONDS
    """Seconds to wait, in all, for a disk, folder or store that is gone while the run works. Then the run ends."""
    missing_photos: Missing = "wait"
    """What is done about photos that are gone together with all beside them: wait, or record that they are gone."""
    retry_errors: str | None = None
    """Make units anew that lack photos because of an error: "all", or those of whose errors one says this."""
    silent_after: float = SILENT_SECONDS
    """Seconds after which a Ray worker is replaced that is not heard of: it was stopped, or is out of reach."""
    stuck_after: float = STUCK_SECONDS
    """Seconds after which a Ray worker is replaced that is heard of, and gets nothing done, not even a part of a photo.
    Waiting for photos counts as getting on: ``wait_for_photos`` limits that."""
    max_errors: int | None = None
    """Stop when more photos than this could not be labelled. By default the run goes on, however many they are."""
    log: str | None = None
    """File to which one JSON line is appended for everything that happens. By default there is none."""


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
    precision = settle_precision(settings, settings.runtime.precision)
    runtime = replace(settings.runtime, precision=precision.name)
    masks = masks_layer(automask, runtime, sam.identity, settings.encoding, settings.stretch)
    if settings.refiner is None and settings.min_refine_area:
        raise SettingsError("--min-refine-area is about refining: give --refiner too")
    kept = [describe(masks, settings.encoding) for name, describe in KEPT_LAYERS.items() if settings.keeps(name)]
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=runtime,
        points_per_batch=settings.points_per_batch,
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
    with prepare(storage, photos, layers, settings.unit_size, settings.extend, precision) as plan:
        notes_said = [*plan.notes(), *(passed_over.notes() if plan.is_whole else ())]
        for note in notes_said:
            say(note)
        summary = _work(settings, job, plan, sam.weights, before, say, stop or Stop())
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
    made_in: Any = masks.settings.get("precision")
    if made_in not in get_args(Precision):
        raise ShardError(f"{settings.shards}, layer {MASKS}: precision: expected fp32 or bf16, found {made_in!r}")
    precision = settle_precision(settings, settings.precision or made_in)
    precision.require_recorded(f"{settings.shards}, layer {MASKS}", made_in)
    uncertainty = settings.uncertainty
    name = settings.layer_name or uncertainty.source
    numbers = shards.committed(MASKS)
    kept = [_require_kept(shards, layer, numbers) for layer in settings.use_kept]
    maps = maps_layer(name, uncertainty, settings.refiner, masks, settings.encoding, kept, sam.known_as)
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=replace(settings.runtime, precision=precision.name),
        points_per_batch=settings.points_per_batch,
        uncertainty=MapsWork(uncertainty, settings.refiner, maps, settings.use_kept),
        photos_from=settings.photos_from,
        wait_for_photos=settings.wait_for_photos,
        missing_photos=settings.missing_photos,
        task=sam.task,
    )
    if EMBEDDINGS not in settings.use_kept and (uncertainty.needs_refiner or LOGITS not in settings.use_kept):
        _find_photos(shards, sorted({*numbers} - {*shards.committed(maps.name)}))
    if len(numbers) < shards.unit_count:
        say(f"{shards.unit_count - len(numbers)} of {shards.unit_count} units have no masks yet and are left out")
    return _work(settings, job, PlannedUnits(numbers, shards.size_of), sam.weights, before, say, stop or Stop())


def settle_precision(settings: RunSettings | UncertaintyRunSettings, asked: PrecisionSetting) -> Resolved:
    """Return what ``asked`` is where the run computes. Raises ``SettingsError`` for "auto" on a cluster: what its nodes
    have cannot be seen from here."""
    device = pick_device(settings.runtime.device)
    if settings.ray_address is None:
        return settle(asked, device)
    if asked == "auto":
        raise SettingsError(
            "--precision auto asks the machine that computes, and --ray-address has others compute: give fp32 or bf16"
        )
    return resolve(asked, device)


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


def _work(
    settings: RunSettings | UncertaintyRunSettings,
    job: Job,
    units: Units,
    weights: SamWeights | None,
    readings: tuple[int, int],
    say: Callable[[str], None],
    stop: Stop,
) -> RunSummary:
    """Make what ``units`` lack of the job's layers.

    ``readings`` is how many files of weights this process had read before the run, and how many bytes.
    """
    storage = Storage(settings.shards)
    _describe(storage, job)
    shards = ShardSet(storage, write_shared_files(storage))
    if settings.retry_errors is not None:
        for note in take_back_failed(shards, settings.retry_errors, job.layers):
            say(note)
    done = set.intersection(*(set(shards.committed(layer)) for layer in job.layers))
    pending = PendingUnits(units, done.intersection(units.planned))
    total, before = len(units.planned), len(pending.done)
    if before and pending.planned:
        say(f"{before} of {total} units present, labelling the other {total - before}")

    executor = make_executor(settings, job, weights, readings)
    with open_log(settings.log) as log, ProgressReporter(_images_of(pending)) as progress, stop.heeded():
        log.tell("run begun", shards=settings.shards, layers=job.layers, units=total, units_before=before)
        if weights is None:
            log.take(WeightsRead(f"driver, process {os.getpid()}", *READINGS.since(*readings)))
        for event in executor.run(pending, stop) if pending.planned or not units.is_whole else ():
            log.take(event)
            progress.take(event)
            if len(units.planned) != total:
                total = len(units.planned)
                progress.expect(_images_of(pending))
            if settings.max_errors is not None and len(progress.errors) > settings.max_errors:
                stop.request(f"after {len(progress.errors)} image errors, more than --max-errors {settings.max_errors}")
        with_maps = job.uncertainty is not None
        summary = progress.summary(len(units.planned), before, stop.reason, with_maps, units.is_whole)
        summary = replace(summary, errors_before=count_errors(shards, job.layers, pending.done))
        log.tell("run ended", **asdict(summary))
    _describe(storage, job)  # another run's copy of dataset.json may have come without the layers
    return summary


def _describe(storage: Storage, job: Job) -> None:
    """Have ``dataset.json`` describe all layers of a job."""
    for layer in job.added_layers:
        add_layer(storage, layer, _remedy_for(layer))


def _images_of(units: Units) -> int:
    return sum(map(units.size_of, units.planned))


def _works_here(settings: RunSettings | UncertaintyRunSettings) -> bool:
    return settings.workers == 0 and settings.ray_address is None


def _remedy_for(layer: Layer) -> str:
    return REMEDY_FOR_KEPT if kind_of(layer.name).is_kept else REMEDY_FOR_LAYER


def make_executor(
    settings: RunSettings | UncertaintyRunSettings,
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
