"""Measure how soon a run has a unit to label, and what its driver holds: planned from listings, and by hashing.

    python -m sum_factory.pipelines.bench.plan            # a store of 1,000,000 photos, a folder of 20,000: ten minutes
    python -m sum_factory.pipelines.bench.plan --quick    # of 20,000 and 1,000

The run is `labelgen run` itself, in a process of its own, with an executor that labels nothing: it notes when it gets
the first unit, and waits for the last. The store is made up (`parts/photo_store.py`) and lists pages as S3 does,
without the time that a network takes; the folder is one of small files. The reference reads every photo and takes its
SHA-256, in eight threads, before it has any unit. That both plan the same photos in the same order is checked.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from sum_factory.labelgen.engine.serial import SerialExecutor
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.job import Event, Units
from sum_factory.labelgen.run import run
from sum_factory.labelgen.run_settings import RunSettings
from sum_factory.pipelines.bench.parts.last_line import last_line
from sum_factory.pipelines.bench.parts.photo_store import bytes_of, name_of, open_store, photos_of

SIZE = 100_000
"""Bytes of a photo of the store, on average; those of SA-1B have more."""
SMALL = 2_000
THREADS = 8
MOST_SECONDS, MOST_MIB = 60.0, 1536.0


def plan_only(images: str, shards: str, begun: float) -> dict[str, float]:
    """Let a run plan, label nothing, and return what it took; ``begun`` is when its process was started."""
    found: dict[str, float] = {"started_s": time.monotonic() - begun}

    def wait_for_units(self: SerialExecutor, units: Units, stop: Stop) -> Iterator[Event]:
        for number in units.numbers():
            if number is None:
                time.sleep(0.01)
            elif "first_unit_s" not in found:
                found["first_unit_s"] = time.monotonic() - begun
        return iter(())

    SerialExecutor.run = wait_for_units  # type: ignore[method-assign]
    summary = run(RunSettings((images,), shards), say=lambda line: None)
    found["whole_plan_s"] = time.monotonic() - begun
    found["units"] = summary.units
    found["peak_mib"] = peak_mib()
    return found


def peak_mib() -> float:
    """Return the most memory that this process has held: not by getrusage, which knows what its parent held, too."""
    told = Path("/proc/self/status")
    if not told.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(next(line for line in told.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def measure(images: str, shards: Path, count: int) -> dict[str, float]:
    """Plan in a process of its own."""
    call = [sys.executable, "-m", __spec__.name, "--child", images, str(shards), str(count), str(time.monotonic())]
    done = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told


def planned(shards: Path) -> Iterator[tuple[str, int]]:
    """Yield key and size of all photos in the plans of the units, in order."""
    for path in sorted((shards / "units").iterdir()):
        for image in json.loads(path.read_text())["images"]:
            yield image["key"], image["size"]


def seconds_to_hash_store(count: int) -> float:
    """Return how long it takes to read and hash the photos of the store."""

    def hash_one(number: int) -> str:
        assert name_of(number)
        return hashlib.sha256(bytes_of(number, SIZE)).hexdigest()

    started = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        assert len(set(pool.map(hash_one, range(count)))) == count
    return time.monotonic() - started


def write_folder(folder: Path, count: int) -> None:
    """Write small files that look like photos by their names."""
    for number, (key, data) in enumerate(photos_of(count, SMALL)):
        path = folder / f"{key}.jpg"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def seconds_to_hash_folder(folder: Path) -> tuple[float, list[tuple[str, int]]]:
    """Return how long it takes to list a folder and to hash its files, and key and size of each."""
    started = time.monotonic()
    paths = sorted(path for path in folder.rglob("*.jpg"))

    def hash_one(path: Path) -> tuple[str, int, str]:
        data = path.read_bytes()
        return str(path.relative_to(folder).with_suffix("")), len(data), hashlib.sha256(data).hexdigest()

    with ThreadPoolExecutor(THREADS) as pool:
        hashed = list(pool.map(hash_one, paths))
    return time.monotonic() - started, [(key, size) for key, size, _ in hashed]


def compare_store(folder: Path, count: int) -> dict[str, Any]:
    """Compare both ways to plan the photos of the store."""
    found: dict[str, Any] = measure(open_store(count, SIZE), folder / "store", count)
    expected = ((key, len(data)) for key, data in photos_of(count, SIZE))
    found["same_photos"] = all(one == other for one, other in zip(planned(folder / "store"), expected, strict=True))
    hashing = seconds_to_hash_store(count)
    return {**found, **_ratio(hashing, found)}


def _ratio(hashing: float, found: dict[str, Any]) -> dict[str, float]:
    """Say how long the reference takes to have a unit, and how much longer that is, the start of Python left out."""
    planning = found["first_unit_s"] - found["started_s"]
    return {"hashing_s": hashing, "hashing_over_planning": hashing / planning}


def compare_folder(folder: Path, count: int) -> dict[str, Any]:
    """Compare both ways to plan the files of a folder."""
    write_folder(folder / "photos", count)
    found: dict[str, Any] = measure(str(folder / "photos"), folder / "shards", 0)
    hashing, expected = seconds_to_hash_folder(folder / "photos")
    found["same_photos"] = list(planned(folder / "shards")) == expected
    return {**found, **_ratio(hashing, found)}


@click.command()
@click.option("--quick", is_flag=True, help="A store of 20,000 photos, a folder of 1,000.")
@click.option("--child", nargs=4, default=None, hidden=True)
def main(quick: bool, child: tuple[str, str, str, str] | None) -> None:
    """Compare planning from listings with planning by hashing."""
    if child is not None:
        images, shards, count, begun = child
        if int(count):
            open_store(int(count), SIZE)
        click.echo(json.dumps(plan_only(images, shards, float(begun))))
        return
    in_store, in_folder = (20_000, 1_000) if quick else (1_000_000, 20_000)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "folder").mkdir()
        figures = {
            "store": {"photos": in_store, **compare_store(folder, in_store)},
            "folder": {"photos": in_folder, **compare_folder(folder / "folder", in_folder)},
        }
    for what, found in figures.items():
        click.echo(f"{what}: {', '.join(f'{name} {value:.6g}' for name, value in found.items())}")
        assert found["same_photos"], f"{what}: other photos were planned than are there, or in another order"
        assert found["first_unit_s"] < MOST_SECONDS, f"{what}: the first unit came late"
        assert found["peak_mib"] < MOST_MIB, f"{what}: the driver holds too much"
    click.echo(last_line(figures))


if __name__ == "__main__":
    main()
