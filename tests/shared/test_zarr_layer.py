"""A layer in Zarr is plain Zarr v3: zarr-python reads it, and sees what is unknown as unknown."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from sum_factory.shared.codecs.embedding import decode_embedding
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.logits import decode_logits
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.codecs.uncertainty import decode_u
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS
from sum_factory.shared.shards.encodings import zarr_layer
from sum_factory.shared.shards.manifest import read_manifest, write_manifest
from sum_factory.shared.shards.verify import verify

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
        known = [k for k, blob in enumerate(known_zarr.blobs(layer, unit)) if blob]
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


def test_zarr_python_reads_the_same_logits(known_zarr: Any) -> None:
    array = zarr.open(known_zarr.folder / "logits.zarr", mode="r")["logits"]
    assert (array.shape, array.dtype) == ((3 * ROWS, 32, 32), np.float16)
    for unit in range(3):
        blobs = known_zarr.blobs(LOGITS, unit)
        found = array[unit * ROWS : unit * ROWS + len(blobs) + 70].astype(np.float32)
        for row, blob in enumerate(blobs):
            if blob:
                np.testing.assert_array_equal(found[row], decode_logits(blob))
        unknown = [row for row in range(len(found)) if row >= len(blobs) or not blobs[row]]
        assert np.isnan(found[unknown]).all()


def test_zarr_python_reads_the_same_embeddings(known_zarr: Any) -> None:
    array = zarr.open(known_zarr.folder / "embeddings.zarr", mode="r")["embeddings"]
    assert (array.shape, array.dtype) == ((3 * ROWS, 24, 8, 8), np.float16)
    for unit in range(3):
        blobs = known_zarr.blobs(EMBEDDINGS, unit)
        found = array[unit * ROWS : unit * ROWS + len(blobs) + 5].astype(np.float32)
        for row, blob in enumerate(blobs):
            np.testing.assert_array_equal(found[row], decode_embedding(blob))
        assert np.isnan(found[len(blobs) :]).all()


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


def test_zarr_python_reads_the_photos_and_zeros_where_there_is_none(known_zarr: Any) -> None:
    photos = zarr.open(known_zarr.folder / "images.zarr", mode="r")["jpeg"]
    assert (photos.shape, photos.shards) == ((3 * 64, 1 << 16), (64, 1 << 16))
    for unit, images in enumerate(((0, 1, 2), (0, 2), (0, 1))):
        rows = photos[unit * 64 : (unit + 1) * 64]
        for index, expected in zip(images, known_zarr.photos[unit], strict=True):
            assert rows[index, : len(expected)].tobytes() == expected
            assert not rows[index, len(expected) :].any()
        assert not np.delete(rows, images, axis=0).any()


@pytest.mark.parametrize("selection", [slice(0, 5), slice(60, 70), slice(3 * 1024 - 2, 3 * 1024 + 3), slice(1, 200, 7)])
@pytest.mark.parametrize(
    ("name", "absent"), [("masks.zarr/label", 0), ("uncertainty/entropy.zarr/u", 255), ("images.zarr/jpeg", 0)]
)
def test_zarr_python_writes_arrays_that_read_the_same(
    known_zarr: Any, tmp_path: Path, name: str, absent: int, selection: slice
) -> None:
    """An array that zarr-python wrote itself, with the same values and no sharding, is equal in any slice."""
    ours = zarr.open(known_zarr.folder / name, mode="r")
    values = ours[: 4 * 1024]
    theirs = zarr.create_array(tmp_path / "theirs", data=values, chunks=(16, *values.shape[1:]), fill_value=absent)
    np.testing.assert_array_equal(ours[selection], theirs[selection])
    np.testing.assert_array_equal(ours[selection][..., 3:20], theirs[selection][..., 3:20])


SHARD_INDEX = ROWS // 64 * 16 + 4


@pytest.mark.parametrize("place", [-3, -SHARD_INDEX - 100], ids=["of the shard", "of a group"])
def test_index_that_disagrees_with_the_manifest_is_found(
    write_known: Callable[[Path, str], Any], tmp_path: Path, place: int
) -> None:
    """Also where the manifest vouches for the bytes: as if whoever wrote both had been wrong."""
    known = write_known(tmp_path / "shards", "zarr")
    path, manifest = known.folder / "masks.zarr/label/c.1.0.0", known.folder / "manifest/masks/000001.parquet"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    table, record = read_manifest(manifest.read_bytes(), "")
    manifest.write_bytes(write_manifest(table, replace(record, data_sha256=hashlib.sha256(data).hexdigest())))
    found = [problem for check in verify(known.open()) for problem in check.problems]
    assert any(f"{path}: it is not what its chunks, at the places of the manifest" in problem for problem in found)


@pytest.mark.parametrize("side", [64, 1024])
def test_every_photo_fits(side: int, known_zarr: Any) -> None:
    """Noise of black and white takes the most bytes that a photo takes."""
    dataset = known_zarr.open().dataset
    sam = replace(dataset.layers["masks"], weights={"sam": {"image_size": side}})
    dataset = replace(dataset, layers={**dataset.layers, "masks": sam})
    encoder = zarr_layer.ZarrEncoder(dataset, dataset.layers["images"])
    noise = np.random.default_rng(0).integers(0, 2, (side, side, 3)) * 255
    (row,) = encoder.add("noise", [encode_photo(noise.astype(np.uint8))], {})
    assert row["photo_bytes"] < 3 * side * side
    (longest,) = encoder.form.arrays[0].cells
    with pytest.raises(ShardError, match=r"huge: .* does not fit into a row of the array jpeg.*encoding tar"):
        encoder.add("huge", [bytes(longest + 1)], {})


@pytest.mark.parametrize("content", [None, b"{}"])
def test_lost_or_changed_description_of_an_array_is_found(
    write_known: Callable[[Path, str], Any], tmp_path: Path, content: bytes | None
) -> None:
    known = write_known(tmp_path / "shards", "zarr")
    for name in ("masks.zarr", "masks.zarr/label", "uncertainty/refinement.zarr/refined", "images.zarr/jpeg"):
        path = known.folder / name / "zarr.json"
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        (problem,) = [problem for check in verify(known.open()) for problem in check.problems]
        assert problem.startswith(f"{path}: ")
        assert "running the same command again writes it anew" in problem
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
