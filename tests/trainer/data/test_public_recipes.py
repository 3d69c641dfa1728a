"""Recipes and suites find the public sets that they name, and train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from miniatures.annotations import coco
from miniatures.cases import built, require_drawn
from miniatures.label_maps import maps
from miniatures.pairs import pairs
from miniatures.pictures import save_photo
from sum_factory.trainer.data.check import sets_of
from sum_factory.trainer.data.sets import PublicSettings, open_set
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit

PLACES = ("HQSEG44K", "ENTITYSEG", "DATA")
"""The variables of recipes and suites that hold sets; all of them are one folder here."""
OF_VARIANTS = {"hq_sam": "hq", "sum_hq": "hq", "sam_adapter": "sam-adapter", "lora": "lora", "adapter": "adapter"}
"""Recipes of variants on HQSeg-44K, and the variant of each."""


def named_in(recipe: str, root: Path) -> list[PublicSettings]:
    sets = sets_of(recipe, {place: str(root) for place in PLACES})
    return [settings for settings in sets if isinstance(settings, PublicSettings)]


@pytest.mark.parametrize("name", ["ft_medium", "paper14", "further8"])
def test_recipe_opens_all_its_sets_below_one_folder(name: str, tmp_path: Path) -> None:
    sets = named_in(name, tmp_path)
    assert len(sets) == {"ft_medium": 8, "paper14": 14, "further8": 8}[name]
    drawn = built([settings.set for settings in sets], tmp_path)
    for settings in sets:
        require_drawn(open_set(settings), drawn[settings.set])


@pytest.mark.parametrize("name", ["ft_small", "refiner_hqseg44k", *OF_VARIANTS])
def test_recipes_of_hqseg_are_of_the_same_sets(name: str, tmp_path: Path) -> None:
    parts = [settings for settings in named_in("ft_medium", tmp_path) if settings.task == "salient"]
    assert named_in(name, tmp_path) == parts
    assert sum(settings.published.photos or 0 for settings in parts) == 44_320, "as in the paper"


def test_ft_large_takes_the_three_kinds_of_layout(tmp_path: Path) -> None:
    pairs("salient/images", "salient/masks")(tmp_path)
    maps("part/images", "part/labels", {1: 0, 2: 4})(tmp_path)
    save_photo(tmp_path / "entity/images/e.jpg")
    coco(tmp_path / "entity/instances.json", {"e.jpg": [(0, 1), (1, 1)]})
    variables = {name: str(tmp_path / name.lower()) for name in ("SALIENT", "ENTITY", "PART")}
    found = {settings.name: open_set(settings) for settings in sets_of("ft_large", variables)}
    counts = {name: (len(human.keys), human.load(0).count) for name, human in found.items()}
    assert counts == {"salient": (3, 1), "entity": (1, 2), "part": (2, 2)}


@pytest.fixture(scope="module")
def training_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HQSeg-44K and EntitySeg, which no test may change."""
    root = tmp_path_factory.mktemp("published")
    built([settings.set for settings in named_in("ft_medium", root)], root)
    return root


@pytest.mark.parametrize("name", [*OF_VARIANTS, "ft_small", "ft_medium"])
def test_recipe_trains_on_its_sets_as_they_are_published(
    name: str, training_sets: Path, tiny_weights: str, known_shards: Any, tmp_path: Path
) -> None:
    variables = {"SAM": tiny_weights, "SHARDS": known_shards.url, **{place: str(training_sets) for place in PLACES}}
    small = ["steps=1", "batch=2", "micro_batch=2", "masks=1", "data_threads=1", "device=cpu", "precision=fp32"]
    recipe = read_settings(name, Recipe, variables, small)
    assert recipe.variant == OF_VARIANTS.get(name, "full")
    fit(recipe, tmp_path, say=lambda _: None)
    (line,) = read_log(tmp_path)
    assert line["masks"] == 2 or (recipe.method == "sum" and line["masks"] == 1), "labelled photos may have no mask"
    assert len(line["iou"]) == recipe.rounds
