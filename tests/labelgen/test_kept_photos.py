"""``labelgen run --keep-photos`` stores the photos at SAM's input side, in the same pass or later."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.read_ahead import LoadedPhoto, load_photo
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.errors import InputError, SettingsDifferError, ShardError
from sum_factory.shared.images import decode_image
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.sam.runtime import resize
from sum_factory.shared.shards.dataset import DATASET, PHOTOS, Dataset
from sum_factory.shared.shards.encodings.tar_layer import tar_path
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.photos import read_photo, require_photos
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

Label = Callable[..., RunSummary]
Problems = Callable[[Path], list[str]]
Snapshot = Callable[[Path], dict[str, str]]


@pytest.fixture(scope="module")
def kept(photos: Path, label: Label, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shard set of a run that kept the photos, which no test may change."""
    shards = tmp_path_factory.mktemp("kept") / "shards"
    label(photos, shards, keep_photos=True)
    return shards


@pytest.fixture
def own_kept(kept: Path, tmp_path: Path) -> Path:
    """A copy of it for a test to change."""
    return shutil.copytree(kept, tmp_path / "own_kept")


def expected_jpegs(photos: Path, side: int) -> dict[str, bytes]:
    """Return the JPEG of each photo at the input side, by key, made without the shard set."""
    jpegs = {}
    for ref in list_photos((str(photos),)):
        jpegs[ref.key] = encode_photo(resize(decode_image(Path(ref.url).read_bytes(), ref.key), side))
    return jpegs


def test_every_photo_is_kept_at_the_input_side(kept: Path, photos: Path) -> None:
    shards = ShardSet.open(str(kept))
    expected = expected_jpegs(photos, shards.input_side)
    for number in shards.committed(PHOTOS):
        for index, image in enumerate(shards.unit(number).images):
            pixels = read_photo(shards, number, index).transpose(1, 2, 0)
            assert max(pixels.shape) == shards.input_side
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(io.BytesIO(expected[image.key]))))
    assert shards.committed(PHOTOS) == shards.committed(MASKS) == [0, 1, 2]


def test_plain_webdataset_reads_the_photos(kept: Path, photos: Path) -> None:
    found = {}
    for number in range(3):
        for sample in webdataset.WebDataset(str(kept / tar_path(PHOTOS, number)), shardshuffle=False):
            described = json.loads(sample["json"])
            found[described["key"]] = sample["jpg"]
            size = decode_image(next(photos.glob(f"{described['key']}.*")).read_bytes(), "").shape[:2]
            assert (described["height"], described["width"]) == size
    assert found == expected_jpegs(photos, ShardSet.open(str(kept)).input_side)


def test_masks_are_those_of_a_run_without_photos(
    kept: Path, finished: tuple[Path, RunSummary], snapshot: Snapshot
) -> None:
    with_photos, without = snapshot(kept), snapshot(finished[0])
    own = {name for name in with_photos if PHOTOS in Path(name).parts[:2]}
    assert len(own) == 6
    differing = {name for name in without if with_photos[name] != without[name]}
    assert differing == {"dataset.json"}
    assert with_photos.keys() - own == without.keys()


def test_photos_kept_later_are_those_of_one_pass(
    own_shards: Path, photos: Path, kept: Path, label: Label, snapshot: Snapshot, encoder_calls: list[int]
) -> None:
    summary = label(photos, own_shards, keep_photos=True)
    assert summary.units_done == 3
    assert encoder_calls == []
    assert snapshot(own_shards) == snapshot(kept)
    assert label(photos, own_shards, keep_photos=True).units_done == 0


def test_photos_and_maps_are_made_in_one_pass(
    refined: tuple[Path, RunSummary], photos: Path, label: Label, refiner: str, tmp_path: Path, snapshot: Snapshot
) -> None:
    both = tmp_path / "shards"
    label(photos, both, refiner=refiner, keep_photos=True)
    maps, alone = snapshot(both), snapshot(refined[0])
    assert all(maps[name] == content for name, content in alone.items() if name != "dataset.json")
    assert sum(PHOTOS in Path(name).parts[:2] for name in maps) == 6


def test_unit_whose_maps_alone_are_lost_is_completed(
    photos: Path, label: Label, refiner: str, tmp_path: Path, snapshot: Snapshot
) -> None:
    shards = tmp_path / "shards"
    label(photos, shards, refiner=refiner, keep_photos=True)
    whole = snapshot(shards)
    (shards / manifest_path(PHOTOS, 0)).unlink()
    (shards / manifest_path("uncertainty/refinement", 0)).unlink()
    (shards / manifest_path(PHOTOS, 1)).unlink()
    assert label(photos, shards, refiner=refiner, keep_photos=True).units_done == 2
    assert snapshot(shards) == whole


def test_other_quality_is_refused(own_kept: Path, photos: Path, label: Label, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sum_factory.labelgen.layers.QUALITY", 80)
    with pytest.raises(SettingsDifferError, match=r"(?s)layer photos.*quality: there 90, asked for 80.*--shards"):
        label(photos, own_kept, keep_photos=True)


def test_unreadable_photo_is_an_error_row_and_no_empty_jpeg(
    own_photos: Path, label: Label, tmp_path: Path, problems: Problems
) -> None:
    (own_photos / "photo2.jpg").write_bytes(b"no photo")
    shards = tmp_path / "shards"
    summary = label(own_photos, shards, keep_photos=True)
    assert len(summary.errors) == 1
    assert problems(shards) == []
    opened = ShardSet.open(str(shards))
    rows = [row for number in range(3) for row in opened.manifest(number, PHOTOS)[0].to_pylist()]
    (failed,) = [row for row in rows if row["error"] is not None]
    assert (failed["image"], failed["mask"]) == ("photo2", None)
    samples = webdataset.WebDataset([str(shards / tar_path(PHOTOS, n)) for n in range(3)], shardshuffle=False)
    assert {sample["__key__"] for sample in samples if "jpg" not in sample} == {"photo2"}
    number = next(n for n in range(3) if any(image.key == "photo2" for image in opened.unit(n).images))
    index = [image.key for image in opened.unit(number).images].index("photo2")
    with pytest.raises(ShardError, match="could not be read when the layer was made"):
        read_photo(opened, number, index)
    require_photos(opened, number)  # it has no masks either


def test_photo_that_went_after_labelling_is_told_and_not_trained_without(
    three_photos: Path, label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = tmp_path / "shards"
    label(three_photos, shards)

    def gone(image: PhotoFile, *how: Any) -> LoadedPhoto:
        if image.key == "photo2":
            raise InputError("photo2: gone")
        return load_photo(image, *how)

    monkeypatch.setattr("sum_factory.labelgen.read_ahead.load_photo", gone)
    assert label(three_photos, shards, keep_photos=True).errors == ("photo2: gone",)
    status = CliRunner().invoke(main, ["status", "--shards", str(shards)])
    assert "no photo of photo2: photo2: gone" in status.output
    opened = ShardSet.open(str(shards))
    with pytest.raises(ShardError, match=r"unit 0 lacks 1 photos whose masks are there, the first is 'photo2'"):
        require_photos(opened, 0)
    require_photos(opened, 1)


def test_unit_without_photos_is_told_what_to_do(own_kept: Path) -> None:
    (own_kept / manifest_path(PHOTOS, 1)).unlink()
    with pytest.raises(ShardError, match=r"photos/000001.parquet: missing.*with --keep-photos"):
        require_photos(ShardSet.open(str(own_kept)), 1)


@pytest.mark.parametrize("flip", [600, 1500, -700])
def test_damage_is_found_and_named_and_never_read(own_kept: Path, problems: Problems, flip: int) -> None:
    path = own_kept / tar_path(PHOTOS, 1)
    data = bytearray(path.read_bytes())
    data[flip] ^= 4
    path.write_bytes(data)
    assert any(str(path) in problem for problem in problems(own_kept))


def test_flipped_bit_of_a_photo_is_refused(own_kept: Path) -> None:
    shards = ShardSet.open(str(own_kept))
    row = shards.manifest(1, PHOTOS)[0].to_pylist()[1]
    path = own_kept / tar_path(PHOTOS, 1)
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    read_photo(shards, 1, 0)
    with pytest.raises(ShardError, match="fails its checksum"):
        read_photo(shards, 1, 1)


def test_missing_and_unlisted_photos_are_named(own_kept: Path, problems: Problems) -> None:
    (own_kept / tar_path(PHOTOS, 0)).unlink()
    assert any(f"{own_kept}/{tar_path(PHOTOS, 0)}: missing" in problem for problem in problems(own_kept))
    dataset = ShardSet.open(str(own_kept)).dataset
    without = Dataset(dataset.unit_size, dataset.unit_ids, dataset.image_count, {MASKS: dataset.layers[MASKS]})
    (own_kept / DATASET).write_bytes(without.to_json())
    assert any(f"{own_kept}/manifest/photos: a layer that" in problem for problem in problems(own_kept))


def test_status_and_verify_count_photos(kept: Path) -> None:
    status = CliRunner().invoke(main, ["status", "--shards", str(kept)])
    assert "layer photos (tar): 3 of 3 units, 6 images, 6 photos, 0 errors" in status.output
    verified = CliRunner().invoke(main, ["verify", "--shards", str(kept)])
    assert verified.exit_code == 0
    assert "layer photos: 3 units sound with 6 photos, 0 units not made yet" in verified.output


def test_command_keeps_photos(photos: Path, loose_options: list[str], tmp_path: Path, kept: Path) -> None:
    arguments: list[Any] = ["run", "--images", str(photos), "--shards", str(tmp_path / "s"), "--keep-photos"]
    result = CliRunner().invoke(main, [*arguments, *loose_options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "s" / tar_path(PHOTOS, 2)).read_bytes() == (kept / tar_path(PHOTOS, 2)).read_bytes()
