"""Labelling and training beside other work: one busy process on every core, against none.

    python -m pipelines.bench.contention [--quick] [--repeats N]

Each command is run undisturbed and beside the busy processes, in turn, each time as a process of its own with its start
included (``pipelines.bench.machine --quick`` leaves the start out). A fair kernel gives it half of every core then, so
twice the time is what cannot be helped; more is time in which it waits for itself, and more processor time is waiting
that keeps a core busy. The last line is a JSON object: medians of time and of processor time (user and system, of all
processes) beside others over those without.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sum_factory.labelgen.run import add_uncertainty, run
from sum_factory.labelgen.run_settings import RunSettings, UncertaintyRunSettings
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.demo.plan import HUMAN_SEED, POOL_SEED
from sum_factory.pipelines.microworld.sets import write_sets
from sum_factory.pipelines.microworld.textures import photo_paths
from sum_factory.shared.automask.settings import settings_for
from sum_factory.shared.sam.settings import PACKAGED

BUSY = "import os\nos.sched_setaffinity(0, [{core}])\nwhile True: pass"


@dataclass(frozen=True)
class Usage:
    """Seconds that a command took, and seconds of processor time that it and its children took."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Contended:
    """Medians of a command: undisturbed, and beside one busy process per core."""

    alone: Usage
    beside: Usage

    @property
    def wall_ratio(self) -> float:
        """How many times as long the command takes beside others."""
        return self.beside.wall / self.alone.wall

    @property
    def cpu_ratio(self) -> float:
        """How many times as much processor time the command takes beside others."""
        return self.beside.cpu / self.alone.cpu


Work = Callable[[Path], Usage]
"""Does something once, given an empty folder for what it writes, and says what it took."""


def measure_contention(work: Work, repeats: int) -> Contended:
    """Do ``work`` undisturbed and beside others, in turn. Raises what it raises."""
    alone, beside = [], []
    for _ in range(repeats):
        alone.append(_in_empty_folder(work))
        with busy_cores():
            beside.append(_in_empty_folder(work))
    return Contended(_median(alone), _median(beside))


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core that this process may run on busy with one other process."""
    processes = [
        subprocess.Popen([sys.executable, "-c", BUSY.format(core=core)]) for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


def run_and_measure(command: Sequence[str]) -> Usage:
    """Run a command to its end. Raises ``subprocess.CalledProcessError``, with what it said, if it fails."""
    with TemporaryDirectory() as folder, (Path(folder) / "said").open("w+b") as said:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise subprocess.CalledProcessError(process.returncode, command, said.read())
    return Usage(wall, usage.ru_utime + usage.ru_stime)


def _in_empty_folder(work: Work) -> Usage:
    with TemporaryDirectory() as folder:
        return work(Path(folder))


def _median(usages: Sequence[Usage]) -> Usage:
    return Usage(statistics.median(one.wall for one in usages), statistics.median(one.cpu for one in usages))


def labelling(photos: Path, points: int) -> Work:
    """Return the work of the command that labels ``photos`` with the packaged SAM."""
    start = [
        sys.executable,
        "-m",
        "sum_factory.labelgen.cli",
        "run",
        f"--images={photos}",
        f"--points-per-side={points}",
    ]
    return lambda out: run_and_measure([*start, "--device=cpu", f"--shards={out / 'shards'}"])


def labelling_here(photos: Path, points: int) -> Work:
    """Return the same work without a process's start: it is done in this one."""

    def work(out: Path) -> Usage:
        automask = settings_for(PACKAGED, points_per_side=points)
        settings = RunSettings((str(photos),), str(out / "shards"), automask=automask)
        wall, cpu = time.perf_counter(), time.process_time()
        run(settings, say=lambda line: None)
        return Usage(time.perf_counter() - wall, time.process_time() - cpu)

    return work


def training(data: Path, steps: int) -> Work:
    """Return the work of the command that trains SUM on what ``prepare_training`` made, in fp32."""
    start = [
        sys.executable,
        "-m",
        "sum_factory.trainer.cli",
        "fit",
        "--recipe=microworld",
        "--device=cpu",
        "--precision=fp32",
    ]
    start += [f"--var=SHARDS={data / 'shards'}", f"--var=SCENES={data / 'human'}", "--set=method=sum-confidence-uncer"]
    start += [f"--set=steps={steps}", f"--set=checkpoint.every={steps}", "--set=optimizer.warmup=2"]
    return lambda out: run_and_measure([*start, f"--out={out / 'sum'}"])


def prepare_photos(folder: Path, count: int) -> None:
    """Link ``count`` photos of the scikit-image wheel into ``folder``."""
    folder.mkdir(parents=True)
    for photo in photo_paths()[:count]:
        (folder / photo.name).symlink_to(photo)


def prepare_training(folder: Path, scenes: int) -> None:
    """Write a few scenes, their labels with SAM's own confidence, and scenes with human masks."""
    write_sets(folder / "pool", POOL_SEED, scenes)
    write_sets(folder / "human", HUMAN_SEED, 2 * scenes)
    settings = settings_for(PACKAGED, points_per_side=8, pred_iou_thresh=0.5, stability_score_thresh=0.5)
    shards = str(folder / "shards")
    run(RunSettings((str(folder / "pool" / "images"),), shards, automask=settings), say=lambda line: None)
    add_uncertainty(
        UncertaintyRunSettings(shards, uncertainty=UncertaintySettings("confidence")), say=lambda line: None
    )


def figures_of(name: str, measured: Contended) -> dict[str, float]:
    """Return what a measurement says, for the JSON object."""
    return {
        f"{name}_seconds": round(measured.alone.wall, 2),
        f"{name}_cpu_seconds": round(measured.alone.cpu, 2),
        f"{name}_contended_seconds": round(measured.beside.wall, 2),
        f"{name}_contended_wall_ratio": round(measured.wall_ratio, 2),
        f"{name}_contended_cpu_ratio": round(measured.cpu_ratio, 2),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Two photos with 16 x 16 points, two steps, once.")
@click.option("--repeats", default=3, show_default=True)
def main(quick: bool, repeats: int) -> None:
    """Measure labelling and training beside other work."""
    photos, points, scenes, steps, repeats = (2, 16, 4, 2, 1) if quick else (6, 32, 10, 3, repeats)
    figures: dict[str, Any] = {}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepare_photos(folder / "photos", photos)
        prepare_training(folder / "data", scenes)
        works = {"label": labelling(folder / "photos", points), "fit": training(folder / "data", steps)}
        for name, work in works.items():
            figures |= figures_of(name, measure_contention(work, repeats))
    for key in ("wall", "cpu"):
        figures[f"contended_{key}_ratio"] = max(figures[f"{name}_contended_{key}_ratio"] for name in works)
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
