"""Whichever file of a shard set is cut, flipped or lost, wherever: ``verify`` names it and says what to do."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.verify import verify

REMEDIES = ("restore it", "`labelgen repair` takes the unit back", "running the same command again replaces it",
            "running the same command again writes it anew")  # fmt: skip
LAYERS = ("masks", "uncertainty/refinement", "photos")
UNITS = range(3)
ARRAYS = {
    "masks.zarr/label": "0.0",
    "uncertainty/refinement.zarr/u": "0.0",
    "uncertainty/refinement.zarr/refined": "0.0",
    "photos.zarr/jpeg": "0",
}
DESCRIPTIONS = tuple(f"{folder}/zarr.json" for folder in (*ARRAYS, *(f"{layer}.zarr" for layer in LAYERS)))


def of_units(name: str) -> tuple[str, ...]:
    """Return the files that a name with ``{}`` stands for, one of each unit."""
    return tuple(name.format(unit) for unit in UNITS)


PLANS = of_units("units/00000{}.json")
MANIFESTS = {layer: of_units(f"manifest/{layer}/00000{{}}.parquet") for layer in LAYERS}
TARS = {layer: of_units(f"{layer}/00000{{}}.tar") for layer in LAYERS}
SHARDS = {array: of_units(f"{array}/c.{{}}.{zeros}") for array, zeros in ARRAYS.items()}
KINDS = {
    "tar": (("dataset.json",), PLANS, *MANIFESTS.values(), *TARS.values()),
    "zarr": (("dataset.json",), PLANS, DESCRIPTIONS, *MANIFESTS.values(), *SHARDS.values()),
}
"""The files of a shard set in each encoding, those of a kind together: what is wrong with one hides no other."""
EVERY_KIND = [
    pytest.param(encoding, names, id=f"{encoding}-{names[0]}") for encoding in KINDS for names in KINDS[encoding]
]


def found(shards: Path) -> list[str]:
    """Return what ``verify`` finds, or why the shard set does not even open."""
    try:
        return [problem for check in verify(ShardSet.open(str(shards))) for problem in check.problems]
    except ShardError as error:
        return [str(error)]


def named(shards: Path, problems: list[str]) -> set[str]:
    """Return the files that problems name first."""
    return {problem.removeprefix(f"{shards}/").partition(": ")[0] for problem in problems}


def require_named(shards: Path, problems: list[str], names: Iterable[str]) -> None:
    """Check that these files and no others are named, each with what to do."""
    assert named(shards, problems) == {*names}, problems
    assert all(any(remedy in problem for remedy in REMEDIES) for problem in problems), problems


@contextmanager
def changed(shards: Path, change: Mapping[str, bytes | None]) -> Iterator[None]:
    """Give files other bytes, or take them away, meanwhile."""
    whole = {name: (shards / name).read_bytes() for name in change}
    for name, data in change.items():
        assert data != whole[name]
        (shards / name).unlink() if data is None else (shards / name).write_bytes(data)
    try:
        yield
    finally:
        for name, data in whole.items():
            (shards / name).write_bytes(data)


@pytest.fixture(scope="module")
def damaged(
    request: pytest.FixtureRequest, whole_in: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A copy of a shard set with every layer in an encoding, which each test leaves as it was."""
    return shutil.copytree(whole_in(request.param), tmp_path_factory.mktemp("damaged") / "shards")


@pytest.mark.parametrize(("damaged", "kinds"), KINDS.items(), indirect=["damaged"], ids=KINDS.keys())
def test_these_are_all_files(damaged: Path, kinds: tuple[tuple[str, ...], ...]) -> None:
    files = [str(path.relative_to(damaged)) for path in damaged.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(name for names in kinds for name in names)
    assert found(damaged) == []


@pytest.mark.parametrize(("damaged", "names"), EVERY_KIND, indirect=["damaged"])
@pytest.mark.parametrize("cut", [True, False], ids=["cut", "flipped"])
def test_any_cut_and_any_flipped_bit_is_found(damaged: Path, names: tuple[str, ...], cut: bool) -> None:
    """At a place that differs from file to file."""
    with changed(damaged, {name: cut_or_flipped((damaged / name).read_bytes(), name, cut) for name in names}):
        require_named(damaged, found(damaged), names)


def cut_or_flipped(whole: bytes, name: str, cut: bool) -> bytes:
    chance = random.Random(f"{name} {cut}")
    place = chance.randrange(len(whole))
    flipped = bytearray(whole)
    flipped[place] ^= 1 << chance.randrange(8)
    return whole[:place] if cut else bytes(flipped)


@pytest.mark.parametrize(("damaged", "names"), EVERY_KIND, indirect=["damaged"])
def test_any_lost_file_is_found(damaged: Path, names: tuple[str, ...]) -> None:
    """Of a manifest there is nothing left to name but its data; maps miss the manifests of their masks, too."""
    with changed(damaged, dict.fromkeys(names)):
        problems = found(damaged)
        if names == ("dataset.json",):
            assert problems[0].startswith(f"{damaged}/dataset.json: missing")
        elif names in MANIFESTS.values():
            of_data = [problem for problem in problems if "this unit is not in layer masks yet" not in problem]
            require_named(damaged, of_data, data_of(damaged, names))
        else:
            require_named(damaged, problems, names)


def data_of(shards: Path, manifests: tuple[str, ...]) -> set[str]:
    """Return the data files that manifests commit."""
    layer = manifests[0].removeprefix("manifest/").removesuffix("/000000.parquet")
    of_arrays = {name for names in SHARDS.values() for name in names if name.startswith(f"{layer}.zarr/")}
    return of_arrays if (shards / "masks.zarr").exists() else {*TARS[layer]}


EVERY_EXCHANGE = [
    pytest.param(encoding, names, turn, id=f"{encoding}-{names[0]}-{turn}")
    for encoding in KINDS
    for names in KINDS[encoding]
    if len(names) == len(UNITS)
    for turn in (1, 2)
]


@pytest.mark.parametrize(("damaged", "names", "turn"), EVERY_EXCHANGE, indirect=["damaged"])
def test_any_file_in_the_place_of_another_units_is_found(damaged: Path, names: tuple[str, ...], turn: int) -> None:
    others = names[turn:] + names[:turn]
    with changed(damaged, {name: (damaged / other).read_bytes() for name, other in zip(names, others, strict=True)}):
        require_named(damaged, found(damaged), names)
