"""Training reads masks that were imported, with maps of them, as it reads any others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sum_factory.labelgen.importing.run import import_masks
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.run import add_uncertainty
from sum_factory.labelgen.run_settings import UncertaintyRunSettings
from sum_factory.labelgen.settings import UncertaintySettings
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.masks import deepest_pixel
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.trainer.dry_run import rehearse
from sum_factory.trainer.evaluation.clicks import first_click
from sum_factory.trainer.recipe import Recipe


def test_step_is_taken_on_imported_masks_and_maps_of_them(
    make_recipe: Callable[..., Recipe], tiny_weights: str, tmp_path: Path
) -> None:
    photos, shards = tmp_path / "photos", str(tmp_path / "labels")
    photos.mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (96, 128, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{seed}.jpg")
        mask = np.zeros((96, 128), bool)
        mask[20:60, 30 : 70 + 10 * seed] = True
        scores: dict[str, Any] = {"predicted_iou": 0.9, "stability_score": 0.9, "point_coords": [[40, 40]]}
        image = {"file_name": f"{seed}.jpg", "height": 96, "width": 128}
        told = {"image": image, "annotations": [{"id": 1, "segmentation": encode_rle(mask), **scores}]}
        (photos / f"{seed}.json").write_text(json.dumps(told))
    asked = ImportSettings("sa1b", (str(photos),), (str(photos),), shards, sam=tiny_weights)
    assert import_masks(asked, lambda _: None).run.masks == 4
    maps = UncertaintySettings("label-confidence")
    settings = UncertaintyRunSettings(shards, sam=tiny_weights, uncertainty=maps, runtime=Runtime("cpu"))
    assert add_uncertainty(settings, lambda _: None).unknown == 0
    recipe = make_recipe(
        shards=shards, method="sum-confidence-uncer", uncertainty="label-confidence", batch=2, rounds=1
    )
    found = rehearse(recipe, tmp_path / "out", say=lambda _: None)
    assert "4 photos with 4 masks in" in found.lines()


@pytest.mark.parametrize("seed", range(8))
def test_deepest_pixel_is_where_evaluation_clicks_first(seed: int) -> None:
    random = np.random.default_rng(seed)
    mask = np.kron(random.random((7, 9)) < 0.5, np.ones((5, 4))).astype(bool)
    click = first_click(mask)
    assert deepest_pixel(mask) == (click.x, click.y)
