"""``labelgen run`` and ``labelgen uncertainty`` from top to bottom: find what a shard set lacks, and make it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import click
from tqdm import tqdm

from labelgen.automask import AutomaskSettings
from labelgen.engine import Executor, RayExecutor, SerialExecutor
from labelgen.job import Job, MasksTask, UncertaintyTask, UnitReport
from labelgen.layers import embeddings_layer, images_layer, logits_layer, maps_layer, masks_layer
from labelgen.plan import prepare
from labelgen.progress import ProgressReporter
from labelgen.sources import list_images
from labelgen.uncertainty import UncertaintySettings
from shared.errors import SettingsError, ShardError
from shared.sam.checkpoint import PACKAGED, identify_weights
from shared.sam.runtime import Runtime
from shared.shards.dataset import Dataset, Layer, Unit, add_layer, is_uncertainty, require_same
from shared.shards.encodings import TAR, write_shared_files
from shared.shards.manifest import manifest_path
from shared.shards.shard_set import MASKS, REFINEMENT, ShardSet
from shared.storage import Storage

UNIT_SIZE = 256
REMEDY_FOR_LAYER = "Give the settings, --use-kept and the refiner of the existing layer, or another --layer-name."
REMEDY_FOR_KEPT = "Leave the option out that keeps this layer, or give another --shards folder."
REMEDY_FOR_SAM = "Give --sam the weights that made the masks: the logits of another SAM are not those of these masks."


@dataclass(frozen=True)
class RunSettings:
    """What ``labelgen run`` was asked to do. ``workers`` 0 works in this process, without Ray.

    With the path of a ``refiner``, the run adds the uncertainty layer ``layer_name`` in the same pass; ``keep_images``
    adds the photos at SAM's input side, ``keep_logits`` the masks' full logits, ``keep_embeddings`` what the image
    encoder made of them.
    """

    images: tuple[str, ...]
    shards: str
    sam: str = PACKAGED
    model_type: str | None = None
    automask: AutomaskSettings = field(default_factory=AutomaskSettings)
    refiner: str | None = None
    layer_name: str = REFINEMENT
    min_refine_area: int = 0
    keep_images: bool = False
    keep_logits: bool = False
    keep_embeddings: bool = False
    runtime: Runtime = field(default_factory=Runtime)
    unit_size: int = UNIT_SIZE
    encoding: str = TAR
    points_per_batch: int = 64
    workers: int = 0
    ray_address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0


@dataclass(frozen=True)
class UncertaintyRunSettings:
    """What ``labelgen uncertainty`` was asked to do: add a layer to masks that are there.

    ``layer_name`` is by default the name of the source. ``use_kept`` names the kept layers that maps are made from, as
    far as they go. Whether the image encoder runs in bfloat16 is not asked: it does if it did for the masks.
    """

    shards: str
    refiner: str | None = None
    layer_name: str | None = None
    encoding: str = TAR
    uncertainty: UncertaintySettings = field(default_factory=UncertaintySettings)
    use_kept: tuple[str, ...] = ()
    sam: str = PACKAGED
    model_type: str | None = None
    runtime: Runtime = field(default_factory=Runtime)
    points_per_batch: int = 64
    workers: int = 0
    ray_address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0


@dataclass(frozen=True)
class RunSummary:
    """What a run did. Units that were there before it count in ``units_before`` alone.

    ``unknown`` counts masks without an uncertainty map, and is None if none were to be made.
    """

    units: int
    units_before: int
    units_done: int
    images: int
    masks: int
    errors: tuple[str, ...]
    images_per_second: float
    unknown: int | None = None

    def lines(self) -> str:
        """Return the summary for people."""
        if self.units_done == 0:
            return f"{self.units_before} of {self.units} units present, nothing to do"
        before = f" ({self.units_before} were there before)" if self.units_before else ""
        unknown = "" if self.unknown is None else f" ({self.unknown} without an uncertainty map)"
        return (
            f"{self.units_done} of {self.units} units labelled{before}: {self.images} images, {self.masks} masks"
            f"{unknown}, {len(self.errors)} errors, {self.images_per_second:.2f} images/s"
        )


def run(settings: RunSettings, say: Callable[[str], None] = click.echo) -> RunSummary:
    """Label all images that the shard set lacks; safe to repeat after any interruption.

    Raises ``SumError`` for anything that is not a single image's own fault; those are recorded, and the run goes on.
    """
    refs = list_images(settings.images)
    sam = identify_weights(settings.sam, settings.model_type)
    masks = masks_layer(settings.automask, settings.runtime, sam, settings.encoding)
    uncertainty = UncertaintySettings(min_refine_area=settings.min_refine_area)
    if settings.refiner is None:
        if settings.min_refine_area:
            raise SettingsError("--min-refine-area is about refining: give --refiner too")
    else:  # a wrong one is refused before anything is planned
        maps_layer(settings.layer_name, uncertainty, settings.refiner, masks, ())
    with tqdm(total=len(refs), unit="image", desc="planning", disable=None, leave=False) as bar:
        dataset, units = prepare(Storage(settings.shards), refs, masks, settings.unit_size, bar.update)
    ids = dataset.unit_ids
    kept = [images_layer(sam, settings.encoding)] if settings.keep_images else []
    kept += [logits_layer(masks, ids, settings.encoding)] if settings.keep_logits else []
    kept += [embeddings_layer(masks, ids, settings.encoding)] if settings.keep_embeddings else []
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=settings.runtime,
        points_per_batch=settings.points_per_batch,
        masks=MasksTask(settings.automask),
        kept=tuple(kept),
    )
    if settings.refiner is not None:
        maps = maps_layer(settings.layer_name, uncertainty, settings.refiner, masks, ids, settings.encoding)
        job = replace(job, uncertainty=UncertaintyTask(uncertainty, settings.refiner, maps))
    return _work(settings, job, dataset, units, say)


def add_uncertainty(settings: UncertaintyRunSettings, say: Callable[[str], None] = click.echo) -> RunSummary:
    """Make the uncertainty maps that a layer lacks, for all units that have masks; safe to repeat as ``run`` is.

    Raises ``SumError`` as ``run``. Masks of a photo that is gone or changed have no map, and the manifest says why.
    """
    shards = ShardSet.open(settings.shards)
    masks, ids = shards.layer(MASKS), shards.dataset.unit_ids
    sam = identify_weights(settings.sam, settings.model_type)
    require_same("weights", f"{settings.shards}, layer {MASKS}", masks.weights["sam"], sam, REMEDY_FOR_SAM)
    uncertainty = settings.uncertainty
    name = settings.layer_name or uncertainty.source
    units = [shards.unit(number) for number in shards.committed(MASKS)]
    kept = [_require_kept(shards, layer, units) for layer in settings.use_kept]
    maps = maps_layer(name, uncertainty, settings.refiner, masks, ids, settings.encoding, kept)
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        runtime=replace(settings.runtime, bf16=masks.settings["bf16"]),
        points_per_batch=settings.points_per_batch,
        uncertainty=UncertaintyTask(uncertainty, settings.refiner, maps, settings.use_kept),
    )
    if len(units) < len(ids):
        say(f"{len(ids) - len(units)} of {len(ids)} units have no masks yet and are left out")
    return _work(settings, job, shards.dataset, units, say)


def _require_kept(shards: ShardSet, name: str, units: Sequence[Unit]) -> Layer:
    """Return the kept layer called ``name``. Raises ``ShardError`` if it is not there, or lacks one of the units."""
    make = f"give the same `labelgen run` with --keep-{name} first, or leave --use-kept {name} out"
    if name not in shards.dataset.layers:
        raise ShardError(f"{shards.storage.url}: no layer {name} to make maps from; {make}")
    lacking = sorted({unit.number for unit in units} - {*shards.committed(name)})
    if lacking:
        missing = shards.storage.path(manifest_path(name, lacking[0]))
        raise ShardError(f"{missing}: missing, as are {len(lacking) - 1} more units of layer {name}; {make}")
    return shards.layer(name)


def _work(
    settings: RunSettings | UncertaintyRunSettings,
    job: Job,
    dataset: Dataset,
    units: Sequence[Unit],
    say: Callable[[str], None],
) -> RunSummary:
    """Make what ``units`` lack of the job's layers."""
    storage = Storage(settings.shards)
    for layer in job.added_layers:
        dataset = add_layer(storage, layer, _remedy_for(layer))
    for name in job.layers:
        write_shared_files(storage, dataset, dataset.layers[name])
    shards = ShardSet(storage, dataset)
    done = set.intersection(*(set(shards.committed(layer)) for layer in job.layers))
    pending = [unit for unit in units if unit.number not in done]
    before = len(units) - len(pending)
    if before and pending:
        say(f"{before} of {len(units)} units present, labelling the other {len(pending)}")

    executor = make_executor(settings, job)
    reports: list[UnitReport] = []
    with ProgressReporter(sum(len(unit.images) for unit in pending)) as progress:
        for event in executor.run(pending) if pending else ():
            if isinstance(event, UnitReport):
                reports.append(event)
            else:
                progress.add(event.masks, event.error)
    for layer in job.added_layers:  # another run's copy of dataset.json may have come without it
        add_layer(storage, layer, _remedy_for(layer))
    return RunSummary(
        units=len(units),
        units_before=before,
        units_done=len(reports),
        images=sum(report.images for report in reports),
        masks=sum(report.masks for report in reports),
        errors=tuple(error for report in reports for error in report.errors),
        images_per_second=progress.rate,
        unknown=None if job.uncertainty is None else sum(report.unknown for report in reports),
    )


def _remedy_for(layer: Layer) -> str:
    return REMEDY_FOR_LAYER if is_uncertainty(layer.name) else REMEDY_FOR_KEPT


def make_executor(settings: RunSettings | UncertaintyRunSettings, job: Job) -> Executor:
    """Return the executor that the settings ask for."""
    if settings.workers == 0 and settings.ray_address is None:
        return SerialExecutor(job)
    workers = max(1, settings.workers)
    return RayExecutor(job, workers, settings.ray_address, settings.gpus_per_worker, settings.cpus_per_worker)
