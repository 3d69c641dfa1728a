"""Training from shard sets that were made apart is training from one that has the same in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.shared.sam.settings import WEIGHTS_FILE
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.store.cache import Cache
from sum_factory.trainer.data.order import Order
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.data.stream import PseudoStream
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.distributed import Ranks
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.training import fit, open_stream

SETTINGS = SampleSettings(side=128, stride=4, masks=2, seed=0)
MakeRecipe = Callable[..., Recipe]


def quiet(line: str) -> None:
    """Say nothing."""


def open_pseudo(url: str, method: str = "sum") -> PseudoSet:
    chosen = METHODS[method]
    return PseudoSet(open_shards(url), "refinement" if chosen.needs_uncertainty else None, chosen, SETTINGS)


def load_all(pseudo: PseudoSet) -> list[TrainingSample]:
    return [pseudo.load(index, SampleId("pseudo", 0, index)).on(torch.device("cpu")) for index in range(len(pseudo))]


def require_equal(found: list[TrainingSample], expected: list[TrainingSample]) -> None:
    for one, other in zip(found, expected, strict=True):
        for name, value in vars(other).items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(getattr(one, name), value), name
            else:
                assert getattr(one, name) == value, name


def order_of(recipe: Recipe) -> Order:
    stream = open_stream(recipe, 128, Ranks(0, 1, torch.device("cpu"))).streams["pseudo"]
    assert isinstance(stream, PseudoStream)
    return stream.order


@pytest.fixture
def merged(known_halves: tuple[str, str], tmp_path: Path) -> str:
    """The two halves of the known shards as one selection."""
    merge(known_halves, str(tmp_path / "merged"), say=quiet)
    return str(tmp_path / "merged")


@pytest.mark.parametrize("method", ["vanilla", "sum", "mask-refinement"])
def test_samples_are_those_of_one_shard_set(known_shards: Any, merged: str, method: str) -> None:
    expected = load_all(open_pseudo(known_shards.url, method))
    assert len(expected) == 7
    require_equal(load_all(open_pseudo(merged, method)), expected)


@pytest.mark.parametrize("method", ["vanilla", "sum", "mask-refinement"])
def test_samples_of_two_encodings_are_those_of_one_shard_set(
    known_shards: Any, known_halves: tuple[str, str], tmp_path: Path, method: str
) -> None:
    convert(known_halves[1], str(tmp_path / "arrays"), "zarr", quiet)
    merge([known_halves[0], str(tmp_path / "arrays")], str(tmp_path / "selection"), say=quiet)
    require_equal(
        load_all(open_pseudo(str(tmp_path / "selection"), method)), load_all(open_pseudo(known_shards.url, method))
    )


def test_samples_of_a_selection_on_an_object_store_come_through_the_cache(
    known_shards: Any, known_halves: tuple[str, str], tmp_path: Path, bucket: str, upload: Callable[[Path, str], None]
) -> None:
    convert(known_halves[1], str(tmp_path / "arrays"), "zarr", quiet)
    for name, folder in (("tars", known_halves[0]), ("arrays", tmp_path / "arrays")):
        upload(Path(folder), f"{bucket}/{name}")
    merge([f"{bucket}/tars", f"{bucket}/arrays"], f"{bucket}/selection", say=quiet)
    cache = Cache(tmp_path / "cache", 1 << 24)
    pseudo = PseudoSet(open_shards(f"{bucket}/selection", cache), "refinement", METHODS["sum"], SETTINGS)
    for group in range(len(pseudo.groups)):
        pseudo.bring(group, data=True)
    held = {path for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert len(held) > len(pseudo.groups)
    require_equal(load_all(pseudo), load_all(open_pseudo(known_shards.url)))
    assert {path for path in (tmp_path / "cache").rglob("*") if path.is_file()} == held


def test_order_is_that_of_the_data_wherever_they_lie(
    make_recipe: MakeRecipe, known_halves: tuple[str, str], merged: str, tmp_path: Path
) -> None:
    moved = [str(shutil.copytree(url, tmp_path / "moved" / Path(url).name)) for url in known_halves]
    merge(moved, str(tmp_path / "there"), say=quiet)
    here, there = order_of(make_recipe(shards=merged)), order_of(make_recipe(shards=str(tmp_path / "there")))
    assert here == there
    assert len(here) == 7
    merge(known_halves[::-1], str(tmp_path / "reversed"), say=quiet)
    assert order_of(make_recipe(shards=str(tmp_path / "reversed"))).identity != here.identity


def test_run_is_resumed_from_the_same_selection_alone(
    make_recipe: MakeRecipe, known_halves: tuple[str, str], merged: str, tmp_path: Path
) -> None:
    recipe = make_recipe(shards=merged, batch=2, rounds=2, steps=2, checkpoint=CheckpointSettings(every=1))
    fit(recipe, tmp_path / "straight", say=quiet)
    fit(replace(recipe, steps=1), tmp_path / "out", say=quiet)
    before = (tmp_path / "out" / WEIGHTS_FILE).read_bytes()
    select(merged, str(tmp_path / "fewer"), Filter(images=("shot[0-6]",)))
    merge(known_halves[::-1], str(tmp_path / "reversed"), say=quiet)
    for other in ("fewer", "reversed"):
        with pytest.raises(SettingsDifferError, match=r"(?s)settings or data.*  selection: .*another --out folder"):
            fit(replace(recipe, shards=str(tmp_path / other)), tmp_path / "out", say=quiet)
    assert (tmp_path / "out" / WEIGHTS_FILE).read_bytes() == before
    merge(known_halves, str(tmp_path / "deeper" / "same"), say=quiet)
    fit(replace(recipe, shards=str(tmp_path / "deeper" / "same")), tmp_path / "out", say=quiet)
    weights, expected = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("out", "straight"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    losses = [[step["loss"] for step in read_log(tmp_path / name)] for name in ("out", "straight")]
    assert losses[0] == losses[1]


def test_photo_that_two_runs_labelled_is_trained_on_once(
    known_shards: Any, known_halves: tuple[str, str], tmp_path: Path
) -> None:
    merge([known_halves[1], known_shards.url], str(tmp_path / "once"), keep="first", say=quiet)
    keys = [sample.key for sample in load_all(open_pseudo(str(tmp_path / "once")))]
    assert sorted(keys) == sorted(known_shards.masks)
    assert keys[:3] != sorted(keys)[:3]
