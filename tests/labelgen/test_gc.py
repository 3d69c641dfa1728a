"""``labelgen gc`` removes what runs that died have left, when it is old enough, and never anything else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from click.testing import CliRunner, Result

from labelgen.cli import main
from labelgen.run import RunSummary
from shared.commands import FAILED
from shared.shards.collect import left_overs, remove
from shared.shards.shard_set import ShardSet
from shared.storage import Storage

Snapshot = Callable[[Path], dict[str, str]]
OLD_HOURS = 25.0

TEMPORARIES = (
    ".partial-dataset.json-00ff",
    "units/.partial-000001.json-00ff",
    "masks/.partial-000001.tar-00ff",
    "manifest/masks/.partial-000001.parquet-00ff",
    "uncertainty/refinement/.partial-000001.tar-00ff",
    "manifest/uncertainty/refinement/.partial-000001.parquet-00ff",
    "uncertainty/gone/.partial-000001.tar-00ff",
)
UNCOMMITTED = ("masks/000001.tar", "uncertainty/refinement/000002.tar", "uncertainty/gone/000000.tar")
FOREIGN = ("notes.txt", "masks/notes.tar", "masks/1.tar", "masks/old/000001.tar", "photos/000001.tar",
           "photos/.partial-photo-00ff", "quarantine/now/masks/000001.tar", "units/000009.json")  # fmt: skip


def gc(shards: Path | str, *options: str) -> Result:
    return CliRunner().invoke(main, ["gc", "--shards", str(shards), *options], catch_exceptions=False)


def age(path: Path, hours: float) -> None:
    moment = time.time() - hours * 3600
    os.utime(path, (moment, moment))


@pytest.fixture
def littered(own_refined: Path) -> Path:
    """A refined shard set with left-over files of every kind, and files of other people; all of them old."""
    for name in (*TEMPORARIES, *FOREIGN, "uncertainty/gone/000000.tar"):
        (own_refined / name).parent.mkdir(parents=True, exist_ok=True)
        (own_refined / name).write_bytes(b"12345")
    (own_refined / "manifest/masks/000001.parquet").unlink()
    (own_refined / "manifest/uncertainty/refinement/000001.parquet").unlink()
    (own_refined / "uncertainty/refinement/000001.tar").unlink()
    (own_refined / "manifest/uncertainty/refinement/000002.parquet").unlink()
    for path in own_refined.rglob("*"):
        if path.is_file():
            age(path, OLD_HOURS)
    return own_refined


def test_exactly_the_left_over_files_go_and_each_is_named_with_its_size(littered: Path, snapshot: Snapshot) -> None:
    before = snapshot(littered)
    sizes = {name: (littered / name).stat().st_size for name in (*TEMPORARIES, *UNCOMMITTED)}
    result = gc(littered)
    assert result.exit_code == 0
    assert snapshot(littered) == {name: value for name, value in before.items() if name not in sizes}
    for name in TEMPORARIES:
        assert f"removed {name}: temporary file, 5 bytes\n" in result.stdout
    for name in UNCOMMITTED:
        assert f"removed {name}: data without a manifest, {sizes[name]} bytes\n" in result.stdout
    assert result.stdout.endswith(f"{len(sizes)} files, {sum(sizes.values())} bytes removed\n")
    assert gc(littered).stdout == "0 files, 0 bytes removed\n"


def test_dry_run_names_the_same_and_changes_nothing(littered: Path, snapshot: Snapshot) -> None:
    before = snapshot(littered)
    planned = gc(littered, "--dry-run").stdout
    assert snapshot(littered) == before
    assert planned.replace("would remove", "removed").replace("would be", "").replace("  ", " ") == gc(littered).stdout


def test_sound_shard_set_loses_nothing_however_old_it_is(own_refined: Path, snapshot: Snapshot) -> None:
    before = snapshot(own_refined)
    for path in own_refined.rglob("*"):
        age(path, 10_000)
    assert gc(own_refined, "--older-than=0").stdout == "0 files, 0 bytes removed\n"
    assert snapshot(own_refined) == before


def test_files_that_a_run_may_be_writing_are_left(littered: Path, snapshot: Snapshot) -> None:
    before = snapshot(littered)
    for name in (*TEMPORARIES, *UNCOMMITTED):
        age(littered / name, 23.9)
    result = gc(littered)
    assert result.stdout.startswith("0 files, 0 bytes removed\n10 files younger than 24 h were left")
    assert snapshot(littered) == before
    assert "10 files" in gc(littered, "--older-than=23.5").stdout
    assert set(before) - set(snapshot(littered)) == {*TEMPORARIES, *UNCOMMITTED}


def test_data_that_are_written_anew_or_committed_meanwhile_are_left(littered: Path, snapshot: Snapshot) -> None:
    shards = ShardSet.open(str(littered))
    found = {left.name: left for left in left_overs(shards)}
    age(littered / "masks/000001.tar", 0)
    (littered / "manifest/uncertainty/refinement/000002.parquet").write_bytes(b"committed")
    before = snapshot(littered)
    assert not remove(shards.storage, found["masks/000001.tar"])
    assert not remove(shards.storage, found["uncertainty/refinement/000002.tar"])
    assert snapshot(littered) == before
    (littered / TEMPORARIES[0]).unlink()
    assert remove(shards.storage, found[TEMPORARIES[0]])


def test_killed_run_can_be_cleared_up_and_repeated(
    littered: Path, photos: Path, refined: tuple[Path, RunSummary], label: Callable[..., RunSummary], refiner: str,
    snapshot: Snapshot,
) -> None:  # fmt: skip
    for name in FOREIGN:
        (littered / name).unlink()
    gc(littered)
    label(photos, littered, refiner=refiner)
    assert snapshot(littered) == snapshot(refined[0])


@pytest.fixture
def in_memory(littered: Path) -> Iterator[str]:
    """The littered shard set on a file system without time stamps that a test could set from outside."""
    filesystem, url = fsspec.filesystem("memory"), "memory://gc/shards"
    filesystem.put(f"{littered}/", "/gc/shards/", recursive=True)
    for file in filesystem.store.values():
        file.modified = datetime.now(UTC) - timedelta(hours=OLD_HOURS)
    yield url
    filesystem.store.clear()


def test_any_file_system_is_cleared_up(in_memory: str, littered: Path) -> None:
    there = set(Storage(in_memory).files())
    fsspec.filesystem("memory").store[f"/gc/shards/{TEMPORARIES[0]}"].modified = datetime.now(UTC)
    assert gc(in_memory).exit_code == 0
    assert there - set(Storage(in_memory).files()) == {*TEMPORARIES[1:], *UNCOMMITTED}
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
