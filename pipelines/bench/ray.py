"""The engine: what Ray costs, what two workers bring, and how far the scheduler goes.

    python -m pipelines.bench.ray [--quick]

Three parts. **Labelling** photos of the micro-world with ``vit_micro``, one thread per worker: a serial run, one Ray
worker, two Ray workers, in turn; the shard sets must be equal to the byte. Units are timed between the first and the
last report of a worker, so that the start of processes and models is left out. **A simulated cluster** of 64 and 512
workers: the engine's own scheduler on a simulated clock (``bench.parts.simulation``), with units of heavy-tailed
length, workers that take a while to start and machines that are taken away; each event costs the driver what the next
part measured. **The driver**: the real pool on real Ray actors that label nothing, with many planned units of 256
images: its CPU time per unit, and its memory after 100 and at the end.

The last line is a JSON object. ``overhead_one_worker`` is the time of a unit with one Ray worker over that of the
serial run, ``speedup_two_workers`` the rate of two over that of one; ``efficiency_64`` and ``efficiency_512`` are the
work done over the worker time that it took, until the last unit is done; ``driver_mb_per_1000_units`` is how the
driver grows.
"""

from __future__ import annotations

import math
import os
import random
import secrets
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from PIL import Image

from sum_factory.labelgen.engine.cluster import Resources
from sum_factory.labelgen.engine.pool import RayExecutor
from sum_factory.labelgen.engine.scheduler import Assignment, Scheduler
from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.engine.worker import Worker
from sum_factory.labelgen.job import Event, Job, PlannedUnits, UnitReport, Units
from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.simulation import Cluster, simulate
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.cores import usable_cores
from sum_factory.shared.exactness import Exactness, exactness_option
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.progress import Stage
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.dataset import Unit

NICENESS = "RAY_worker_niceness"
FEW = 100
"""Units after which the driver's memory is looked at for the first time."""
IMAGES = 256
"""Images per unit, but in the part that labels."""
SECONDS_AN_IMAGE = 1.0
"""Mean, of a simulated worker: what docs/cluster.md assumes of a GPU."""
SPREAD = 0.6
"""Standard deviation of the logarithm of an image's time: photos with many masks take several times the median."""
DEVIATION = math.sqrt(math.exp(SPREAD**2) - 1)
"""Standard deviation of an image's time of mean 1."""
START_SECONDS = 60.0
STALL_SHARE, LONGEST_STALL = 0.02, 4.0
"""Units that wait for a slow store or node, and for how many times their own length at most."""
HOURS_A_MACHINE_LASTS = 24.0


# Labelling


def label_all(
    photos: Path, shards: Path, unit_size: int, workers: int, points: int, exactness: Exactness, address: str
) -> list[float]:
    """Label ``photos`` and return when each unit was reported, in seconds; ``address`` is that of the Ray cluster."""
    times: list[float] = []
    executor = RayExecutor if workers else SerialExecutor
    original = executor.run

    def timed(self: Any, units: Units, stop: Stop) -> Iterator[Event]:
        for event in original(self, units, stop):
            if isinstance(event, UnitReport):
                times.append(time.perf_counter())
            yield event

    executor.run = timed  # type: ignore[method-assign]
    try:
        settings = AutomaskSettings(points_per_side=points, pred_iou_thresh=0.7, stability_score_thresh=0.8)
        shared = {
            "automask": settings,
            "unit_size": unit_size,
            "runtime": Runtime("cpu", exactness),
        }
        a_core_each = (
            {"workers": workers, "ray_address": address, "cpus_per_worker": 1.0} if workers else {"threads": 1}
        )
        run(RunSettings((str(photos),), str(shards), **shared, **a_core_each), say=lambda line: None)  # type: ignore[arg-type]
    finally:
        executor.run = original  # type: ignore[method-assign]
    return times


def make_photos(folder: Path, count: int) -> None:
    folder.mkdir()
    for seed in range(count):
        Image.fromarray(make_scene(seed, 0).image).save(folder / f"{seed:03d}.png")


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def seconds_a_unit(times: list[float], workers: int) -> float:
    """Return the time a unit took, without what came before the second report of each worker, or about so."""
    left_out = 2 * max(1, workers)
    return (times[-1] - times[left_out - 1]) / (len(times) - left_out)


@contextmanager
def cluster_of(cores: int) -> Iterator[str]:
    """Start a Ray cluster on this machine and yield its address: all runs join it, so that it is started once."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray.cluster_utils  # which reads the environment

    cluster = ray.cluster_utils.Cluster(True, head_node_args={"num_cpus": cores, "include_dashboard": False})
    try:
        yield cluster.address
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def measure_labelling(
    photos: int, repeats: int, points: int, unit_size: int, exactness: Exactness, address: str
) -> dict[str, Any]:
    """Compare one and two Ray workers with a serial run, in turn, and their bytes."""
    each: dict[int, list[float]] = {0: [], 1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with Stage("drawing photos"):
            make_photos(folder / "photos", photos)
        label_all(folder / "photos", folder / "warm", photos, 0, 2, exactness, address)
        for repeat in range(repeats):
            for workers in each:
                with Stage(f"{workers} Ray workers, repeat {repeat + 1} of {repeats}"):
                    made_at = folder / f"{repeat}-{workers}"
                    times = label_all(folder / "photos", made_at, unit_size, workers, points, exactness, address)
                each[workers].append(seconds_a_unit(times, workers))
        made = [bytes_of(folder / f"{repeat}-{workers}") for repeat in range(repeats) for workers in each]
    if any(files != made[0] for files in made):
        raise SystemExit("runs disagree: their shard sets are not equal to the byte")
    overheads = [one / serial for serial, one in zip(each[0], each[1], strict=True)]
    speedups = [one / two for one, two in zip(each[1], each[2], strict=True)]
    click.echo(f"a unit takes {statistics.median(each[0]):.2f} s; {repeats} repeats, shard sets equal to the byte")
    return {
        "overhead_one_worker": statistics.median(overheads),
        "overhead_one_worker_spread": [min(overheads), max(overheads)],
        "speedup_two_workers": statistics.median(speedups),
        "speedup_two_workers_spread": [min(speedups), max(speedups)],
        "cores": usable_cores(),
    }


# The driver


class Idler:
    """Takes the place of a labeler, and labels nothing."""

    def __init__(self) -> None:
        self.shards = self

    def unit(self, number: int) -> Unit:
        """Return a plan, as the shard set would."""
        return Unit(number, tuple(PhotoFile(f"{number}-{i}", f"/photos/{i}") for i in range(IMAGES)))

    def label_unit(self, unit: Unit, refused: Mapping[str, str]) -> Iterator[Event]:
        """Report at once."""
        yield UnitReport(unit.number, IMAGES, 90 * IMAGES, ())


class IdleWorker(Worker):
    """A worker that has no model."""

    def load(self) -> Any:
        """Return what labels nothing."""
        return Idler()


def resident_mb() -> float:
    """Return the memory of this process that is in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def drive(units: int, workers: int, address: str) -> tuple[float, float, float]:
    """Let the real pool hand out so many units.

    Returns its CPU seconds per unit, and its memory in MB after ``FEW`` units and at the end.
    """
    job = Job("/nowhere", "vit_micro", None, Runtime("cpu"), 1)
    planned = PlannedUnits(range(units), lambda number: IMAGES)
    first, few, done = 0.0, 0.0, 0
    for event in RayExecutor(job, Resources(workers, address, 0.0, 0.5), IdleWorker).run(planned, Stop()):
        if isinstance(event, UnitReport):
            first = first or time.process_time()
            done += 1
            few = resident_mb() if done == FEW else few
    assert done == units, "every unit is reported once"
    return (time.process_time() - first) / (done - 1), few, resident_mb()


def measure_driver(units: int, address: str) -> dict[str, Any]:
    """Compare the driver's memory after few units and after many, and its time per unit."""
    with Stage(f"driving {units} units of idle workers"):
        seconds, few, many = drive(units, 2, address)
    grown = many - few
    click.echo(f"driver: {few:.0f} MB after {FEW} units, {many:.0f} after {units}; {seconds * 1e3:.2f} ms CPU per unit")
    return {
        "driver_mb_per_1000_units": grown / (units - FEW) * 1000,
        "driver_cpu_ms_per_unit": seconds * 1e3,
        "driver_units": units,
    }


# The simulated cluster


def simulate_cluster(workers: int, units: int, unit_size: int, driver_seconds: float) -> tuple[float, float]:
    """Return the efficiency of a simulated cluster over so many units, start included, and its hours."""
    chance = random.Random(workers)
    started_late = [chance.gauss(0, 1) for _ in range(1000)]

    def seconds(assignment: Assignment) -> float:
        mean, deviation = unit_size * SECONDS_AN_IMAGE, SECONDS_AN_IMAGE * DEVIATION * unit_size**0.5
        images = unit_size if assignment.probe is None else len(assignment.probe)
        stall = min(LONGEST_STALL, chance.paretovariate(1.5) - 1) if chance.random() < STALL_SHARE else 0.0
        return max(1.0, (chance.gauss(mean, deviation) + stall * mean) * images / unit_size)

    def dies(assignment: Assignment) -> float | None:
        length = unit_size * SECONDS_AN_IMAGE
        lost = chance.random() < length / (HOURS_A_MACHINE_LASTS * 3600)
        return chance.uniform(0, length) if lost else None

    def start_seconds() -> float:
        return START_SECONDS * 2 ** (0.3 * chance.choice(started_late))

    cluster = Cluster(workers, seconds, dies, start_seconds, lambda: driver_seconds)
    with Stage(f"simulating {workers} workers"):
        outcome = simulate(Scheduler(range(units), lambda unit: unit_size), cluster)
    assert outcome.done == dict.fromkeys(range(units), 1), "every unit is done once"
    efficiency = outcome.busy_seconds / (workers * outcome.seconds)
    click.echo(
        f"{workers} workers, {units} units of {unit_size}: {outcome.seconds / 3600:.1f} h simulated, "
        f"{outcome.deaths} machines lost, efficiency {efficiency:.3f}"
    )
    return efficiency, outcome.seconds / 3600


@click.command()
@click.option("--quick", is_flag=True, help="Fewer photos, one repeat, fewer units.")
@exactness_option("Of the labelling.")
def main(quick: bool, exactness: Exactness) -> None:
    """Run all parts and print the figures."""
    os.environ[NICENESS] = "0"  # else workers yield to whatever runs beside them, and the serial run does not
    with cluster_of(2) as address:
        figures = measure_labelling(*((20, 1, 8, 2) if quick else (96, 3, 16, 4)), exactness, address)
        figures |= measure_driver(1_000 if quick else 10_000, address)
    driver_seconds = figures["driver_cpu_ms_per_unit"] / 1e3
    # SA-250K in units of 32, and SA-1B's 11 million images in units of 256
    figures["efficiency_64"], _ = simulate_cluster(64, 250_000 // 32, 32, driver_seconds)
    figures["efficiency_64_units_of_256"], _ = simulate_cluster(64, 250_000 // 256, 256, driver_seconds)
    figures["efficiency_512"], _ = simulate_cluster(512, 11_000_000 // 256, 256, driver_seconds)
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
