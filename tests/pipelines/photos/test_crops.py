"""An image shows photo and masks in the same place, and what is pasted is where its target is."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.photos.corpus import KeptPhoto, PhotoCorpus, open_photos
from sum_factory.pipelines.photos.crops import LEAST_PIXELS, PADDING, Crop, draw_crop, draw_image, paste, visible
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.settings import PACKAGED
from sum_factory.trainer.data.sets import SetSettings

SIDES = (256, 128)


@pytest.fixture(scope="module")
def photos(photo_set: SetSettings, tmp_path_factory: pytest.TempPathFactory) -> PhotoCorpus:
    """The set of things, made small."""
    return open_photos(tmp_path_factory.mktemp("photos"), [photo_set], Coarseness())


def smooth(height: int, width: int) -> np.ndarray:
    """Return a smooth picture that tells left from right and top from bottom, float32 (H, W)."""
    x, y = (np.arange(width) + 0.5) / max(height, width), (np.arange(height) + 0.5) / max(height, width)
    return (100 * x[None] + 40 * np.sin(3 * y)[:, None]).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True])
def test_whole_crop_is_the_photo_scaled_and_padded_below_and_to_the_right(mirrored: bool) -> None:
    picture = smooth(64, 96)
    seen = Crop(0.0, 0.0, 1.0, 1.0, 0.0, mirrored).sample(picture, 48, -7.0)
    expected = cv2.resize(picture[:, ::-1] if mirrored else picture, (48, 32), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(seen[1:31, 1:47], expected[1:31, 1:47], atol=0.5)
    assert (seen[33:] == -7).all()


def test_a_crop_shows_the_rectangle_that_it_names_at_its_scale() -> None:
    picture = smooth(100, 80)
    seen = Crop(0.2, 0.3, 0.5, 0.8).sample(picture, 100)
    expected = cv2.resize(picture[30:80, 20:70], (100, 100), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(seen[2:-2, 2:-2], expected[2:-2, 2:-2], atol=0.05)


def test_a_turned_crop_is_turned_about_its_middle() -> None:
    picture = smooth(80, 80)
    plain, turned = (Crop(0.25, 0.25, 0.5, 1.0, turn).sample(picture, 41) for turn in (0.0, np.pi / 2))
    np.testing.assert_allclose(turned, np.rot90(plain), atol=0.05)


def test_images_show_things_where_their_masks_are(photos: PhotoCorpus) -> None:
    """Things are brighter than what is around them, in whatever colours: the coarse masks are nearly all bright."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        image, masks = draw_image(photos, seed % len(photos), SIDES, rng)
        assert image.shape == (256, 256, 3)
        assert image.dtype == np.float32
        assert masks.shape[1:] == (128, 128)
        assert (masks.sum((1, 2)) >= LEAST_PIXELS).all()
        grey = cv2.resize(image, (128, 128), interpolation=cv2.INTER_AREA).mean(2)
        inside = np.stack([cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for mask in masks])
        for mask in inside:
            assert (grey[mask] > 135).mean() > 0.97


def test_crops_differ_and_all_of_an_image_follows_from_its_seed(photos: PhotoCorpus) -> None:
    photo = photos.load(0)
    crops = {draw_crop(photo, np.random.default_rng(seed)) for seed in range(40)}
    assert len({crop.mirrored for crop in crops}) == 2
    assert sum(crop.side == 1 for crop in crops) == 2  # the whole photo, and mirrored
    first, second, other = (draw_image(photos, 0, SIDES, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


def test_padding_is_what_the_model_sees_as_nothing(photos: PhotoCorpus) -> None:
    sam = load_sam(PACKAGED).sam
    assert sam.pixel_mean.flatten().tolist() == pytest.approx(PADDING)
    drawn = [draw_image(photos, 0, SIDES, np.random.default_rng(seed))[0] for seed in range(20)]
    padded = [image for image in drawn if np.allclose(image[-1], PADDING)]
    assert padded
    assert (~visible(photos.load(0), Crop(0, 0, 1.0, 1.0), 256)).sum() == pytest.approx(256 * 256 * 0.4, rel=0.02)


def test_what_is_pasted_covers_what_was_there(photos: PhotoCorpus) -> None:
    donor = photos.load(2)
    flat, full = np.full((256, 256, 3), 10, np.float32), np.ones((1, 128, 128), bool)
    image, masks = paste(donor, flat, full, np.random.default_rng(1))
    changed = cv2.resize(np.abs(image - flat).max(2), (128, 128), interpolation=cv2.INTER_AREA) > 60
    assert len(masks) == 2
    assert not (masks[0] & masks[1]).any()
    assert (masks[0] | masks[1]).all()
    assert (changed & masks[1]).sum() > 0.95 * masks[1].sum()
    rod = changed & ~masks[1]
    assert 0 < rod.sum() < 0.25 * masks[1].sum()  # what people drew is pasted, the coarse mask is the target


def test_parts_and_backgrounds_are_not_pasted(photos: PhotoCorpus) -> None:
    kept = photos.load(0)
    flat, none = np.zeros((256, 256, 3), np.float32), np.zeros((0, 128, 128), bool)
    part = KeptPhoto(kept.image, kept.exact, kept.coarse, "part")
    background = KeptPhoto(kept.image, np.ones_like(kept.exact), np.ones_like(kept.coarse), "entity")
    for donor in (part, background):
        image, masks = paste(donor, flat, none, np.random.default_rng(0))
        assert not image.any()
        assert not len(masks)
