"""Sizes of photos and masks that differ, and photos that EXIF turns; pixels are compared with Pillow's and NumPy's."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, LabelMapsSettings, open_set

WIDTH, HEIGHT = 100, 60


def save_photo(path: Path, orientation: int = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


def save_mask(path: Path, size: tuple[int, int]) -> np.ndarray[Any, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((size[1], size[0]), np.uint8)
    mask[5 : size[1] // 2, 7 : size[0] // 3] = 255
    Image.fromarray(mask).save(path)
    return mask > 0


def opened(folder: Path, **changes: Any) -> HumanSet:
    return open_set(FolderPairsSettings("folder-pairs", folder / "images", folder / "masks", "salient", **changes))


@pytest.mark.parametrize("size", [(102, 60), (98, 61), (99, 59)])
def test_masks_within_two_percent_are_resized_by_the_nearest_pixel_and_counted(
    size: tuple[int, int], tmp_path: Path
) -> None:
    save_photo(tmp_path / "images" / "a.png")
    mask = save_mask(tmp_path / "masks" / "a.png", size)
    found = opened(tmp_path)
    rows = ((np.arange(HEIGHT) + 0.5) * size[1] / HEIGHT).astype(int)
    columns = ((np.arange(WIDTH) + 0.5) * size[0] / WIDTH).astype(int)
    assert np.array_equal(found.load(0).masks[0], mask[rows][:, columns])
    assert any("the masks of 1 photos differ from them in size" in line for line in found.findings)


@pytest.mark.parametrize("size", [(103, 60), (100, 62), (60, 100), (50, 30)])
def test_masks_of_other_sizes_are_refused_by_name_or_left_out(size: tuple[int, int], tmp_path: Path) -> None:
    for name in "abc":
        save_photo(tmp_path / "images" / f"{name}.png")
        save_mask(tmp_path / "masks" / f"{name}.png", size if name == "b" else (WIDTH, HEIGHT))
    with pytest.raises(
        InputError, match=rf"images/b\.png: 100 x 60, but .*masks/b\.png {size[0]} x {size[1]}.*skip: pro"
    ):
        opened(tmp_path)
    found = opened(tmp_path, skip="problems")
    assert found.keys == ["a", "c"]
    assert any(line.startswith("left out 1 of 3 pairs") for line in found.findings)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("drawn", ["applied", "ignored"])
def test_masks_lie_on_the_photo_that_they_were_drawn_on(orientation: int, drawn: str, tmp_path: Path) -> None:
    for name, turn in (("a", orientation), ("b", 6)):  # by b, whose size tells, it is known how a was drawn
        save_photo(tmp_path / "images" / f"{name}.png", turn)
        turned = drawn == "applied" and turn >= 5
        save_mask(tmp_path / "masks" / f"{name}.png", (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
    sample = opened(tmp_path).load(0)
    with Image.open(tmp_path / "images" / "a.png") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored) if drawn == "applied" else stored)
        assert np.array_equal(sample.image, expected)
    assert sample.masks.shape[1:] == expected.shape[:2]


@pytest.mark.parametrize(("orientation", "size"), [(3, (WIDTH, HEIGHT)), (6, (HEIGHT, HEIGHT))])
def test_turn_that_nothing_tells_of_is_refused_until_it_is_said(
    orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    save_photo(tmp_path / "images" / "a.png", orientation, size)
    save_mask(tmp_path / "masks" / "a.png", size)
    with pytest.raises(InputError, match=rf"a\.png, orientation {orientation}; say `orientation: applied`"):
        opened(tmp_path)
    with Image.open(tmp_path / "images" / "a.png") as stored:
        as_stored, upright = np.asarray(stored), np.asarray(ImageOps.exif_transpose(stored))
    assert np.array_equal(opened(tmp_path, orientation="ignored").load(0).image, as_stored)
    assert np.array_equal(opened(tmp_path, orientation="applied").load(0).image, upright)


@pytest.mark.parametrize("drawn", [(WIDTH, HEIGHT), (HEIGHT, WIDTH)])
def test_size_in_a_coco_file_tells_the_turn(drawn: tuple[int, int], tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.jpg", 8)
    entry = {"id": 1, "file_name": "a.jpg", "width": drawn[0], "height": drawn[1]}
    annotation = {"id": 1, "image_id": 1, "segmentation": [[2, 3, 12, 3, 12, 13, 2, 13]]}
    (tmp_path / "coco.json").write_text(json.dumps({"images": [entry], "annotations": [annotation]}))
    sample = open_set(CocoSettings("coco", tmp_path / "coco.json", tmp_path / "images", "entity")).load(0)
    assert sample.image.shape[:2] == drawn[::-1]
    expected = np.zeros(drawn[::-1], bool)
    expected[3:13, 2:12] = True
    assert np.array_equal(sample.masks[0], expected)


def test_turned_tiff_has_the_size_that_pillow_turns_it_to(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.tif", 6)
    save_mask(tmp_path / "masks" / "a.png", (HEIGHT, WIDTH))
    sample = opened(tmp_path).load(0)
    with Image.open(tmp_path / "images" / "a.tif") as turned:
        turned.load()
        expected = np.asarray(ImageOps.exif_transpose(turned))
    assert np.array_equal(sample.image, expected)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif.tobytes().removeprefix(b"Exif\0\0")


def _xmp(orientation: int) -> bytes:
    return b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="%d"/>' % orientation


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("kind", "content"), [(b"eXIf", _exif), (b"iTXt", _xmp)])
def test_png_is_turned_alike_when_opened_and_when_read(
    orientation: int, is_late: bool, kind: bytes, content: Callable[[int], bytes], tmp_path: Path
) -> None:
    save_photo(tmp_path / "images" / "a.png")
    with Image.open(tmp_path / "images" / "a.png") as image:
        Image.fromarray(np.asarray(image)).save(tmp_path / "images" / "a.png")
    whole = (tmp_path / "images" / "a.png").read_bytes()
    before = whole.index(b"IEND" if is_late else b"IDAT") - 4
    data = whole[:before] + _chunk(kind, content(orientation)) + whole[before:]
    (tmp_path / "images" / "a.png").write_bytes(data)
    save_mask(tmp_path / "masks" / "a.png", (WIDTH, HEIGHT))
    if orientation == 3:
        with pytest.raises(InputError, match="orientation 3; say `orientation: applied` or `ignored`"):
            opened(tmp_path)
    with Image.open(io.BytesIO(data)) as image:
        stored = np.asarray(image.convert("RGB"))
        turned = np.asarray(ImageOps.exif_transpose(image))
    assert not np.array_equal(stored, turned)
    assert np.array_equal(opened(tmp_path, orientation="ignored").load(0).image, stored)
    save_mask(tmp_path / "masks" / "a.png", (turned.shape[1], turned.shape[0]))
    assert np.array_equal(opened(tmp_path, orientation="applied").load(0).image, turned)


@pytest.mark.parametrize("layout", [FolderPairsSettings, LabelMapsSettings])
def test_mask_that_has_another_size_since_its_set_was_opened_is_refused(layout: Any, tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    save_mask(tmp_path / "masks" / "a.png", (WIDTH, HEIGHT))
    kind = "folder-pairs" if layout is FolderPairsSettings else "label-maps"
    more = {} if layout is FolderPairsSettings else {"ignored": (0,)}
    found = open_set(layout(kind, tmp_path / "images", tmp_path / "masks", "salient", **more))
    save_mask(tmp_path / "masks" / "a.png", (WIDTH + 2, HEIGHT))
    assert found.load(0).masks.shape == (1, HEIGHT, WIDTH)
    save_mask(tmp_path / "masks" / "a.png", (WIDTH, 2 * HEIGHT))
    with pytest.raises(InputError, match=r"a\.png: 100 x 120, but its photo is 100 x 60; it has changed since"):
        _ = found.load(0).masks


def test_alpha_that_is_no_transparency_is_dropped_if_told(tmp_path: Path) -> None:
    save_mask(tmp_path / "masks" / "a.png", (WIDTH, HEIGHT))
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    assert np.array_equal(opened(tmp_path, photo_alpha="dropped").load(0).image, pixels[..., :3])
    assert not np.array_equal(opened(tmp_path).load(0).image, pixels[..., :3])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_photo_without_its_alpha_is_turned_by_exif_all_the_same(mode: str, tmp_path: Path) -> None:
    save_mask(tmp_path / "masks" / "a.png", (WIDTH, HEIGHT))
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, len(mode)), np.uint8)
    (tmp_path / "images").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png", exif=exif)
    colours = pixels[..., :3] if mode == "RGBA" else pixels[..., :1].repeat(3, 2)
    for orientation, expected in (("applied", colours[::-1, ::-1]), ("ignored", colours)):
        found = opened(tmp_path, photo_alpha="dropped", orientation=orientation).load(0).image
        assert np.array_equal(found, expected), orientation
