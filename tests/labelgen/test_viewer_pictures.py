"""Outlines and pictures of masks and photos are right: they are compared with upstream's way of enlarging, by torch."""

from __future__ import annotations

import io
import re

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from matplotlib.path import Path as Outline
from PIL import Image

from sum_factory.labelgen.page.drawing import colour_of
from sum_factory.labelgen.viewer.catalog import kind_of_error
from sum_factory.labelgen.viewer.outlines import PER_PIXEL, outline
from sum_factory.labelgen.viewer.pictures import at_size, decode_small, heat_png, size_within, with_masks
from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import decode_image
from sum_factory.shared.placement import Frame, paste

FRAMES = {
    "larger photo": (Frame.whole(128, 300, 400), (300, 400)),
    "smaller photo": (Frame.whole(128, 90, 60), (90, 60)),
    "crop": (Frame.crop(128, (40, 30, 240, 170)), (200, 300)),
    "very long photo": (Frame.whole(128, 20, 900), (20, 900)),
}


def rings(frame: Frame, seed: int) -> npt.NDArray[np.float32]:
    """Return smooth logits with a hole, parts and cells at the border, on the frame's own grid."""
    rows, columns = frame.interpolation_cells
    random = np.random.default_rng(seed)
    waves = random.normal(size=(rows, columns)).astype(np.float32)
    smooth = cv2.GaussianBlur(waves, (0, 0), 2.0)
    return np.asarray(smooth / np.abs(smooth).max() * 8 + 0.3, np.float32)


def at_photo(grid: npt.NDArray[np.float32], frame: Frame, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    return paste(frame.upsample(torch.from_numpy(grid)[None]), frame, *size)[0].numpy()


def filled(path: str, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centres an SVG path surrounds, an odd number of times."""
    inside = np.zeros(size, bool)
    centres = np.stack(np.mgrid[0 : size[0], 0 : size[1]][::-1], axis=-1).reshape(-1, 2) + 0.5
    for part in re.findall(r"M([^z]+)z", path):
        first, rest = part.split("l")
        points = np.array([first.split(), *np.array(rest.split()).reshape(-1, 2)], float).cumsum(0) / PER_PIXEL
        inside ^= Outline(np.vstack([points, points[:1]])).contains_points(centres).reshape(size)
    return inside


@pytest.mark.parametrize("name", FRAMES)
def test_an_outline_surrounds_the_mask(name: str) -> None:
    frame, size = FRAMES[name]
    for seed in range(3):
        grid = rings(frame, seed)
        logits = at_photo(grid, frame, size)
        mask, found = logits > 0, filled(outline(grid, frame), size)
        assert 0.05 < mask.mean() < 0.95
        kernel = np.ones((3, 3), np.uint8)
        border = cv2.dilate(mask.astype(np.uint8), kernel) != cv2.erode(mask.astype(np.uint8), kernel)
        assert not (found != mask)[~border].any()
        assert (found != mask).mean() < 0.02


def test_no_mask_has_no_outline_and_a_whole_one_that_of_the_photo() -> None:
    frame = Frame.whole(128, 90, 60)
    rows, columns = frame.interpolation_cells
    assert outline(np.full((rows, columns), -3, np.float32), frame) == ""
    assert filled(outline(np.full((rows, columns), 3, np.float32), frame), (90, 60)).all()


@pytest.mark.parametrize("name", FRAMES)
def test_maps_are_enlarged_as_upstream_does(name: str) -> None:
    frame, size = FRAMES[name]
    grid = rings(frame, 0)
    np.testing.assert_allclose(at_size(grid, frame, size, size), at_photo(grid, frame, size), atol=2e-3)


def test_a_heat_map_is_as_opaque_as_there_is_doubt() -> None:
    frame, size = FRAMES["larger photo"]
    maps = [np.clip(rings(frame, seed) / 8, 0, 1) for seed in (0, 1)]
    shown = size_within(size, 200)
    found = np.asarray(Image.open(io.BytesIO(heat_png([(u, frame) for u in maps], size, shown))).convert("RGBA"))
    expected = np.maximum(*(at_photo(u, frame, size) for u in maps))
    expected = cv2.resize(expected, shown[::-1], interpolation=cv2.INTER_AREA)
    assert found.shape[:2] == shown == (150, 200)
    assert np.abs(found[..., 3] / 255 - np.minimum(1, 2 * expected)).max() < 0.08


def test_masks_are_drawn_as_on_every_picture() -> None:
    frame, size = FRAMES["larger photo"]
    shown = size_within(size, 256)
    photo = np.random.default_rng(0).integers(0, 256, (*shown, 3), np.uint8)
    nothing = np.full(frame.interpolation_cells, -1, np.float32)
    grids = [rings(frame, 0), rings(frame, 1) - 2, nothing]
    expected = photo.astype(np.float32)
    masks = [at_size(grid, frame, size, shown) > 0 for grid in grids]
    for k in sorted(range(3), key=lambda k: -int(masks[k].sum())):
        draw_mask(expected, photo, masks[k], colour_of(7 + k))
    found = with_masks(photo, grids, [frame] * 3, [7, 8, 9], size)
    np.testing.assert_array_equal(found, expected.astype(np.uint8))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_small_photo_is_the_large_one_scaled_down(orientation: int) -> None:
    rows, columns = np.mgrid[0:600, 0:900]
    pixels = np.stack([rows // 3, columns // 4, (rows + columns) // 8], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("JPEG", "PNG"):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, exif=exif, quality=95)
        found = decode_small(file.getvalue(), "photo", 120)
        whole = decode_image(file.getvalue(), "photo")
        expected = cv2.resize(whole, (found.shape[1], found.shape[0]), interpolation=cv2.INTER_AREA)
        assert max(found.shape) == 120
        assert np.abs(found.astype(int) - expected).max() <= 6


def test_a_damaged_photo_is_an_error_in_words() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(file, "JPEG")
    with pytest.raises(ImageError, match="photo: damaged or cut short"):
        decode_small(file.getvalue()[: file.tell() // 2], "photo", 20)


@pytest.mark.parametrize(
    ("error", "key", "kind"),
    [
        ("/a: b/c.jpg: the file is empty (0 bytes); fetch it again", "c", "the file is empty"),
        (
            "s3://b/x/y.png: not an image of a known format; it starts with b'a'",
            "x/y~2",
            "not an image of a known format",
        ),
        ("/p/y.png: 9000 x 8000 is 72.5 megapixels, more than", "y", "N x N is N megapixels"),
        ("it went wrong", "y", "it went wrong"),
    ],
)
def test_errors_are_told_by_kind(error: str, key: str, kind: str) -> None:
    assert kind_of_error(error, key) == kind
