"""Whichever file of a shard set is cut, flipped or lost, wherever: ``verify`` names it and says what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labelgen.run import RunSummary
from shared.errors import ShardError
from shared.shards.shard_set import ShardSet
from shared.shards.verify import verify

REMEDIES = ("restore it", "`labelgen repair` takes the unit back", "running the same command again replaces it")
FILES = (
    "dataset.json",
    *(f"units/00000{unit}.json" for unit in range(3)),
    *(f"{layer}/00000{unit}.tar" for layer in ("masks", "uncertainty/refinement") for unit in range(3)),
    *(f"manifest/{layer}/00000{unit}.parquet" for layer in ("masks", "uncertainty/refinement") for unit in range(3)),
)


def found(shards: Path) -> list[str]:
    """Return what ``verify`` finds, or why the shard set does not even open."""
    try:
        return [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems]
    except ShardError as error:
        return [str(error)]


def require_named(shards: Path, name: str) -> None:
    (problem, *_) = [problem for problem in found(shards) if problem.startswith(f"{shards}/{name}: ")]
    assert any(remedy in problem for remedy in REMEDIES), problem


@pytest.fixture(scope="module")
def damaged(refined: tuple[Path, RunSummary], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the refined shard set, which each test leaves as it was."""
    return shutil.copytree(refined[0], tmp_path_factory.mktemp("damaged") / "shards")


def test_these_are_all_files(damaged: Path) -> None:
    assert {str(path.relative_to(damaged)) for path in damaged.rglob("*") if path.is_file()} == set(FILES)
    assert found(damaged) == []


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_any_cut_and_any_flipped_bit_is_found(damaged: Path, name: str, share: float, bit: int, cut: bool) -> None:
    whole = (damaged / name).read_bytes()
    place = int(share * len(whole))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << bit
    (damaged / name).write_bytes(whole[:place] if cut else flipped)
    try:
        require_named(damaged, name)
    finally:
        (damaged / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES)
def test_any_lost_file_is_found(damaged: Path, name: str) -> None:
    """Of a manifest there is nothing left to name but its data."""
    whole = (damaged / name).read_bytes()
    (damaged / name).unlink()
    try:
        if name == "dataset.json":
            assert found(damaged)[0].startswith(f"{damaged}/dataset.json: missing")
        else:
            require_named(damaged, name.removeprefix("manifest/").replace(".parquet", ".tar"))
    finally:
        (damaged / name).write_bytes(whole)


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("unit", range(3))
def test_any_file_in_the_place_of_another_units_is_found(damaged: Path, name: str, unit: int) -> None:
    other = f"{name.rsplit('/', 1)[0]}/00000{unit}{Path(name).suffix}"
    if other == name:
        return
    whole = (damaged / name).read_bytes()
    shutil.copyfile(damaged / other, damaged / name)
    try:
        require_named(damaged, name)
    finally:
        (damaged / name).write_bytes(whole)
