"""``labelgen gc`` removes what runs that died have left, when it is old enough, and never anything else."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.commands import FAILED
from sum_factory.shared.shards.collect import left_overs, remove
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage

Snapshot = Callable[[Path], dict[str, str]]
OLD_HOURS = 25.0

FOREIGN = ("notes.txt", "masks/notes.tar", "masks/1.tar", "masks/old/000001.tar", "pictures/000001.tar",
           "pictures/.partial-picture-00ff", "quarantine/now/masks/000001.tar", "units/000009.json",
           "masks.zarr/label/c.01.0.0", "masks.zarr/label/old/c.9.0.0", "pictures.zarr/jpeg/c.1.0",
           "quarantine/now/masks.zarr/label/c.9.0.0", "uncertainty/gone.zarr/u/notes.txt")  # fmt: skip
TEMPORARIES = (
    ".partial-dataset.json-00ff",
    "units/.partial-000001.json-00ff",
    "manifest/masks/.partial-000001.parquet-00ff",
    "manifest/uncertainty/refinement/.partial-000001.parquet-00ff",
)


@dataclass(frozen=True)
class Litter:
    """What is left over in a refined shard set of an encoding, and the data of maps that are gone altogether."""

    temporaries: tuple[str, ...]
    masks: tuple[str, ...]
    maps: tuple[str, ...]
    gone: tuple[str, ...]

    @property
    def uncommitted(self) -> tuple[str, ...]:
        return (*self.masks, *self.maps, *self.gone)

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.temporaries, *self.uncommitted)


LITTER = {
    "tar": Litter(
        (*TEMPORARIES, "masks/.partial-000001.tar-00ff", "uncertainty/refinement/.partial-000001.tar-00ff",
         "uncertainty/gone/.partial-000001.tar-00ff"),
        ("masks/000001.tar",),
        ("uncertainty/refinement/000002.tar",),
        ("uncertainty/gone/000000.tar",),
    ),
    "zarr": Litter(
        (*TEMPORARIES, "masks.zarr/.partial-zarr.json-00ff", "masks.zarr/label/.partial-c.1.0.0-00ff",
         "uncertainty/gone.zarr/u/.partial-c.1.0.0-00ff", "photos.zarr/jpeg/.partial-c.1.0-00ff"),
        ("masks.zarr/label/c.1.0.0",),
        ("uncertainty/refinement.zarr/u/c.2.0.0", "uncertainty/refinement.zarr/refined/c.2.0.0"),
        ("uncertainty/gone.zarr/u/c.0.0.0", "photos.zarr/jpeg/c.1.0"),
    ),
}  # fmt: skip


def gc(shards: Path | str, *options: str) -> Result:
    return CliRunner().invoke(main, ["gc", "--shards", str(shards), *options], catch_exceptions=False)


def age(path: Path, hours: float) -> None:
    moment = time.time() - hours * 3600
    os.utime(path, (moment, moment))


@pytest.fixture(params=LITTER)
def encoding(request: pytest.FixtureRequest) -> str:
    """Each encoding of the layers."""
    return str(request.param)


@pytest.fixture
def litter(encoding: str) -> Litter:
    """What is left over in ``littered``."""
    return LITTER[encoding]


@pytest.fixture(scope="session")
def refined_in(
    photos: Path, label: Callable[..., RunSummary], refiner: str, refined: tuple[Path, RunSummary],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:  # fmt: skip
    """The refined shard set in each encoding, which no test may change."""
    shards = tmp_path_factory.mktemp("zarr") / "shards"
    label(photos, shards, refiner=refiner, encoding="zarr")
    return {"tar": refined[0], "zarr": shards}


@pytest.fixture
def own(refined_in: dict[str, Path], encoding: str, tmp_path: Path) -> Path:
    """A copy of a refined shard set for a test to change."""
    return shutil.copytree(refined_in[encoding], tmp_path / "own")


@pytest.fixture
def littered(own: Path, litter: Litter) -> Path:
    """A refined shard set with left-over files of every kind, and files of other people; all of them old."""
    for name in (*litter.temporaries, *FOREIGN, *litter.gone):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(b"12345")
    (own / "manifest/masks/000001.parquet").unlink()
    (own / "manifest/uncertainty/refinement/000001.parquet").unlink()
    for name in litter.maps:
        (own / name.replace("000002", "000001").replace("c.2", "c.1")).unlink()
    (own / "manifest/uncertainty/refinement/000002.parquet").unlink()
    for path in own.rglob("*"):
        if path.is_file():
            age(path, OLD_HOURS)
    return own


def test_exactly_the_left_over_files_go_and_each_is_named_with_its_size(
    littered: Path, litter: Litter, snapshot: Snapshot
) -> None:
    before = snapshot(littered)
    sizes = {name: (littered / name).stat().st_size for name in litter.names}
    result = gc(littered)
    assert result.exit_code == 0
    assert snapshot(littered) == {name: value for name, value in before.items() if name not in sizes}
    for name in litter.temporaries:
        assert f"removed {name}: temporary file, 5 bytes\n" in result.stdout
    for name in litter.uncommitted:
        assert f"removed {name}: data without a manifest, {sizes[name]} bytes\n" in result.stdout
    assert result.stdout.endswith(f"{len(sizes)} files, {sum(sizes.values())} bytes removed\n")
    assert gc(littered).stdout == "0 files, 0 bytes removed\n"


def test_dry_run_names_the_same_and_changes_nothing(littered: Path, snapshot: Snapshot) -> None:
    before = snapshot(littered)
    planned = gc(littered, "--dry-run").stdout
    assert snapshot(littered) == before
    assert planned.replace("would remove", "removed").replace("would be", "").replace("  ", " ") == gc(littered).stdout


def test_sound_shard_set_loses_nothing_however_old_it_is(own: Path, snapshot: Snapshot) -> None:
    before = snapshot(own)
    for path in own.rglob("*"):
        age(path, 10_000)
    assert gc(own, "--older-than=0").stdout == "0 files, 0 bytes removed\n"
    assert snapshot(own) == before


def test_files_that_a_run_may_be_writing_are_left(littered: Path, litter: Litter, snapshot: Snapshot) -> None:
    before = snapshot(littered)
    for name in litter.names:
        age(littered / name, 23.9)
    result = gc(littered)
    assert result.stdout.startswith(f"0 files, 0 bytes removed\n{len(litter.names)} files younger than 24 h were left")
    assert snapshot(littered) == before
    assert f"{len(litter.names)} files" in gc(littered, "--older-than=23.5").stdout
    assert set(before) - set(snapshot(littered)) == set(litter.names)


def test_data_that_are_written_anew_or_committed_meanwhile_are_left(
    littered: Path, litter: Litter, snapshot: Snapshot
) -> None:
    shards = ShardSet.open(str(littered))
    found = {left.name: left for left in left_overs(shards)}
    age(littered / litter.masks[0], 0)
    (littered / "manifest/uncertainty/refinement/000002.parquet").write_bytes(b"committed")
    before = snapshot(littered)
    assert not remove(shards.storage, found[litter.masks[0]])
    for name in litter.maps:
        assert not remove(shards.storage, found[name])
    assert snapshot(littered) == before
    (littered / TEMPORARIES[0]).unlink()
    assert remove(shards.storage, found[TEMPORARIES[0]])


def test_killed_run_can_be_cleared_up_and_repeated(
    littered: Path, photos: Path, refined_in: dict[str, Path], label: Callable[..., RunSummary], refiner: str,
    snapshot: Snapshot, encoding: str,
) -> None:  # fmt: skip
    for name in FOREIGN:
        (littered / name).unlink()
    gc(littered)
    label(photos, littered, refiner=refiner, encoding=encoding)
    assert snapshot(littered) == snapshot(refined_in[encoding])


@pytest.fixture
def in_memory(littered: Path) -> Iterator[str]:
    """The littered shard set on a file system without time stamps that a test could set from outside."""
    filesystem, url = fsspec.filesystem("memory"), "memory://gc/shards"
    filesystem.put(f"{littered}/", "/gc/shards/", recursive=True)
    for file in filesystem.store.values():
        file.modified = datetime.now(UTC) - timedelta(hours=OLD_HOURS)
    yield url
    filesystem.store.clear()


def test_any_file_system_is_cleared_up(in_memory: str, littered: Path, litter: Litter) -> None:
    there = set(Storage(in_memory).files())
    fsspec.filesystem("memory").store[f"/gc/shards/{TEMPORARIES[0]}"].modified = datetime.now(UTC)
    assert gc(in_memory).exit_code == 0
    assert there - set(Storage(in_memory).files()) == {*litter.names} - {TEMPORARIES[0]}
    assert gc(littered).exit_code == 0


def test_folder_that_is_no_shard_set_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / ".partial-something").write_bytes(b"")
    age(tmp_path / ".partial-something", OLD_HOURS)
    result = gc(tmp_path)
    assert result.exit_code == FAILED
    assert "is no shard set" in result.stderr
    assert (tmp_path / ".partial-something").exists()


@pytest.mark.parametrize("option", ["--older-than=-1", "--older-than=soon"])
def test_senseless_age_is_refused(option: str, own_refined: Path) -> None:
    assert gc(own_refined, option).exit_code == 2
