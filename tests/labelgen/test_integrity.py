"""Whichever file of a shard set is cut, flipped or lost, wherever: ``verify`` names it and says what to do."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

REMEDIES = ("restore it", "`labelgen repair` takes the unit back", "running the same command again replaces it",
            "running the same command again writes it anew")  # fmt: skip
LAYERS = ("masks", "uncertainty/refinement", "images")
TARS = [f"{layer}/00000{unit}.tar" for layer in LAYERS for unit in range(3)]
ARRAYS = {
    "masks.zarr/label": "0.0",
    "uncertainty/refinement.zarr/u": "0.0",
    "uncertainty/refinement.zarr/refined": "0.0",
    "images.zarr/jpeg": "0",
}
DESCRIPTIONS = [f"{folder}/zarr.json" for folder in (*ARRAYS, *(f"{layer}.zarr" for layer in LAYERS))]
SHARDS = [f"{array}/c.{unit}.{zeros}" for array, zeros in ARRAYS.items() for unit in range(3)]
COMMON = [
    "dataset.json",
    *(f"units/00000{unit}.json" for unit in range(3)),
    *(f"manifest/{layer}/00000{unit}.parquet" for layer in LAYERS for unit in range(3)),
]
FILES = {"tar": (*COMMON, *TARS), "zarr": (*COMMON, *DESCRIPTIONS, *SHARDS)}
EVERY_FILE = [(encoding, name) for encoding, names in FILES.items() for name in names]


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
def damaged(
    request: pytest.FixtureRequest, whole_in: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of a shard set with every layer in an encoding, which each test leaves as it was."""
    return shutil.copytree(whole_in(request.param), tmp_path_factory.mktemp("damaged") / "shards")


@pytest.mark.parametrize(("damaged", "names"), FILES.items(), indirect=["damaged"], ids=FILES.keys())
def test_these_are_all_files(damaged: Path, names: tuple[str, ...]) -> None:
    assert {str(path.relative_to(damaged)) for path in damaged.rglob("*") if path.is_file()} == set(names)
    assert found(damaged) == []


@pytest.mark.parametrize(("damaged", "name"), EVERY_FILE, indirect=["damaged"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "flipped"])
def test_any_cut_and_any_flipped_bit_is_found(damaged: Path, name: str, cut: bool) -> None:
    """At a place that differs from file to file."""
    whole = (damaged / name).read_bytes()
    chance = random.Random(f"{name} {cut}")
    place = chance.randrange(len(whole))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << chance.randrange(8)
    (damaged / name).write_bytes(whole[:place] if cut else flipped)
    try:
        require_named(damaged, name)
    finally:
        (damaged / name).write_bytes(whole)


def data_of(manifest: str, names: tuple[str, ...]) -> list[str]:
    """Return the data files that a manifest commits."""
    layer, unit = manifest.removeprefix("manifest/").removesuffix(".parquet").rsplit("/", 1)
    return [
        name
        for name in names
        if name == f"{layer}/{unit}.tar" or re.match(rf"{layer}\.zarr/\w+/c\.{int(unit)}\.", name)
    ]


@pytest.mark.parametrize(("damaged", "name"), EVERY_FILE, indirect=["damaged"])
def test_any_lost_file_is_found(damaged: Path, name: str) -> None:
    """Of a manifest there is nothing left to name but its data."""
    names = FILES["zarr" if (damaged / "masks.zarr").exists() else "tar"]
    whole = (damaged / name).read_bytes()
    (damaged / name).unlink()
    try:
        if name == "dataset.json":
            assert found(damaged)[0].startswith(f"{damaged}/dataset.json: missing")
        elif name.startswith("manifest/"):
            assert data_of(name, names)
            for data in data_of(name, names):
                require_named(damaged, data)
        else:
            require_named(damaged, name)
    finally:
        (damaged / name).write_bytes(whole)


def of_unit(name: str, unit: int) -> str:
    """Return the name that a file has for another unit, which is its own if it is not of a unit."""
    return re.sub(r"/c\.\d\.", f"/c.{unit}.", re.sub(r"00000\d", f"00000{unit}", name))


EVERY_EXCHANGE = [
    (encoding, name, of_unit(name, unit))
    for encoding, name in EVERY_FILE
    for unit in range(3)
    if of_unit(name, unit) != name
]


@pytest.mark.parametrize(("damaged", "name", "other"), EVERY_EXCHANGE, indirect=["damaged"])
def test_any_file_in_the_place_of_another_units_is_found(damaged: Path, name: str, other: str) -> None:
    whole = (damaged / name).read_bytes()
    assert (damaged / other).read_bytes() != whole
    shutil.copyfile(damaged / other, damaged / name)
    try:
        require_named(damaged, name)
    finally:
        (damaged / name).write_bytes(whole)
