"""``labelgen run`` from top to bottom: list the images, plan the units, label what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version

import click
from tqdm import tqdm

from labelgen.automask import AutomaskSettings
from labelgen.engine import Executor, RayExecutor, SerialExecutor
from labelgen.labeler import Job, UnitReport, layer_settings
from labelgen.plan import prepare
from labelgen.progress import ProgressReporter
from labelgen.sources import list_images
from shared.sam.checkpoint import PACKAGED, identify_weights
from shared.sam.runtime import Runtime
from shared.shards.dataset import Layer
from shared.shards.shard_set import MASKS, ShardSet
from shared.storage import Storage

UNIT_SIZE = 256


@dataclass(frozen=True)
class RunSettings:
    """What ``labelgen run`` was asked to do. ``workers`` 0 labels in this process, without Ray."""

    images: tuple[str, ...]
    shards: str
    sam: str = PACKAGED
    model_type: str | None = None
    automask: AutomaskSettings = field(default_factory=AutomaskSettings)
    runtime: Runtime = field(default_factory=Runtime)
    unit_size: int = UNIT_SIZE
    points_per_batch: int = 64
    workers: int = 0
    ray_address: str | None = None
    gpus_per_worker: float = 0.0
    cpus_per_worker: float = 1.0


@dataclass(frozen=True)
class RunSummary:
    """What a run did. Units that were there before it count in ``units_before`` alone."""

    units: int
    units_before: int
    units_done: int
    images: int
    masks: int
    errors: tuple[str, ...]
    images_per_second: float

    def lines(self) -> str:
        """Return the summary for people."""
        if self.units_done == 0:
            return f"{self.units_before} of {self.units} units present, nothing to do"
        before = f" ({self.units_before} were there before)" if self.units_before else ""
        return (
            f"{self.units_done} of {self.units} units labelled{before}: {self.images} images, {self.masks} masks, "
            f"{len(self.errors)} errors, {self.images_per_second:.2f} images/s"
        )


def run(settings: RunSettings, say: Callable[[str], None] = click.echo) -> RunSummary:
    """Label all images that the shard set lacks; safe to repeat after any interruption.

    Raises ``SumError`` for anything that is not a single image's own fault; those are recorded, and the run goes on.
    """
    storage = Storage(settings.shards)
    refs = list_images(settings.images)
    layer = Layer(
        name=MASKS,
        encoding="tar",
        settings=layer_settings(settings.automask, settings.runtime),
        weights={"sam": identify_weights(settings.sam, settings.model_type)},
        provenance={"software": f"sum-factory {version('sum-factory')}", "torch": version("torch")},
    )
    with tqdm(total=len(refs), unit="image", desc="planning", disable=None, leave=False) as bar:
        dataset, units = prepare(storage, refs, layer, settings.unit_size, bar.update)
    done = set(ShardSet(storage, dataset).committed())
    pending = [unit for unit in units if unit.number not in done]
    if len(done) and pending:
        say(f"{len(done)} of {len(units)} units present, labelling the other {len(pending)}")

    executor = make_executor(settings, layer.id(dataset.unit_ids))
    reports: list[UnitReport] = []
    with ProgressReporter(sum(len(unit.images) for unit in pending)) as progress:
        for event in executor.run(pending) if pending else ():
            if isinstance(event, UnitReport):
                reports.append(event)
            else:
                progress.add(event.masks, event.error)
    return RunSummary(
        units=len(units),
        units_before=len(done),
        units_done=len(reports),
        images=sum(report.record.images for report in reports),
        masks=sum(report.record.masks for report in reports),
        errors=tuple(error for report in reports for error in report.errors),
        images_per_second=progress.rate,
    )


def make_executor(settings: RunSettings, layer_id: str) -> Executor:
    """Return the executor that the settings ask for."""
    job = Job(
        shards=settings.shards,
        sam=settings.sam,
        model_type=settings.model_type,
        automask=settings.automask,
        runtime=settings.runtime,
        points_per_batch=settings.points_per_batch,
        layer_id=layer_id,
    )
    if settings.workers == 0 and settings.ray_address is None:
        return SerialExecutor(job)
    workers = max(1, settings.workers)
    return RayExecutor(job, workers, settings.ray_address, settings.gpus_per_worker, settings.cpus_per_worker)
