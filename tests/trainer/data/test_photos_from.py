"""Training from photos that moved: they are found where the recipe says, or the run does not begin."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from pydantic import TypeAdapter

from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.errors import ImageError, InputError, SettingsError
from sum_factory.shared.relocation import UNMOVED, Relocation
from sum_factory.shared.shards.dataset import unit_path
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.methods import METHODS
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.run.settings import CheckpointSettings
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit

SETTINGS = SampleSettings(side=128, stride=4, masks=2, seed=0)
OLD = "/gone/photos"
MakeRecipe = Callable[..., Recipe]


def open_pseudo(url: Path | str, photos_from: Relocation = UNMOVED) -> PseudoSet:
    return PseudoSet(open_shards(str(url), photos_from=photos_from), None, METHODS["vanilla"], SETTINGS)


def images_of(pseudo: PseudoSet) -> list[torch.Tensor]:
    return [pseudo.load(index, SampleId("pseudo", 0, index)).image for index in range(len(pseudo))]


def record_elsewhere(folder: str, copy: Path, old: str) -> Path:
    """Copy a shard set, and record its photos in ``old``."""
    shutil.copytree(folder, copy)
    shards = ShardSet.open(str(copy))
    for number in range(len(shards.dataset.unit_ids)):
        unit = shards.unit(number)
        images = [replace(image, url=f"{old}/{Path(image.url).name}") for image in unit.images]
        shards.storage.write(unit_path(number), replace(unit, images=tuple(images)).to_json())
    return copy


@pytest.fixture
def moved(known_shards: Any, tmp_path: Path) -> Path:
    """The known shards with photos that were labelled in ``OLD``, where nothing is any more."""
    return record_elsewhere(known_shards.url, tmp_path / "moved", OLD)


@pytest.fixture
def to_photos(known_shards: Any) -> Relocation:
    """From ``OLD`` to where the photos are."""
    return Relocation.of([(OLD, str(known_shards.photos))])


def test_samples_are_those_of_photos_that_never_moved(known_shards: Any, moved: Path, to_photos: Relocation) -> None:
    found, expected = open_pseudo(moved, to_photos), open_pseudo(known_shards.url)
    assert (found.identity, found.recorded) == (expected.identity, expected.recorded)
    for one, other in zip(images_of(found), images_of(expected), strict=True):
        assert torch.equal(one, other)


def test_photos_that_moved_are_missed_when_the_set_is_opened(moved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{OLD}/shot0\.png: cannot be read .*--photos-from OLD=NEW, such as {OLD}="):
        open_pseudo(moved)
    new = Relocation.of([(OLD, str(tmp_path / "empty"))])
    with pytest.raises(InputError, match=rf"{tmp_path}/empty/shot0\.png: cannot .* recorded at {OLD}/shot0\.png"):
        open_pseudo(moved, new)


@pytest.mark.parametrize("shot", ["shot0", "shot5", "shot8"])
def test_photo_of_the_first_the_middle_and_the_last_unit_is_looked_for(
    shot: str, known_shards: Any, moved: Path, tmp_path: Path
) -> None:
    photos = shutil.copytree(known_shards.photos, tmp_path / "photos")
    relocation = Relocation.of([(OLD, str(photos))])
    data = (photos / f"{shot}.png").read_bytes()
    (photos / f"{shot}.png").unlink()
    with pytest.raises(InputError, match=rf"{shot}\.png"):
        open_pseudo(moved, relocation)
    (photos / f"{shot}.png").write_bytes(data + b"\0")
    with pytest.raises(ImageError, match=rf"{shot}\.png: changed since it was labelled, or another photo"):
        open_pseudo(moved, relocation)


def test_old_place_of_no_photo_is_refused(moved: Path, to_photos: Relocation) -> None:
    wrong = Relocation.of([*to_photos.pairs, ("/gone/photo", "/new")])
    with pytest.raises(SettingsError, match=rf"at or below /gone/photo; the first is recorded at {OLD}/shot0\.png"):
        open_pseudo(moved, wrong)


def test_photos_of_merged_and_of_chosen_shards_are_found(
    known_shards: Any, known_halves: tuple[str, str], tmp_path: Path
) -> None:
    halves = [str(record_elsewhere(half, tmp_path / f"half{n}", f"/gone/{n}")) for n, half in enumerate(known_halves)]
    merge(halves, str(tmp_path / "all"), say=lambda line: None)
    relocation = Relocation.of([(f"/gone/{n}", str(known_shards.photos)) for n in range(2)])
    with pytest.raises(InputError, match=r"/gone/1/.*--photos-from"):
        open_pseudo(tmp_path / "all", Relocation.of(relocation.pairs[:1]))
    found, expected = (images_of(pseudo) for pseudo in (open_pseudo(tmp_path / "all", relocation),
                                                        open_pseudo(known_shards.url)))  # fmt: skip
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    select(str(tmp_path / "all"), str(tmp_path / "one"), Filter(images=("shot0",)))
    assert len(images_of(open_pseudo(tmp_path / "one", Relocation.of(relocation.pairs[:1])))) == 1


def test_run_goes_on_after_photos_moved(
    make_recipe: MakeRecipe, known_shards: Any, moved: Path, tmp_path: Path
) -> None:
    here = make_recipe(batch=2, rounds=1, steps=2, checkpoint=CheckpointSettings(every=1))
    there = replace(here, shards=str(moved), photos_from={OLD: str(known_shards.photos)})
    fit(here, tmp_path / "straight", say=lambda line: None)
    fit(replace(here, steps=1), tmp_path / "out", say=lambda line: None)
    fit(there, tmp_path / "out", say=lambda line: None)
    losses = [[step["loss"] for step in read_log(tmp_path / name)] for name in ("out", "straight")]
    assert losses[0] == losses[1]


def test_recipe_and_option_say_where_photos_lie(
    make_recipe: MakeRecipe, known_shards: Any, moved: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(shards=str(moved), steps=1, batch=2, rounds=1)
    data = TypeAdapter(Recipe).dump_python(recipe, mode="json")
    paths = {}
    for name, pairs in (("none", {}), ("own", {"${WAS}/photos": "${IS}"})):
        paths[name] = tmp_path / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump({**data, "photos_from": pairs}))

    def call(name: str, *options: str) -> tuple[int, str]:
        arguments = ["fit", "--recipe", str(paths[name]), "--out", str(tmp_path / f"out_{len(options)}"), *options]
        result = CliRunner().invoke(main, arguments)
        return result.exit_code, result.output

    status, output = call("none")
    assert status == 1
    assert "--photos-from OLD=NEW" in output
    assert not (tmp_path / "out_0" / "log.jsonl").exists()
    for name, *options in (
        ["none", f"--photos-from={OLD}={known_shards.photos}"],
        ["own", "--var=WAS=/gone", f"--var=IS={known_shards.photos}"],
        ["own", "--var=WAS=/a", "--var=IS=/b", f"--photos-from={OLD}={known_shards.photos}"],  # in the recipe's place
    ):
        status, output = call(name, *options)
        assert status == 0, output


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("/old=/new", "photos_from: expected"),
        ({"/old": 3}, "photos_from./old: expected"),
        ({"/old": ""}, "photos_from./old: expected"),
        ({"${NONE}": "/new"}, r"photos_from: \$\{NONE\} has no value"),
    ],
)
def test_wrong_value_in_a_recipe_is_named(make_recipe: MakeRecipe, tmp_path: Path, value: object, message: str) -> None:
    data = TypeAdapter(Recipe).dump_python(make_recipe(), mode="json")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**data, "photos_from": value}))
    with pytest.raises(SettingsError, match=message):
        read_settings(tmp_path / "recipe.yaml", Recipe, {})
