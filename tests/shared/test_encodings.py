"""What every encoding of a layer must do: the same values, the same blobs, the same refusals."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.shared.codecs.embedding import decode_embedding
from sum_factory.shared.codecs.label import decode_label
from sum_factory.shared.codecs.logits import decode_logits
from sum_factory.shared.codecs.uncertainty import decode_u, refined_label
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, PHOTOS
from sum_factory.shared.shards.kinds.kind import Plane
from sum_factory.shared.shards.manifest import crop_of, manifest_path
from sum_factory.shared.shards.photos import read_photo
from sum_factory.shared.shards.sam_outputs import (
    are_logits_known,
    kept_crops,
    read_embedding,
    read_full_logits,
)
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_images import UnitImage, add_unit_image, read_unit_images
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.storage import Storage

REFINEMENT, ENTROPY = "uncertainty/refinement", "uncertainty/entropy"
LAYERS = (MASKS, REFINEMENT, ENTROPY, LOGITS, EMBEDDINGS, PHOTOS)
PLANES: tuple[tuple[str, Plane], ...] = ((MASKS, "label"), (REFINEMENT, "u"), (REFINEMENT, "refined"), (ENTROPY, "u"))
DECODE: dict[Plane, Callable[[bytes], npt.NDArray[np.float32]]] = {
    "label": decode_label,
    "u": decode_u,
    "refined": lambda blob: decode_label(refined_label(blob)),
}


@pytest.fixture
def own_set(known_set: Any, tmp_path: Path) -> Any:
    """A copy of the known set for a test to change."""
    return replace(known_set, folder=shutil.copytree(known_set.folder, tmp_path / "own"))


def problems(shards: ShardSet) -> list[str]:
    return [problem for check in verify(shards) for problem in check.problems]


def known_rows(known_set: Any, layer: str, unit: int) -> list[int]:
    return [k for k, blob in enumerate(known_set.blobs(layer, unit)) if blob]


def files_of(known_set: Any, layer: str, unit: int) -> list[Path]:
    return [known_set.folder / name for name in known_set.open().data_files(unit, layer)]


@pytest.mark.parametrize(("layer", "plane"), PLANES)
def test_masks_are_read_as_the_plain_decoders_read_their_blobs(known_set: Any, layer: str, plane: Plane) -> None:
    reader = known_set.open().reader(layer)
    for unit, masks in enumerate(known_set.units):
        rows = np.random.default_rng(unit).permutation(known_rows(known_set, layer, unit))
        codes = reader.read(unit, rows, plane)
        assert len(codes) == len(rows)
        assert (len(rows) > 0) == (len(masks) > 0)
        for k, row in enumerate(rows):
            expected = DECODE[plane](known_set.blobs(layer, unit)[row])
            found = codes.values(k)
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
            height, width = codes.sizes[k]
            assert not codes.grid[k, height:].any()
            assert not codes.grid[k, :, width:].any()


@pytest.mark.parametrize("layer", LAYERS)
def test_blobs_are_those_that_were_written(known_set: Any, layer: str) -> None:
    reader = known_set.open().reader(layer)
    for unit in range(3):
        blobs = known_set.blobs(layer, unit)
        assert reader.blobs(unit, range(len(blobs))) == blobs
        assert reader.blobs(unit, [*range(len(blobs))][::-2]) == blobs[::-2]


def test_logits_are_read_by_image(known_set: Any) -> None:
    shards = known_set.open()
    for unit in range(3):
        expected = iter(known_set.blobs(LOGITS, unit))
        for image in shards.images(unit):
            known = are_logits_known(shards, unit, image)
            found = read_full_logits(shards, unit, image)
            assert len(known) == len(found) == len(image.masks)
            for one, is_known in zip(found, known, strict=True):
                blob = next(expected)
                assert (one is not None) == is_known == bool(blob)
                if one is not None:
                    np.testing.assert_array_equal(one, decode_logits(blob))
    with pytest.raises(ShardError, match="layer logits has no label"):
        shards.reader(LOGITS).read(0, [0], "label")


def test_embeddings_are_read_by_crop(known_set: Any) -> None:
    shards, crops_seen = known_set.open(), set()
    for unit in range(3):
        expected = iter(known_set.blobs(EMBEDDINGS, unit))
        for image in shards.images(unit):
            crops = list(dict.fromkeys(map(crop_of, image.masks)))
            assert list(kept_crops(shards, unit, image.index)) == crops
            for crop in crops:
                found = read_embedding(shards, unit, image.index, crop)
                assert found is not None
                np.testing.assert_array_equal(found, decode_embedding(next(expected)))
            assert read_embedding(shards, unit, image.index, (0, 0, 1, 1)) is None
            crops_seen.add(len(crops))
    assert max(crops_seen) > 1


def test_photos_are_read_by_image(known_set: Any) -> None:
    shards = known_set.open()
    for unit, images in enumerate(((0, 1, 2), (0, 2), (0, 1))):
        for number, index in enumerate(images):
            expected = np.asarray(Image.open(io.BytesIO(known_set.photos[unit][number])))
            np.testing.assert_array_equal(read_photo(shards, unit, index).transpose(1, 2, 0), expected)
    with pytest.raises(ShardError, match="could not be read when the layer was made"):
        read_photo(shards, 1, 1)
    with pytest.raises(ShardError, match="layer photos has no label"):
        shards.reader(PHOTOS).read(0, [0], "label")


def test_rows_say_which_masks_are_whose(known_set: Any) -> None:
    reader = known_set.open().reader(MASKS)
    assert reader.rows(0).first.tolist() == [0, 2, 72, 72]
    assert reader.rows(1).first.tolist() == [0, 3, 3, 7]
    assert reader.rows(2).first.tolist() == [0, 0, 0]
    crops = np.stack([reader.rows(1)[f"crop_{edge}"] for edge in ("x0", "y0", "x1", "y1")], 1)
    assert [tuple(box) for box in crops.tolist()] == [mask.crop_box for mask in known_set.units[1]]


def test_images_and_maps_read_one_by_one_are_the_same(known_set: Any) -> None:
    shards = known_set.open()
    for unit in range(3):
        taken = iter(known_set.units[unit])
        for image, rows in zip(shards.images(unit), shards.uncertainty(unit), strict=True):
            labels = shards.read_label_logits(unit, image, range(len(image.masks)))
            maps = shards.read_uncertainty(unit, rows)
            assert (
                shards.label_blobs(unit, image)
                == [m.label for m in known_set.units[unit]][image.first : image.first + len(image.masks)]
            )
            for label, one in zip(labels, maps, strict=True):
                mask = next(taken)
                np.testing.assert_array_equal(label, decode_label(mask.label))
                assert (one is None) == (mask.by_refiner == b"")
                if one is not None:
                    np.testing.assert_array_equal(one.u, decode_u(mask.by_refiner))
                    np.testing.assert_array_equal(one.refined, decode_label(refined_label(mask.by_refiner)))


def test_what_is_unknown_is_not_given_out(known_set: Any) -> None:
    with pytest.raises(ShardError, match="nothing is known of mask 3 of unit 0"):
        known_set.open().reader(REFINEMENT).read(0, [0, 3, 1], "u")


def test_part_that_a_layer_does_not_have_is_refused(known_set: Any) -> None:
    with pytest.raises(ShardError, match="layer uncertainty/entropy has no refined, but u"):
        known_set.open().reader(ENTROPY).read(0, [0], "refined")
    with pytest.raises(ShardError, match="layer uncertainty/refinement has no label, but u and refined"):
        known_set.open().reader(REFINEMENT).read(0, [0], "label")


def test_only_what_is_picked_is_read(known_set: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = known_set.open()
    reader = shards.reader(MASKS)
    reader.rows(0)
    read, spans = Storage.read, []

    def counted(self: Storage, name: str, start: int | None = None, end: int | None = None) -> bytes:
        spans.append((name, start, end))
        return read(self, name, start, end)

    monkeypatch.setattr(Storage, "read", counted)
    reader.read(0, [41], "label")
    ((name, start, end),) = spans
    places = reader.rows(0)
    assert name == shards.data_files(0)[0]
    assert (start, end) == (places["offset"][41], places["offset"][41] + places["length"][41])
    assert reader.read(0, [], "label").all_values().shape == (0, 0, 0)
    assert len(spans) == 1


@pytest.mark.parametrize(("layer", "plane"), PLANES)
def test_damage_is_refused_where_it_is_and_nowhere_else(own_set: Any, layer: str, plane: Plane) -> None:
    reader = own_set.open().reader(layer)
    prefix = "refined_" if f"{plane}_offset" in reader.rows(0).columns else ""
    has_data = reader.rows(0)[f"{prefix}length"] > 0  # in Zarr an empty mask has no chunk
    row, *others = [row for row in known_rows(own_set, layer, 0) if has_data[row]][5:8]
    path = files_of(own_set, layer, 0)[-1 if plane == "refined" else 0]
    data = bytearray(path.read_bytes())
    data[int(reader.rows(0)[f"{prefix}offset"][row]) + 3] ^= 4
    path.write_bytes(data)
    with pytest.raises(ShardError, match=rf"{path.name}: the blob at byte \d+ fails its checksum"):
        reader.read(0, [others[0], row], plane)
    assert len(reader.read(0, others, plane)) == len(others)
    path.unlink()
    with pytest.raises(ShardError, match=rf"{path.name}: missing"):
        reader.read(0, others, plane)
    with pytest.raises(ShardError, match=rf"{path.name}.*: 0 bytes, expected \d+; not trained on"):
        own_set.open().require_whole(0, layer, reader.rows(0).record)


def test_sound_set_has_no_problem(known_set: Any) -> None:
    checks = list(verify(known_set.open()))
    assert [check.problems for check in checks] == [()] * 3 * len(LAYERS)
    kept = sum(map(len, (*known_set.photos, *known_set.embeddings)))
    counted = 4 * sum(map(len, known_set.units)) + kept
    assert sum(check.record.masks for check in checks if check.record is not None) == counted
    unknown = [check.record.unknown for check in checks if check.record is not None and check.layer == ENTROPY]
    assert unknown == [masks.count(b"") for masks in (known_set.blobs(ENTROPY, unit) for unit in range(3))]


@pytest.mark.parametrize("layer", LAYERS)
def test_cut_flipped_bit_and_longer_file_are_found_and_the_file_named(own_set: Any, layer: str) -> None:
    """At few places: a file is held to its SHA-256 as a whole. Random places are tried with ``labelgen verify``."""
    shards = own_set.open()
    for path in files_of(own_set, layer, 0):  # of the unit that is checked first
        whole = path.read_bytes()
        damaged = [whole + b"\0", b"", whole[:-1]]
        for place in (len(whole) // 2, len(whole) - 1):
            flipped = bytearray(whole)
            flipped[place] ^= 1 << place % 8
            damaged.append(bytes(flipped))
        for data in damaged:
            path.write_bytes(data)
            found = (problem for check in verify(shards) for problem in check.problems)
            assert any(problem.startswith(f"{path}: ") for problem in found), len(data)
        path.write_bytes(whole)
    assert problems(shards) == []


@pytest.mark.parametrize("layer", LAYERS)
def test_lost_data_and_lost_manifests_are_found(own_set: Any, layer: str) -> None:
    for path in files_of(own_set, layer, 1):
        whole = path.read_bytes()
        path.unlink()
        assert any(f"{path}: missing, but its manifest is there" in problem for problem in problems(own_set.open()))
        path.write_bytes(whole)
    (own_set.folder / f"manifest/{layer}/000001.parquet").unlink()
    found = problems(own_set.open())
    for path in files_of(own_set, layer, 1):
        assert any(f"{path}: data without a manifest" in problem for problem in found)


def test_file_of_nobody_is_found_and_one_being_written_is_left_alone(own_set: Any) -> None:
    folder = files_of(own_set, MASKS, 0)[0].parent
    (folder / ".partial-x").write_bytes(b"x")
    assert problems(own_set.open()) == []
    (folder / "c.99.0.0").write_bytes(b"x")
    assert any("c.99.0.0: data without a manifest" in problem for problem in problems(own_set.open()))


def test_equal_masks_give_equal_bytes(
    known_set: Any, write_known: Callable[[Path, str], Any], tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    write_known(tmp_path / "again", known_set.open().layer().encoding)
    assert snapshot(tmp_path / "again") == snapshot(known_set.folder)


def test_layer_of_an_unknown_encoding_is_named(write_known: Callable[[Path, str], Any], tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"layer \w+ has encoding 'hdf', and this software knows tar and zarr"):
        write_known(tmp_path / "shards", "hdf")


def test_encodings_give_equal_codes_and_tables(write_known: Callable[[Path, str], Any], tmp_path: Path) -> None:
    one, other = (write_known(tmp_path / encoding, encoding) for encoding in ("tar", "zarr"))
    for layer, plane in PLANES:
        for unit in range(3):
            rows = known_rows(one, layer, unit)
            a, b = (each.open().reader(layer).read(unit, rows, plane) for each in (one, other))
            np.testing.assert_array_equal(a.grid, b.grid)
            np.testing.assert_array_equal(a.table, b.table)
            np.testing.assert_array_equal(a.sizes, b.sizes)


@pytest.mark.parametrize("before", [0, 1, 2], ids=["first file", "second file", "manifest"])
def test_of_two_runs_that_write_other_maps_at_once_one_stands_whole(
    write_known: Callable[[Path, str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """A unit of several files is never left with some of one run and some of the other."""
    shards = write_known(tmp_path / "labels", "zarr").open()
    samples, (_, masks) = read_unit_images(shards, 0, REFINEMENT), shards.manifest(0)
    shards.storage.delete(manifest_path(REFINEMENT, 0))
    one, other = (UnitWriter(shards.dataset, shards.layer(REFINEMENT), shards.unit(0)) for _ in range(2))
    for index, (rows, blobs) in enumerate(samples):
        add_unit_image(one, index, UnitImage(rows, blobs))
        add_unit_image(other, index, UnitImage(rows[::-1], blobs[::-1]))
    write, create, calls = Storage.write, Storage.create, list[int]()

    def meet() -> None:
        calls.append(len(calls))
        if calls[-1] == before:
            with monkeypatch.context() as undisturbed:
                undisturbed.setattr(Storage, "write", write)
                undisturbed.setattr(Storage, "create", create)
                other.commit(shards.storage, masks.data_sha256)

    def slow_write(self: Storage, name: str, data: bytes) -> None:
        meet()
        write(self, name, data)

    def slow_create(self: Storage, name: str, data: bytes) -> bool:
        meet()
        return create(self, name, data)

    monkeypatch.setattr(Storage, "write", slow_write)
    monkeypatch.setattr(Storage, "create", slow_create)
    record, _ = one.commit(shards.storage, masks.data_sha256)
    assert shards.manifest(0, REFINEMENT)[1] == record
    assert len(read_unit_images(shards, 0, REFINEMENT)) == len(samples)
