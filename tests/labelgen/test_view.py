"""The page in one file: it has the photos, all their masks, and where these are doubtful, and no name runs in it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from page_content import embedded
from sum_factory.labelgen.page.drawing import DARKENED, heat_map
from sum_factory.labelgen.page.write import write_page
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet

Refined = tuple[Path, RunSummary]
ODD = "</script><img src=x onerror=alert(1)>"
"""The key of a photo `script><img ...` in a folder `<`."""


def picture(url: str) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",", 1)[1]))).convert("RGBA"))


def test_page_without_maps_has_photos_and_masks(finished: Refined, tmp_path: Path) -> None:
    shards = ShardSet.open(str(finished[0]))
    assert write_page(shards, tmp_path / "page.html", 9) == 6
    told = embedded(tmp_path / "page.html")
    rows = [image for _, image in shards.walk()]
    assert [photo["key"] for photo in told["photos"]] == [image.key for image in rows]
    assert [len(photo["masks"]) for photo in told["photos"]] == [len(image.masks) for image in rows]
    for photo, image in zip(told["photos"], rows, strict=True):
        assert picture(photo["picture"]).shape[:2] == (image.height, image.width)
        assert [mask["stability"] for mask in photo["masks"]] == [mask["stability"] for mask in image.masks]
        assert (photo["refined"], photo["doubt"]) == (None, None)
    assert told["about"]["sets"][0]["layers"] == []


def test_page_asks_for_nothing_else(refined: Refined, tmp_path: Path) -> None:
    write_page(ShardSet.open(str(refined[0])), tmp_path / "page.html", 1)
    text = (tmp_path / "page.html").read_text()
    places = json.loads(re.findall(r'<script type="importmap">(.*?)</script>', text)[0])["imports"]
    modules = {name: base64.b64decode(url.split(",", 1)[1]).decode() for name, url in places.items()}
    imported = {name for code in modules.values() for name in re.findall(r'from "([^"]+)"', code)}
    assert imported | {"viewer/main.js"} == set(modules)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert "<!--" not in text


def test_bright_is_where_the_largest_u_of_any_mask_is(refined: Refined, tmp_path: Path) -> None:
    shards = ShardSet.open(str(refined[0]))
    assert write_page(shards, tmp_path / "page.html", 9) == 6
    photos = iter(embedded(tmp_path / "page.html")["photos"])
    for number in shards.committed():
        for image, rows in zip(shards.images(number), shards.uncertainty(number), strict=True):
            told = next(photos)
            assert [mask["mean_u"] for mask in told["refined"]] == [row.mean_u for row in rows]
            opacity = picture(told["doubt"])[..., 3] / 255
            maps = torch.from_numpy(np.stack([m.u for m in shards.read_uncertainty(number, rows) if m is not None]))
            side = 4 * maps.shape[2] if image.width >= image.height else 4 * maps.shape[1]
            rough = interpolate(maps.amax(0)[None, None], scale_factor=4, mode="nearest")[0, 0]
            at = (np.stack(np.mgrid[0 : image.height, 0 : image.width]) * side / max(image.height, image.width)).astype(
                int
            )
            u = rough.numpy()[at[0], at[1]]
            assert opacity.shape == (image.height, image.width)
            assert u.max() > 0.2
            assert opacity[u > 0.2].mean() > 2 * opacity[u == 0].mean()


def test_layer_is_chosen_by_name(own_refined: Path, add_maps: Callable[..., RunSummary], tmp_path: Path) -> None:
    add_maps(own_refined, source="entropy")
    shards = ShardSet.open(str(own_refined))
    write_page(shards, tmp_path / "first.html", 1)
    write_page(shards, tmp_path / "entropy.html", 1, "entropy")
    first, entropy = (embedded(tmp_path / f"{name}.html") for name in ("first", "entropy"))
    assert [told["about"]["sets"][0]["layer"] for told in (first, entropy)] == ["refinement", "entropy"]
    assert any(mask["path"] for mask in first["photos"][0]["refined"])
    assert {mask["path"] for mask in entropy["photos"][0]["refined"]} == {None}
    with pytest.raises(ShardError, match="no layer 'uncertainty/other'"):
        write_page(shards, tmp_path / "other.html", 1, "other")
    assert not (tmp_path / "other.html").exists()


def test_units_without_maps_are_shown_without(own_refined: Path, tmp_path: Path) -> None:
    (own_refined / "manifest/uncertainty/refinement/000001.parquet").unlink()
    write_page(ShardSet.open(str(own_refined)), tmp_path / "page.html", 9)
    has = [photo["doubt"] is not None for photo in embedded(tmp_path / "page.html")["photos"]]
    assert has == [True, True, False, False, True, True]


def test_unknown_masks_have_no_map(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], add_maps: Callable[..., RunSummary]
) -> None:
    shards, elsewhere = tmp_path / "shards", tmp_path / "elsewhere.jpg"
    label(own_photos, shards, unit_size=6)
    (own_photos / "photo0.jpg").rename(elsewhere)
    unknown = add_maps(shards, source="entropy").unknown
    elsewhere.rename(own_photos / "photo0.jpg")
    write_page(ShardSet.open(str(shards)), tmp_path / "page.html", 9)
    first = embedded(tmp_path / "page.html")["photos"][0]
    assert [mask["mean_u"] for mask in first["refined"]] == [None] * unknown
    assert picture(first["doubt"])[..., 3].max() == 0


def test_a_name_is_never_a_script(own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary]) -> None:
    (own_photos / "<").mkdir()
    (own_photos / "photo0.jpg").rename(own_photos / f"{ODD}.jpg")
    shards = tmp_path / "<script>alert(2)"
    label(own_photos, shards)
    write_page(ShardSet.open(str(shards)), tmp_path / "page.html", 9)
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text
    assert "<script>alert" not in text
    assert ODD in {photo["key"] for photo in embedded(tmp_path / "page.html")["photos"]}


def test_heat_map_is_the_darkened_photo_where_u_is_0_and_grows_brighter_with_it() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    u = np.zeros((5, 6), np.float32)
    np.testing.assert_array_equal(heat_map(photo, u), np.rint(DARKENED * photo))
    grey = np.full((1, 6, 3), 100, np.uint8)
    brightness = heat_map(grey, np.array([[0.5, 0.6, 0.7, 0.8, 0.9, 1.0]], np.float32)).astype(float).mean(2)[0]
    assert (np.diff(brightness) > 0).all()
