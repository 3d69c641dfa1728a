"""A layer in Zarr is plain Zarr v3: zarr-python reads it, and sees what is unknown as unknown."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
import zarr

from sum_factory.shared.codecs.embedding import decode_embedding
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.logits import decode_logits
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.codecs.uncertainty import decode_u
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS
from sum_factory.shared.shards.encodings import zarr_layer, zarr_shards
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_shards import ShardWriter, describes_the_same, extents_in
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
    photos = zarr.open(known_zarr.folder / "photos.zarr", mode="r")["jpeg"]
    assert (photos.shape, photos.shards) == ((3 * 64, 1 << 16), (64, 1 << 16))
    for unit, images in enumerate(((0, 1, 2), (0, 2), (0, 1))):
        rows = photos[unit * 64 : (unit + 1) * 64]
        for index, expected in zip(images, known_zarr.photos[unit], strict=True):
            assert rows[index, : len(expected)].tobytes() == expected
            assert not rows[index, len(expected) :].any()
        assert not np.delete(rows, images, axis=0).any()


@pytest.mark.parametrize("selection", [slice(0, 5), slice(60, 70), slice(3 * 1024 - 2, 3 * 1024 + 3), slice(1, 200, 7)])
@pytest.mark.parametrize(
    ("name", "absent"), [("masks.zarr/label", 0), ("uncertainty/entropy.zarr/u", 255), ("photos.zarr/jpeg", 0)]
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


SHARD_INDEX, GROUP_INDEX = ROWS // 64 * 16 + 4, 64 * 16 + 4


def vouch_for(known: Any, change: Callable[[bytearray], object]) -> list[str]:
    """Change a shard and let the manifest vouch for it, as if whoever wrote both had been wrong; return problems."""
    path, manifest = known.folder / "masks.zarr/label/c.1.0.0", known.folder / "manifest/masks/000001.parquet"
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    table, record = read_manifest(manifest.read_bytes(), "")
    manifest.write_bytes(write_manifest(table, replace(record, data_sha256=hashlib.sha256(data).hexdigest())))
    problems = [problem for check in verify(known.open()) for problem in check.problems]
    return [problem.removeprefix(f"{path}: ") for problem in problems if problem.startswith(f"{path}: ")]


@pytest.mark.parametrize("place", [-3, -SHARD_INDEX - 100], ids=["of the shard", "of a group"])
def test_index_with_a_flipped_bit_is_found(write_known: Callable[[Path, str], Any], tmp_path: Path, place: int) -> None:
    def flip(data: bytearray) -> None:
        data[place] ^= 1

    (problem,) = vouch_for(write_known(tmp_path / "shards", "zarr"), flip)
    assert problem.startswith("its index is damaged")


def test_index_that_exchanges_two_masks_is_found(write_known: Callable[[Path, str], Any], tmp_path: Path) -> None:
    """Though it is sound in itself: zarr would read one mask as the other."""

    def exchange(data: bytearray) -> None:
        index = slice(len(data) - SHARD_INDEX - GROUP_INDEX, len(data) - SHARD_INDEX - 4)
        places = np.frombuffer(bytes(data[index]), np.uint64).reshape(64, 2).copy()
        places[[1, 2]] = places[[2, 1]]
        data[index] = places.tobytes()
        data[index.stop : index.stop + 4] = google_crc32c.value(places.tobytes()).to_bytes(4, "little")

    (problem,) = vouch_for(write_known(tmp_path / "shards", "zarr"), exchange)
    assert problem.startswith("its indexes do not place its chunks where the manifest does")


@pytest.mark.parametrize(
    "name",
    ["masks.zarr/label", "uncertainty/refinement.zarr/u", "uncertainty/refinement.zarr/refined", "photos.zarr/jpeg",
     "logits.zarr/logits", "embeddings.zarr/embeddings"],
)  # fmt: skip
def test_shards_are_those_that_zarr_writes(known_zarr: Any, tmp_path: Path, name: str) -> None:
    """By its own pipeline of codecs, all rows at once."""
    shutil.copytree(known_zarr.folder / name, tmp_path / "theirs", ignore=shutil.ignore_patterns("c.*"))
    ours, theirs = zarr.open(known_zarr.folder / name, mode="r"), zarr.open(tmp_path / "theirs", mode="r+")
    count = ours.shards[0]
    for unit in range(2):
        rows = slice(unit * count, unit * count + min(count, 128))
        theirs[rows] = ours[rows]
    written = sorted((tmp_path / "theirs").glob("c.*"))
    assert len(written) == 2
    for path in written:
        assert path.read_bytes() == (known_zarr.folder / name / path.name).read_bytes()


@pytest.mark.parametrize("rows", [1, 5, 64, 640])
def test_shard_does_not_depend_on_how_much_is_handed_to_zarr_at_once(
    monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    array = Array("any", (8, 8), ("mask", "row", "column"), "", fill=255)
    chance = np.random.default_rng(0)
    cells = [chance.integers(0, 2, (8, 8), np.uint8) if chance.random() < 0.7 else None for _ in range(300)]

    def made() -> bytes:
        writer = ShardWriter(array, 640)
        for row in cells:
            writer.add(row)
        return writer.finish()

    whole = made()
    monkeypatch.setattr(zarr_shards, "PIECE", rows * 64)
    assert made() == whole
    assert [length > 0 for _, length in extents_in(whole, 640, 300)] == [row is not None for row in cells] + [
        False
    ] * 20


def test_description_with_its_keys_in_another_order_is_sound(
    write_known: Callable[[Path, str], Any], tmp_path: Path
) -> None:
    """As another version of zarr might write it."""
    known = write_known(tmp_path / "shards", "zarr")
    for path in known.folder.rglob("zarr.json"):
        path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert [problem for check in verify(known.open()) for problem in check.problems] == []


@pytest.mark.parametrize("name", ["masks.zarr", "uncertainty/refinement.zarr/u", "embeddings.zarr/embeddings"])
def test_any_flipped_bit_of_a_description_is_found(known_zarr: Any, name: str) -> None:
    whole, chance = (known_zarr.folder / name / "zarr.json").read_bytes(), random.Random(name)
    assert describes_the_same(whole, whole)
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        assert not describes_the_same(whole, bytes(flipped)), bytes(flipped)


def test_known_mask_without_a_map_is_not_read_as_certain(
    write_known: Callable[[Path, str], Any], tmp_path: Path
) -> None:
    known = write_known(tmp_path / "shards", "zarr")
    manifest = known.folder / "manifest/uncertainty/entropy/000000.parquet"
    table, record = read_manifest(manifest.read_bytes(), "")
    rows = table.to_pylist()
    rows[5].update(offset=0, length=0, crc32=0)
    manifest.write_bytes(write_manifest(pa.Table.from_pylist(rows, table.schema.remove_metadata()), record))
    with pytest.raises(ShardError, match="a mask that is known has no u"):
        known.open().reader("uncertainty/entropy").read(0, [4, 5], "u")


@pytest.mark.parametrize("side", [64, 1024])
def test_every_photo_fits(side: int, known_zarr: Any) -> None:
    """Noise of black and white takes the most bytes that a photo takes."""
    dataset = known_zarr.open().dataset
    sam = replace(dataset.layers["masks"], weights={"sam": {"image_size": side}})
    dataset = replace(dataset, layers={**dataset.layers, "masks": sam})
    encoder = zarr_layer.ZarrEncoder(dataset, dataset.layers["photos"])
    noise = np.random.default_rng(0).integers(0, 2, (side, side, 3)) * 255
    encoder.add("noise", [encode_photo(noise.astype(np.uint8))], {})
    (row,) = encoder.finish()[1]
    assert row["photo_bytes"] < 3 * side * side
    (longest,) = encoder.layout.arrays[0].cells
    with pytest.raises(ShardError, match=r"huge: .* does not fit into a row of the array jpeg.*encoding tar"):
        encoder.add("huge", [bytes(longest + 1)], {})


@pytest.mark.parametrize("content", [None, b"{}"])
def test_lost_or_changed_description_of_an_array_is_found(
    write_known: Callable[[Path, str], Any], tmp_path: Path, content: bytes | None
) -> None:
    known = write_known(tmp_path / "shards", "zarr")
    for name in ("masks.zarr", "masks.zarr/label", "uncertainty/refinement.zarr/refined", "photos.zarr/jpeg"):
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
    encoder.add("first", [b""] * 1000, {})
    with pytest.raises(ShardError, match="second: a unit has room for 1024 masks in Zarr"):
        encoder.add("second", [b""] * 25, {})
    encoder.add("third", [b""] * 24, {})
    (shard,), rows = encoder.finish()
    assert len(shard) == 1024 // 64 * 16 + 4
    assert rows == [{"offset": 0, "length": 0, "crc32": 0}] * 1024
