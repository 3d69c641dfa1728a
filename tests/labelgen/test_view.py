"""The page of pictures: where masks are doubtful it is bright, where nothing is known nothing is drawn."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from sum_factory.labelgen.page.write import DARKENED, heat_map, write_page
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet

Refined = tuple[Path, RunSummary]


def pictures(page: Path) -> list[dict[str, npt.NDArray[np.uint8]]]:
    """Return the pictures of each figure of a page, by name."""
    figures = page.read_text().split("<figure>")[1:]
    found = []
    for figure in figures:
        named = re.findall(r'src="data:image/jpeg;base64,([^"]+)" alt="([a-z ]+) of ', figure)
        found.append({name: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data, name in named})
    return found


def test_page_without_maps_shows_photos_and_masks(finished: Refined, tmp_path: Path) -> None:
    assert write_page(ShardSet.open(str(finished[0])), tmp_path / "page.html", 9) == 6
    assert {tuple(of_image) for of_image in pictures(tmp_path / "page.html")} == {("photo", "masks")}


def test_page_with_maps_shows_refined_masks_and_doubt_too(refined: Refined, tmp_path: Path) -> None:
    assert write_page(ShardSet.open(str(refined[0])), tmp_path / "page.html", 9) == 6
    shown = pictures(tmp_path / "page.html")
    assert {tuple(of_image) for of_image in shown} == {("photo", "masks", "refined masks", "uncertainty")}
    for of_image in shown:
        assert len({picture.shape for picture in of_image.values()}) == 1
    text = (tmp_path / "page.html").read_text()
    assert len(re.findall(r"mean u 0\.\d{3}", text)) == 6
    assert "of the layer refinement" in text


def test_bright_is_where_the_largest_u_of_any_mask_is(refined: Refined, tmp_path: Path) -> None:
    shards = ShardSet.open(str(refined[0]))
    write_page(shards, tmp_path / "page.html", 9)
    shown = iter(pictures(tmp_path / "page.html"))
    for number in shards.committed():
        for image, rows in zip(shards.images(number), shards.uncertainty(number), strict=True):
            picture = next(shown)["uncertainty"].astype(float).mean(2)
            maps = torch.from_numpy(np.stack([m.u for m in shards.read_uncertainty(number, rows) if m is not None]))
            side = 4 * maps.shape[2] if image.width >= image.height else 4 * maps.shape[1]
            rough = interpolate(maps.amax(0)[None, None], scale_factor=4, mode="nearest")[0, 0]
            scale = side / max(image.height, image.width)
            at = (np.stack(np.mgrid[0 : image.height, 0 : image.width]) * scale).astype(int)
            u = rough.numpy()[at[0], at[1]]
            assert picture.shape == (image.height, image.width)
            assert u.max() > 0.2
            assert picture[u > 0.2].mean() > picture[u == 0].mean()


def test_layer_is_chosen_by_name(own_refined: Path, add_maps: Callable[..., RunSummary], tmp_path: Path) -> None:
    add_maps(own_refined, source="entropy")
    shards = ShardSet.open(str(own_refined))
    write_page(shards, tmp_path / "first.html", 1)
    write_page(shards, tmp_path / "entropy.html", 1, "entropy")
    assert tuple(pictures(tmp_path / "first.html")[0]) == ("photo", "masks", "refined masks", "uncertainty")
    assert tuple(pictures(tmp_path / "entropy.html")[0]) == ("photo", "masks", "uncertainty")
    with pytest.raises(ShardError, match="no layer 'uncertainty/other'"):
        write_page(shards, tmp_path / "other.html", 1, "other")
    assert not (tmp_path / "other.html").exists()


def test_units_without_maps_are_shown_without(own_refined: Path, tmp_path: Path) -> None:
    (own_refined / "manifest/uncertainty/refinement/000001.parquet").unlink()
    write_page(ShardSet.open(str(own_refined)), tmp_path / "page.html", 9)
    assert [len(of_image) for of_image in pictures(tmp_path / "page.html")] == [4, 4, 2, 2, 4, 4]


def test_unknown_masks_are_counted_and_not_drawn(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary]
) -> None:
    shards, elsewhere = tmp_path / "shards", tmp_path / "elsewhere.jpg"
    label(own_photos, shards, unit_size=6)
    (own_photos / "photo0.jpg").rename(elsewhere)
    unknown = add_maps(shards, source="entropy").unknown
    elsewhere.rename(own_photos / "photo0.jpg")
    write_page(ShardSet.open(str(shards)), tmp_path / "page.html", 9)
    text = (tmp_path / "page.html").read_text()
    assert f"no maps, {unknown} unknown" in text
    first = pictures(tmp_path / "page.html")[0]
    np.testing.assert_allclose(first["uncertainty"], DARKENED * first["photo"].astype(float), atol=30)
    assert np.abs(first["uncertainty"] - DARKENED * first["photo"].astype(float)).mean() < 5


def test_heat_map_is_the_darkened_photo_where_u_is_0_and_grows_brighter_with_it() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    u = np.zeros((5, 6), np.float32)
    np.testing.assert_array_equal(heat_map(photo, u), np.rint(DARKENED * photo))
    grey = np.full((1, 6, 3), 100, np.uint8)
    brightness = heat_map(grey, np.array([[0.5, 0.6, 0.7, 0.8, 0.9, 1.0]], np.float32)).astype(float).mean(2)[0]
    assert (np.diff(brightness) > 0).all()
