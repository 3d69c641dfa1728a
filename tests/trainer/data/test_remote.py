"""Shards on an S3-compatible store train as local ones do, through copies on this machine's disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from sum_factory.shared.errors import SettingsError, ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.cache import COPY, Cache
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import CacheSettings, Recipe
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import open_stream

SETTINGS = SampleSettings(side=128, stride=4, masks=2, seed=0)
CPU = torch.device("cpu")
LONG = pytest.mark.long


def open_pseudo(url: str, cache: Cache | None, method: str = "sum") -> PseudoSet:
    layer = "refinement" if METHODS[method].needs_uncertainty else None
    return PseudoSet(ShardSet.open(url, cache), layer, METHODS[method], SETTINGS)


def load_all(pseudo: PseudoSet, epoch: int = 0) -> list[TrainingSample]:
    return [pseudo.load(index, SampleId("pseudo", epoch, index)).on(CPU) for index in range(len(pseudo))]


def require_equal(found: list[TrainingSample], expected: list[TrainingSample]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(other).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(one, name), value), name
            else:
                assert getattr(one, name) == value, name


@pytest.fixture
def remote(known_shards: Any, bucket: str, upload: Callable[[Path, str], None]) -> str:
    """The URL of a copy of the known shards."""
    upload(known_shards.folder, f"{bucket}/shards")
    return f"{bucket}/shards"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch, object_store: str) -> list[str]:
    """The names of what is read from the object store, in order."""
    store = fsspec.filesystem("s3")
    cat_file, names = store.cat_file, []

    def counted(path: str, *args: object, **kwargs: object) -> bytes:
        names.append(path.split("/shards/")[1])
        data: bytes = cat_file(path, *args, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", counted)
    return names


@pytest.mark.parametrize(
    ("method", "cached"), [("sum", True), ("mask-refinement", False), pytest.param("vanilla", True, marks=LONG)]
)
def test_samples_are_those_of_local_shards(
    known_shards: Any, remote: str, tmp_path: Path, method: str, cached: bool
) -> None:
    cache = Cache(tmp_path / "cache", 1 << 24) if cached else None
    here, there = open_pseudo(known_shards.url, None, method), open_pseudo(remote, cache, method)
    assert (there.identity, there.groups) == (here.identity, here.groups)
    require_equal(load_all(there), load_all(here))
    assert (tmp_path / "cache").exists() == cached


@pytest.mark.parametrize("cached", [pytest.param(True, marks=LONG), False])
def test_samples_in_zarr_are_those_of_local_shards(
    known_shards: Any, known_in_zarr: Any, bucket: str, upload: Callable[[Path, str], None], tmp_path: Path,
    cached: bool,
) -> None:  # fmt: skip
    upload(known_in_zarr.folder, f"{bucket}/zarr")
    cache = Cache(tmp_path / "cache", 1 << 24) if cached else None
    require_equal(load_all(open_pseudo(f"{bucket}/zarr", cache)), load_all(open_pseudo(known_shards.url, None)))


def test_every_file_is_read_once_whatever_the_epochs(
    known_shards: Any, remote: str, tmp_path: Path, reads: list[str]
) -> None:
    cache = Cache(tmp_path / "cache", 1 << 24)
    pseudo = open_pseudo(remote, cache)
    for epoch in range(3):
        load_all(pseudo, epoch)
    assert sorted(reads) == sorted(set(reads))
    before = list(reads)
    require_equal(load_all(open_pseudo(remote, Cache(tmp_path / "cache", 1 << 24))), load_all(pseudo))
    assert reads == before, "a second run reads copies alone"


def test_little_room_costs_reads_and_changes_nothing(known_shards: Any, remote: str, tmp_path: Path) -> None:
    limit = 20_000
    expected = load_all(open_pseudo(known_shards.url, None))
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", limit))
    for _ in range(2):
        require_equal(load_all(pseudo), expected)
    assert 0 < sum(path.stat().st_size for path in (tmp_path / "cache").iterdir()) <= limit


def test_damaged_copies_are_fetched_again(known_shards: Any, remote: str, tmp_path: Path) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", 1 << 24))
    load_all(pseudo)
    copies = [path for path in (tmp_path / "cache").iterdir() if path.suffix == COPY]
    for number, path in enumerate(copies):
        if number % 2:
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.write_bytes(path.read_bytes()[::-1])
    require_equal(load_all(pseudo), load_all(open_pseudo(known_shards.url, None)))


def test_shards_that_changed_are_not_trained_on(remote: str, tmp_path: Path) -> None:
    pseudo = open_pseudo(remote, Cache(tmp_path / "cache", 1 << 24))
    name = "masks/000000.tar"
    data = bytearray(Storage(remote).read(name))
    data[700] ^= 1
    Storage(remote).write(name, bytes(data))
    with pytest.raises(ShardError, match=rf"{remote}/{name}: its bytes do not have the SHA-256 of the manifest"):
        load_all(pseudo)


# Settings


def test_recipe_says_where_and_how_much(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    assert CacheSettings(tmp_path, 0.5).make() == Cache(tmp_path, 500_000_000)
    assert CacheSettings(tmp_path, 0).make() is None
    default = CacheSettings().make()
    assert default is not None
    assert default.limit_bytes == 20 * 10**9
    settings = read_settings("ft_small", Recipe, {"SAM": "a", "SHARDS": "b", "HQSEG44K": "c"}, ["cache.limit_gb=3"])
    assert settings.cache == CacheSettings(None, 3)
    with pytest.raises(SettingsError, match=r"cache\.limit_gb: expected a value greater than or equal to 0"):
        read_settings("ft_small", Recipe, {"SAM": "a", "SHARDS": "b", "HQSEG44K": "c"}, ["cache.limit_gb=-1"])
    assert make_recipe(cache=CacheSettings(tmp_path, 1)).identity() == make_recipe().identity()


def test_training_reads_remote_shards_through_the_recipes_cache(
    make_recipe: Callable[..., Recipe], remote: str, known_shards: Any, tmp_path: Path
) -> None:
    steps = {}
    for url in (known_shards.url, remote):
        recipe = make_recipe(shards=url, cache=CacheSettings(tmp_path / "cache"))
        steps[url] = list(open_stream(recipe, 128, Ranks(0, 1, torch.device("cpu"))).steps(0, 3))
    assert any(path.suffix == COPY for path in (tmp_path / "cache").iterdir())
    for here, there in zip(steps[known_shards.url], steps[remote], strict=True):
        require_equal(*([sample.on(CPU) for sample in step] for step in (there, here)))
