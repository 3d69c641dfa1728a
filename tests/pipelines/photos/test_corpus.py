"""Photos are made small once: masks lose what is thin, and what people drew stays beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from sum_factory.pipelines.microworld.coarse import Coarseness
from sum_factory.pipelines.photos.corpus import MASK_SIDE, PHOTO_SIDE, USABLE, file_of, open_photos
from sum_factory.shared.errors import SettingsDifferError
from sum_factory.trainer.data.sets import SetSettings, open_set


def test_kept_masks_are_those_of_people_and_the_coarse_ones_lack_the_rod(
    photo_set: SetSettings, tmp_path: Path
) -> None:
    photos, human = open_photos(tmp_path, [photo_set], Coarseness()), open_set(photo_set)
    assert len(photos) == 4 < len(human.keys)
    for index in range(len(photos)):
        kept, sample = photos.load(index), human.load(index)
        assert max(kept.image.shape) == PHOTO_SIDE
        assert max(kept.exact.shape) == max(kept.coarse.shape) == MASK_SIDE
        zoom = [small / large for small, large in zip(kept.exact.shape[1:], sample.masks.shape[1:], strict=True)]
        expected = ndimage.zoom(sample.masks[0].astype(float), zoom, order=1, mode="nearest", grid_mode=True) >= 0.5
        assert (kept.exact[0] ^ expected).mean() < 0.01
        lost = kept.exact[0] & ~kept.coarse[0]
        rod = kept.exact[0] & ~ndimage.binary_opening(kept.exact[0], iterations=6)
        assert lost.sum() > 0.5 * rod.sum() > 0
        assert (kept.coarse[0] & ~kept.exact[0]).mean() < 0.01
        assert kept.task == "salient"


def test_photos_that_are_there_stay_and_missing_ones_are_read_again(photo_set: SetSettings, tmp_path: Path) -> None:
    first = open_photos(tmp_path, [photo_set], Coarseness())
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    written = (tmp_path / file_of(0)).stat().st_mtime_ns
    (tmp_path / USABLE).unlink()
    (tmp_path / file_of(1)).unlink()
    again = open_photos(tmp_path, [photo_set], Coarseness())
    assert again == first
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert (tmp_path / file_of(0)).stat().st_mtime_ns == written


def test_photos_of_other_sets_or_coarseness_are_refused(photo_set: SetSettings, tmp_path: Path) -> None:
    open_photos(tmp_path, [photo_set], Coarseness())
    with pytest.raises(SettingsDifferError, match="sets"):
        open_photos(tmp_path, [replace(photo_set, limit=2)], Coarseness())
    with pytest.raises(SettingsDifferError, match="coarseness"):
        open_photos(tmp_path, [photo_set], Coarseness(open=3))


def test_identity_names_the_photos(photo_set: SetSettings, tmp_path: Path) -> None:
    corpora = [
        open_photos(tmp_path / name, [each], Coarseness())
        for name, each in (("a", photo_set), ("b", photo_set), ("c", replace(photo_set, limit=3)))
    ]
    assert corpora[0].identity == corpora[1].identity != corpora[2].identity
    assert np.array_equal(corpora[0].load(1).image, corpora[1].load(1).image)
