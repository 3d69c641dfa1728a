"""``labelgen repair`` takes back exactly what is broken; the same commands then end with the undamaged bytes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from damages import (
    ALL,
    DAMAGES,
    DAMAGES_IN_ZARR,
    MAPS,
    MASKS,
    PLAN,
    Damage,
    Snapshot,
    cut,
    flip,
    lose,
    often_or_long,
    repair,
    tar,
    without_quarantine,
)
from sum_factory.labelgen.commands.check import TAKEN_BACK
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.repair import QUARANTINE
from sum_factory.shared.commands import FAILED
from sum_factory.shared.store.storage import Storage


@pytest.fixture(scope="session")
def whole(
    refined: tuple[Path, RunSummary], add_maps: Callable[..., RunSummary], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A shard set with masks and two layers of maps, which no test may change."""
    shards = shutil.copytree(refined[0], tmp_path_factory.mktemp("whole") / "shards")
    add_maps(shards, source="entropy")
    return shards


@pytest.fixture(scope="session")
def whole_in_zarr(
    photos: Path, label: Callable[..., RunSummary], refiner: str, add_maps: Callable[..., RunSummary],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:  # fmt: skip
    """The same shard set in Zarr, which no test may change."""
    shards = tmp_path_factory.mktemp("whole") / "zarr"
    label(photos, shards, refiner=refiner, encoding="zarr")
    add_maps(shards, source="entropy", encoding="zarr")
    return shards


@pytest.fixture
def own(whole: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(whole, tmp_path / "own")


@pytest.fixture
def make_again(
    photos: Path, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary], refiner: str
) -> Callable[..., None]:
    """``make_again(shards, encoding="tar")`` gives the commands again that made the shard set."""

    def make_again(shards: Path, encoding: str = "tar") -> None:
        label(photos, shards, refiner=refiner, encoding=encoding)
        add_maps(shards, source="entropy", encoding=encoding)

    return make_again


@pytest.mark.parametrize("damage", often_or_long(DAMAGES_IN_ZARR))
def test_what_is_broken_in_zarr_is_taken_back_and_made_again_bit_identical(
    whole_in_zarr: Path, tmp_path: Path, snapshot: Snapshot, make_again: Callable[..., None],
    problems: Callable[[Path], list[str]], damage: str,
) -> None:  # fmt: skip
    own = shutil.copytree(whole_in_zarr, tmp_path / "own")
    require_repair(own, *DAMAGES_IN_ZARR[damage], snapshot, problems)
    make_again(own, "zarr")
    assert without_quarantine(snapshot(own)) == snapshot(whole_in_zarr)
    assert repair(own).exit_code == 0


@pytest.mark.parametrize("name", ["masks.zarr/zarr.json", "uncertainty/refinement.zarr/refined/zarr.json"])
@pytest.mark.parametrize("damage", [lambda name: cut(name, 40), lose], ids=["cut", "lost"])
def test_description_of_an_array_is_left_to_the_command_that_writes_it_anew(
    whole_in_zarr: Path, tmp_path: Path, snapshot: Snapshot, make_again: Callable[..., None], name: str,
    damage: Callable[[str], Damage],
) -> None:  # fmt: skip
    own = shutil.copytree(whole_in_zarr, tmp_path / "own")
    damage(name)(own)
    result = repair(own)
    assert result.exit_code == FAILED
    assert f"left: {own}/{name}: " in result.stdout
    assert "running the same command again writes it anew" in result.stdout
    make_again(own, "zarr")
    assert snapshot(own) == snapshot(whole_in_zarr)


@pytest.mark.parametrize("damage", often_or_long(DAMAGES))
def test_what_is_broken_is_taken_back_and_made_again_bit_identical(
    own: Path, whole: Path, snapshot: Snapshot, make_again: Callable[..., None],
    problems: Callable[[Path], list[str]], damage: str,
) -> None:  # fmt: skip
    require_repair(own, *DAMAGES[damage], snapshot, problems)
    make_again(own)
    assert without_quarantine(snapshot(own)) == snapshot(whole)
    assert repair(own).exit_code == 0


def require_repair(
    own: Path, do: Damage, expected: set[str], snapshot: Snapshot, problems: Callable[[Path], list[str]]
) -> None:
    """Damage a shard set, and check that exactly the expected files are taken back."""
    do(own)
    damaged = snapshot(own)
    planned = repair(own, "--dry-run")
    assert snapshot(own) == damaged
    result = repair(own)
    assert (planned.exit_code, result.exit_code) == (TAKEN_BACK, TAKEN_BACK) == (3, 3)
    assert result.stdout.splitlines()[:-1] == [
        line.replace("would take back", "taking back") for line in planned.stdout.splitlines()[:-1]
    ]
    after = snapshot(own)
    assert without_quarantine(after) == {name: value for name, value in damaged.items() if name not in expected}
    aside = {name.split("/", 2)[2]: value for name, value in after.items() if name.startswith(f"{QUARANTINE}/")}
    assert aside == {name: value for name, value in damaged.items() if name in expected}
    assert PLAN in expected or problems(own) == []


def test_sound_shard_set_is_left_as_it_is(own: Path, snapshot: Snapshot) -> None:
    before = snapshot(own)
    result = repair(own)
    assert (result.exit_code, result.stdout) == (0, "sound, nothing to take back\n")
    assert snapshot(own) == before


def test_unfinished_shard_set_is_sound(own: Path) -> None:
    for name in ALL:
        (own / name).unlink()
    assert repair(own).exit_code == 0


def test_it_says_what_is_broken_and_how_to_make_it_again(own: Path) -> None:
    lose(tar(MASKS))(own)
    lose(tar(MAPS, 2))(own)
    lines = repair(own).stdout.splitlines()
    assert lines[0] == "taking back unit 000001 of uncertainty/entropy: its masks are taken back"
    assert lines[1] == "taking back unit 000001 of uncertainty/refinement: its masks are taken back"
    assert lines[2].startswith(f"taking back unit 000002 of uncertainty/refinement: {own}/{tar(MAPS, 2)}: missing")
    assert lines[3].startswith(f"taking back unit 000001 of masks: {own}/{tar(MASKS)}: missing")
    assert lines[4].startswith("4 broken, moved to quarantine/")
    assert lines[4].endswith(
        "the same `labelgen run`, then `labelgen uncertainty --layer-name entropy`, "
        "then `labelgen uncertainty --layer-name refinement`"
    )


def test_maps_alone_need_no_labelling(own: Path) -> None:
    lose(tar(MAPS))(own)
    assert repair(own).stdout.endswith("to make them again: the same `labelgen uncertainty --layer-name refinement`\n")


def test_repaired_twice_keeps_what_was_taken_back_first(own: Path, make_again: Callable[[Path], None]) -> None:
    for length in (3, 4):
        cut(tar(MAPS), length)(own)
        assert repair(own).exit_code == TAKEN_BACK
        make_again(own)
    assert sorted(path.stat().st_size for path in (own / QUARANTINE).rglob("*.tar")) == [3, 4]


class Interruption(BaseException):
    """What ends a repair in the middle."""


@pytest.mark.parametrize("moves", [0, 3, *(pytest.param(moves, marks=pytest.mark.long) for moves in (1, 2, 4, 5))])
def test_interrupted_repair_is_repeated(
    own: Path, whole: Path, snapshot: Snapshot, make_again: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch,
    moves: int,
) -> None:  # fmt: skip
    flip(tar(MASKS), 0.3)(own)
    move, moved = Storage.move, []

    def interrupted(self: Storage, name: str, target: str) -> None:
        if len(moved) == moves:
            raise Interruption
        moved.append(name)
        move(self, name, target)

    monkeypatch.setattr(Storage, "move", interrupted)
    with pytest.raises(Interruption):
        repair(own)
    monkeypatch.undo()
    repair(own)
    make_again(own)
    assert without_quarantine(snapshot(own)) == snapshot(whole)
    assert repair(own).exit_code == 0


def test_missing_plan_is_named_and_left_to_the_run_that_plans_it_anew(
    own: Path, whole: Path, snapshot: Snapshot, make_again: Callable[[Path], None]
) -> None:
    lose(PLAN)(own)
    before = snapshot(own)
    result = repair(own)
    assert result.exit_code == FAILED
    assert f"left: {own}/{PLAN}: missing" in result.stdout
    assert "give the same `labelgen run` again" in result.stdout
    assert snapshot(own) == before
    make_again(own)
    assert snapshot(own) == snapshot(whole)


@pytest.mark.parametrize(
    ("name", "remedy"), [(tar(MASKS), "running the same command again"), ("units/.partial-x", "`labelgen gc`")]
)
def test_left_over_files_are_named_and_left(own: Path, snapshot: Snapshot, name: str, remedy: str) -> None:
    if name == tar(MASKS):
        for other in ALL - {name}:
            (own / other).unlink()
    else:
        (own / name).write_bytes(b"half")
        os.utime(own / name, (0, 0))
    before = snapshot(own)
    result = repair(own)
    assert result.exit_code == FAILED
    assert f"left: {own}/{name}: " in result.stdout
    assert remedy in result.stdout
    assert snapshot(own) == before


@pytest.mark.parametrize(
    "damage", [flip("dataset.json", 0.5), cut("dataset.json", 100), lose("dataset.json")], ids=["flip", "cut", "lost"]
)
def test_damaged_dataset_file_is_named_and_its_remedy_works(
    own: Path, whole: Path, snapshot: Snapshot, make_again: Callable[[Path], None], damage: Damage
) -> None:
    damage(own)
    before = snapshot(own)
    result = repair(own)
    assert result.exit_code == FAILED
    assert f"error: {own}/dataset.json: " in result.stderr
    assert snapshot(own) == before
    if (own / "dataset.json").exists():
        assert "move it away and give the same commands again" in result.stderr
        (own / "dataset.json").unlink()
    make_again(own)
    assert snapshot(own) == snapshot(whole)


@pytest.mark.parametrize("size", [1, 6])
def test_dataset_file_of_another_shard_set_does_not_cost_all_units(
    own: Path, own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], snapshot: Snapshot, size: int
) -> None:
    (own_photos / "photo0.jpg").write_bytes((own_photos / "photo2.jpg").read_bytes())
    label(own_photos, tmp_path / "other", unit_size=size)
    shutil.copy(tmp_path / "other/dataset.json", own / "dataset.json")
    before = snapshot(own)
    result = repair(own)
    assert result.exit_code == FAILED
    assert snapshot(own) == before
    assert "no plan of a unit and nothing that is committed fits it" in result.stderr


@pytest.fixture
def in_memory(own: Path) -> Iterator[str]:
    """The shard set on a file system that cannot rename, nor be locked."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(f"{own}/", "/repair/shards/", recursive=True)
    yield "memory://repair/shards"
    filesystem.store.clear()


def test_any_file_system_is_repaired(
    in_memory: str, own: Path, photos: Path, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary],
    refiner: str,
) -> None:  # fmt: skip
    storage = Storage(in_memory)
    before: dict[str, Any] = {name: storage.read(name) for name in storage.files()}
    storage.write(tar(MASKS), b"damaged")
    assert repair(in_memory).exit_code == TAKEN_BACK
    kept = [name for name in storage.files() if not name.startswith(QUARANTINE)]
    assert set(before) - set(kept) == ALL
    label(photos, in_memory, refiner=refiner)
    add_maps(in_memory, source="entropy")
    after = {name: storage.read(name) for name in storage.files() if not name.startswith(QUARANTINE)}
    assert after == before
