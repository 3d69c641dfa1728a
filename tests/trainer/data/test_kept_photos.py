"""Shards that keep the photos are trained from without the originals; what is read is the layer, and recorded."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.errors import ShardError
from sum_factory.shared.images import RgbImage, decode_image
from sum_factory.shared.sam.runtime import resize
from sum_factory.shared.shards.dataset import DATASET, PHOTOS, Layer
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=128, stride=4, masks=30, seed=0)
FAILED = "shot4"
CPU = torch.device("cpu")


def open_pseudo(folder: Path) -> PseudoSet:
    return PseudoSet(ShardSet.open(str(folder)), None, METHODS["vanilla"], SETTINGS)


def data_path(folder: Path, unit: int) -> Path:
    (name,) = ShardSet.open(str(folder)).data_files(unit, PHOTOS)
    return folder / name


def scaled(path: Path) -> RgbImage:
    return resize(decode_image(path.read_bytes(), path.name), SETTINGS.side)


@pytest.fixture(params=["tar", "zarr"])
def with_photos(request: pytest.FixtureRequest, known_shards: Any, tmp_path: Path) -> Path:
    """A copy of the known shards with their photos in each encoding, and without a way to the originals."""
    folder = shutil.copytree(known_shards.folder, tmp_path / "with_photos")
    shards = ShardSet.open(str(folder))
    layer = Layer(PHOTOS, request.param, {"side": SETTINGS.side}, {})
    dataset = replace(shards.dataset, layers={**shards.dataset.layers, PHOTOS: layer})
    shards.storage.write(DATASET, dataset.to_json())
    for number in range(len(dataset.unit_ids)):
        unit = shards.unit(number)
        writer = UnitWriter(dataset, layer, unit)
        for index, image in enumerate(unit.images):
            if image.key == FAILED:
                writer.add_failure(index, "a photo that nobody could read")
                continue
            pixels = decode_image(Path(image.url).read_bytes(), image.key)
            jpeg = encode_photo(resize(pixels, SETTINGS.side))
            writer.add_image(index, (pixels.shape[0], pixels.shape[1]), [jpeg], {}, {})
        writer.commit(shards.storage)
    return folder


def test_photos_come_from_the_layer_and_the_originals_are_not_needed(
    with_photos: Path, known_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, originals = open_pseudo(known_shards.folder), known_shards.photos
    monkeypatch.setattr(
        "sum_factory.trainer.data.pseudo.read_original", lambda shards, planned: pytest.fail("an original was read")
    )
    kept = open_pseudo(with_photos)
    assert len(kept) == len(plain)
    for index in range(len(kept)):
        sample = kept.load(index, SampleId("pseudo", 0, index))
        pixels = scaled(originals / f"{sample.key}.png")
        jpeg = np.asarray(Image.open(io.BytesIO(encode_photo(pixels))))
        assert sample.image.dtype == torch.uint8
        assert torch.equal(sample.image, torch.from_numpy(jpeg.transpose(2, 0, 1).copy()))


def test_all_but_the_photo_is_as_without_the_layer(with_photos: Path, known_shards: Any) -> None:
    kept, plain = open_pseudo(with_photos), open_pseudo(known_shards.folder)
    for index in range(len(kept)):
        one, other = (each.load(index, SampleId("pseudo", 0, index)).on(CPU) for each in (kept, plain))
        assert (one.key, one.valid, one.skipped) == (other.key, other.valid, other.skipped)
        assert torch.equal(one.masks, other.masks)
        assert one.image.shape == other.image.shape
        assert not torch.equal(one.image, other.image)


def test_photos_of_a_selection_are_those_of_its_images(with_photos: Path, tmp_path: Path) -> None:
    select(str(with_photos), str(tmp_path / "selection"), Filter(images=("shot[1357]",)))
    whole = open_pseudo(with_photos)
    selection = PseudoSet(open_shards(str(tmp_path / "selection")), None, whole.method, whole.settings)
    samples = [
        [each.load(index, SampleId("pseudo", 0, 0)) for index in range(len(each))] for each in (selection, whole)
    ]
    photos = {sample.key: sample.image for sample in samples[1]}
    assert [sample.key for sample in samples[0]] == ["shot1", "shot3", "shot5", "shot7"]
    assert all(torch.equal(sample.image, photos[sample.key]) for sample in samples[0])


def test_layer_is_recorded_and_decides_the_identity(with_photos: Path, known_shards: Any) -> None:
    kept, plain = open_pseudo(with_photos), open_pseudo(known_shards.folder)
    assert kept.layer_ids == {
        **plain.layer_ids,
        PHOTOS: ShardSet.open(str(with_photos)).layer(PHOTOS).id,
    }
    assert kept.identity != plain.identity


def test_unit_that_lacks_the_layer_is_refused_with_what_to_do(with_photos: Path) -> None:
    (with_photos / manifest_path(PHOTOS, 2)).unlink()
    with pytest.raises(ShardError, match=r"photos/000002.parquet: missing.*--keep-photos"):
        open_pseudo(with_photos)


def test_data_that_are_cut_short_are_refused(with_photos: Path) -> None:
    path = data_path(with_photos, 2)
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(ShardError, match=rf"{path}: .* bytes, expected"):
        open_pseudo(with_photos)


def test_flipped_bit_is_refused_and_not_trained_on(with_photos: Path) -> None:
    kept = open_pseudo(with_photos)
    row = kept.shards.manifest(0, PHOTOS)[0].to_pylist()[0]
    path = data_path(with_photos, 0)
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["length"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="fails its checksum"):
        kept.load(0, SampleId("pseudo", 0, 0))


def test_masks_without_a_photo_are_refused(with_photos: Path) -> None:
    shards = ShardSet.open(str(with_photos))
    unit = shards.unit(0)
    writer = UnitWriter(shards.dataset, shards.layer(PHOTOS), unit)
    for index in range(len(unit.images)):
        writer.add_failure(index, "gone")
    (with_photos / manifest_path(PHOTOS, 0)).unlink()
    writer.commit(shards.storage)
    lacking = int((np.diff(shards.reader(MASKS).rows(0).first) > 0).sum())
    with pytest.raises(ShardError, match=f"unit 0 lacks {lacking} photos whose masks are there, the first is 'shot0'"):
        open_pseudo(with_photos)
