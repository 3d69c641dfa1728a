"""Damages of a shard set: each says which units of which layers it costs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.sets.repair import QUARANTINE

Snapshot = Callable[[Path], dict[str, str]]
Damage = Callable[[Path], object]

MASKS, MAPS, ENTROPY = "masks", "uncertainty/refinement", "uncertainty/entropy"
PLAN = "units/000001.json"


ARRAYS = {MASKS: ("label",), MAPS: ("u", "refined"), ENTROPY: ("u",)}


def tar(layer: str, unit: int = 1) -> str:
    return f"{layer}/{unit:06d}.tar"


def shards_of(layer: str, unit: int = 1) -> list[str]:
    return [f"{layer}.zarr/{array}/c.{unit}.0.0" for array in ARRAYS[layer]]


def manifest(layer: str, unit: int = 1) -> str:
    return f"manifest/{layer}/{unit:06d}.parquet"


def files(*layers: str, unit: int = 1) -> set[str]:
    return {name for layer in layers for name in (tar(layer, unit), manifest(layer, unit))}


def files_in_zarr(*layers: str, unit: int = 1) -> set[str]:
    return {name for layer in layers for name in (*shards_of(layer, unit), manifest(layer, unit))}


def repair(shards: Path | str, *options: str) -> Result:
    return CliRunner().invoke(main, ["repair", "--shards", str(shards), *options], catch_exceptions=False)


def without_quarantine(files: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in files.items() if not name.startswith(f"{QUARANTINE}/")}


def cut(name: str, length: int) -> Damage:
    return lambda shards: (shards / name).write_bytes((shards / name).read_bytes()[:length])


def flip(name: str, place: float) -> Damage:
    """Flip a bit at a place given as a share of the file."""

    def do(shards: Path) -> None:
        data = bytearray((shards / name).read_bytes())
        data[int(len(data) * place)] ^= 4
        (shards / name).write_bytes(data)

    return do


def lose(name: str) -> Damage:
    return lambda shards: (shards / name).unlink()


def copy(name: str, target: str) -> Damage:
    return lambda shards: shutil.copy(shards / name, shards / target)


def several(*damages: Damage) -> Damage:
    return lambda shards: [damage(shards) for damage in damages]


ALL = files(MASKS, MAPS, ENTROPY)
DAMAGES: dict[str, tuple[Damage, set[str]]] = {
    "masks cut": (cut(tar(MASKS), 700), ALL),
    "masks cut to nothing": (cut(tar(MASKS), 0), ALL),
    "masks flipped": (flip(tar(MASKS), 0.4), ALL),
    "masks lost": (lose(tar(MASKS)), ALL),
    "masks of another unit": (copy(tar(MASKS, 0), tar(MASKS)), ALL),
    "manifest of masks flipped": (flip(manifest(MASKS), 0.5), ALL),
    "manifest of masks of another unit": (copy(manifest(MASKS, 0), manifest(MASKS)), ALL),
    "maps cut": (cut(tar(MAPS), 512), files(MAPS)),
    "maps lost": (lose(tar(MAPS)), files(MAPS)),
    "manifest of maps flipped": (flip(manifest(MAPS), 0.9), files(MAPS)),
    "manifest of maps cut": (cut(manifest(MAPS), 5), files(MAPS)),
    "maps of the other layer flipped": (flip(tar(ENTROPY), 0.7), files(ENTROPY)),
    "plan flipped": (flip(PLAN, 0.5), {PLAN}),
    "plan of another unit": (copy("units/000000.json", PLAN), {PLAN}),
    "several": (
        several(flip(tar(MAPS, 0), 0.5), lose(tar(MASKS)), flip(PLAN, 0.1), cut(tar(ENTROPY, 2), 9)),
        {*ALL, PLAN, *files(MAPS, unit=0), *files(ENTROPY, unit=2)},
    ),
}  # fmt: skip


SELDOM = {
    "masks cut to nothing",
    "masks lost",
    "manifest of masks of another unit",
    "manifest of masks flipped",
    "maps lost",
    "manifest of maps cut",
    "maps of the other layer flipped",
    "refined masks lost",
}
"""Damages that differ from others by where they are alone: the long tests repair them, too."""


def often_or_long(damages: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.long] if name in SELDOM else []) for name in damages]


ALL_IN_ZARR = files_in_zarr(MASKS, MAPS, ENTROPY)
DAMAGES_IN_ZARR: dict[str, tuple[Damage, set[str]]] = {
    "masks cut": (cut(shards_of(MASKS)[0], 700), ALL_IN_ZARR),
    "index of masks flipped": (flip(shards_of(MASKS)[0], 0.999), ALL_IN_ZARR),
    "masks lost": (lose(shards_of(MASKS)[0]), ALL_IN_ZARR),
    "masks of another unit": (copy(shards_of(MASKS, 0)[0], shards_of(MASKS)[0]), ALL_IN_ZARR),
    "manifest of masks flipped": (flip(manifest(MASKS), 0.5), ALL_IN_ZARR),
    "maps flipped": (flip(shards_of(MAPS)[0], 0.2), files_in_zarr(MAPS)),
    "refined masks cut": (cut(shards_of(MAPS)[1], 100), files_in_zarr(MAPS)),
    "refined masks lost": (lose(shards_of(MAPS)[1]), files_in_zarr(MAPS)),
    "maps and refined masks exchanged": (copy(*shards_of(MAPS)), files_in_zarr(MAPS)),
    "several": (
        several(flip(shards_of(MAPS, 0)[0], 0.5), lose(shards_of(MASKS)[0]), cut(shards_of(ENTROPY, 2)[0], 9)),
        {*ALL_IN_ZARR, *files_in_zarr(MAPS, unit=0), *files_in_zarr(ENTROPY, unit=2)},
    ),
}
