"""A layer in Zarr is plain Zarr v3: zarr-python reads it, and sees what is unknown as unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from shared.errors import ShardError
from shared.label_codec import decode_label
from shared.shards import zarr_layer
from shared.shards.verify import verify
from shared.uncertainty_codec import decode_u

ROWS = 3 * 1024


@pytest.fixture(scope="module")
def known_zarr(write_known: Callable[[Path, str], Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The known shard set in Zarr, which no test may change."""
    return write_known(tmp_path_factory.mktemp("zarr") / "labels", "zarr")


@pytest.mark.parametrize(
    ("layer", "part", "absent"),
    [("masks", "label", 0), ("uncertainty/refinement", "u", 255), ("uncertainty/refinement", "refined", 0),
     ("uncertainty/entropy", "u", 255)],
)  # fmt: skip
def test_zarr_python_reads_the_same_codes(known_zarr: Any, layer: str, part: Any, absent: int) -> None:
    array = zarr.open(known_zarr.folder / f"{layer}.zarr", mode="r")[part]
    assert (array.shape, array.dtype) == ((3 * ROWS, 32, 32), np.uint8)
    reader = known_zarr.open().reader(layer)
    for unit, masks in enumerate(known_zarr.units):
        known = [k for k, frame in enumerate(known_zarr.frames(layer, unit)) if frame]
        codes = reader.read(unit, known, part)
        found = array[unit * ROWS : unit * ROWS + len(masks) + 70]
        for k, row in enumerate(known):
            height, width = codes.grid.shape[1:]
            np.testing.assert_array_equal(found[row, :height, :width], codes.grid[k])
            assert not found[row, height:].any()
            assert not found[row, :, width:].any()
        unknown = np.setdiff1d(np.arange(len(found)), known)
        assert (found[unknown] == absent).all()
        assert (array[(unit + 1) * ROWS - 1] == absent).all()


def test_codes_mean_what_the_arrays_say_they_mean(known_zarr: Any) -> None:
    labels = zarr.open(known_zarr.folder / "masks.zarr/label", mode="r")
    maps = zarr.open(known_zarr.folder / "uncertainty/entropy.zarr/u", mode="r")
    for row, mask in enumerate(known_zarr.units[1]):
        label = decode_label(mask.label)
        height, width = label.shape
        np.testing.assert_array_equal(labels[ROWS + row][:height, :width] >= 128, label > 0)
        if mask.by_entropy:
            np.testing.assert_allclose(maps[ROWS + row][:height, :width] / 250, decode_u(mask.by_entropy), atol=1e-6)
    assert "in the mask" in labels.attrs["meaning"]
    assert labels.metadata.dimension_names == ("mask", "row", "column")


@pytest.mark.parametrize("content", [None, b"{}"])
def test_lost_or_changed_description_of_an_array_is_found(
    write_known: Callable[[Path, str], Any], tmp_path: Path, content: bytes | None
) -> None:
    known = write_known(tmp_path / "shards", "zarr")
    for name in ("masks.zarr", "masks.zarr/label", "uncertainty/refinement.zarr/refined"):
        path = known.folder / name / "zarr.json"
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        (problem,) = [problem for check in verify(known.open()) for problem in check.problems]
        assert problem.startswith(f"{path}: ")
        path.write_bytes(before)


def test_unit_with_more_masks_than_there_is_room_for_is_refused(known_zarr: Any) -> None:
    dataset = replace(known_zarr.open().dataset, unit_size=1)
    encoder = zarr_layer.ZarrEncoder(dataset, dataset.layers["uncertainty/entropy"])
    assert len(encoder.add("first", [b""] * 1000, {})) == 1000
    with pytest.raises(ShardError, match="second: a unit has room for 1024 masks in Zarr"):
        encoder.add("second", [b""] * 25, {})
    encoder.add("third", [b""] * 24, {})
    (shard,) = encoder.finish()
    assert len(shard) == 1024 // 64 * 16 + 4
