"""Photos of a shard set with masks and maps as arrays, against a naive reading of the blobs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.uncertainty import decode_uncertainty
from sum_factory.shared.placement import resized_size
from sum_factory.shared.shards.selection.opened import open_shards

SIDE, HEIGHT, WIDTH = 128, 96, 128


def drawn(grid: Any, crop: tuple[int, int, int, int]) -> Any:
    """Bring a grid to the photo's size as SAM does, and put it where its crop is."""
    x0, y0, x1, y1 = crop
    rows, columns = resized_size(y1 - y0, x1 - x0, SIDE)
    square = F.pad(torch.from_numpy(grid)[None, None], (0, 32 - grid.shape[1], 0, 32 - grid.shape[0]), mode="replicate")
    square = F.interpolate(square, (SIDE, SIDE), mode="bilinear")[..., :rows, :columns]
    whole = np.zeros((HEIGHT, WIDTH), np.float32)
    whole[y0:y1, x0:x1] = F.interpolate(square, (y1 - y0, x1 - x0), mode="bilinear")[0, 0].numpy()
    return whole


@pytest.mark.parametrize("encoding", ["tar", "zarr"])
def test_every_photo_with_its_masks_and_maps(write_known: Callable[..., Any], tmp_path: Path, encoding: str) -> None:
    known = write_known(tmp_path / "labels", encoding)
    photos = list(open_shards(str(known.folder)))
    assert [photo.key for photo in photos] == [
        f"unit{n}/photo.{i}" for n, count in ((0, 3), (1, 3), (2, 2)) for i in range(count)
    ]
    masks = [mask for unit in known.units for mask in unit]
    assert sum(map(len, photos)) == len(masks) > 70
    (failed,) = [photo for photo in photos if photo.error is not None]
    assert failed.key == "unit1/photo.1"
    assert len(failed) == 0
    numbered = [(photo, k) for photo in photos for k in range(len(photo))]
    for (photo, k), mask in zip(numbered[::5], masks[::5], strict=True):
        assert np.array_equal(photo.mask(k), drawn(decode_label(mask.label), mask.crop_box) > 0)
        for layer, blob in (("refinement", mask.by_refiner), ("entropy", mask.by_entropy)):
            if not blob:
                assert photo.uncertainty(k, layer) is photo.refined(k, layer) is None
                assert np.isnan(photo.mean_u[layer][k])
                continue
            expected = decode_uncertainty(blob)
            assert np.allclose(photo.uncertainty(k, layer), drawn(expected.u, mask.crop_box), atol=1e-6)
            assert photo.mean_u[layer][k] == pytest.approx(mask.mean_u, abs=1e-6)
            refined = photo.refined(k, layer)
            assert (refined is None) == (layer == "entropy")
            if refined is not None:
                assert np.array_equal(refined, drawn(expected.refined, mask.crop_box) > 0)
