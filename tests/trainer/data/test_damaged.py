"""Whatever is cut, flipped or lost in a shard set: it is refused by name, or what is trained on is what it was."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings, TrainingSample
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=128, stride=4, masks=30, seed=0)
CPU = torch.device("cpu")
TARS = ("masks/000000.tar", "uncertainty/refinement/000000.tar")
SHARDS = ("masks.zarr/label/c.0.0.0", "uncertainty/refinement.zarr/u/c.0.0.0",
          "uncertainty/refinement.zarr/refined/c.0.0.0")  # fmt: skip
SEALED = ("dataset.json", "units/000000.json", "manifest/masks/000000.parquet",
          "manifest/uncertainty/refinement/000000.parquet")  # fmt: skip


def train(shards: Path, method: str = "sum", units: int = 1) -> list[TrainingSample]:
    """Open a shard set for training and load the samples of its first units."""
    chosen = METHODS[method]
    pseudo = PseudoSet(ShardSet.open(str(shards)), "refinement" if chosen.needs_uncertainty else None, chosen, SETTINGS)
    return [pseudo.load(index, SampleId("pseudo", 0, index)).on(CPU) for index in range(sum(pseudo.groups[:units]))]


def require_same(samples: list[TrainingSample], others: list[TrainingSample]) -> None:
    for one, other in zip(samples, others, strict=True):
        assert (one.key, one.skipped) == (other.key, other.skipped)
        assert torch.equal(one.masks, other.masks)
        assert one.certainty is not None
        assert other.certainty is not None
        assert torch.equal(one.certainty, other.certainty)


@pytest.fixture
def shards(known_shards: Any, tmp_path: Path) -> Path:
    """A copy of the known shards for a test to change."""
    return shutil.copytree(known_shards.url, tmp_path / "shards")


@pytest.fixture
def in_zarr(known_in_zarr: Any, tmp_path: Path) -> Path:
    """A copy of the known shards in Zarr for a test to change."""
    return shutil.copytree(known_in_zarr.url, tmp_path / "in_zarr")


def test_samples_are_the_same_in_both_encodings(shards: Path, in_zarr: Path) -> None:
    require_same(train(in_zarr, units=4), train(shards, units=4))


@pytest.mark.parametrize("name", SHARDS)
def test_shards_cut_anywhere_or_lost_are_refused(in_zarr: Path, name: str) -> None:
    whole = (in_zarr / name).read_bytes()
    for length in sorted({*range(0, len(whole), 2029), len(whole) - 1}, reverse=True):
        os.truncate(in_zarr / name, length)
        with pytest.raises(ShardError, match=rf"{name}: {length} bytes, expected {len(whole)}.*labelgen verify"):
            train(in_zarr)
    (in_zarr / name).unlink()
    with pytest.raises(ShardError, match=rf"{name}: 0 bytes, expected"):
        train(in_zarr)


@pytest.mark.parametrize("name", SHARDS)
def test_flipped_bit_of_a_shard_is_refused_if_it_is_in_what_is_read(in_zarr: Path, name: str) -> None:
    prefix, method = ("refined_", "mask-refinement") if "refined/" in name else ("", "sum")
    sound, whole = train(in_zarr, method), (in_zarr / name).read_bytes()
    layer = name.split(".zarr")[0]
    known = ShardSet.open(str(in_zarr)).manifest(0, "uncertainty/refinement")[0]["u_valid"].to_pylist()
    rows = ShardSet.open(str(in_zarr)).manifest(0, layer)[0].to_pylist()
    places = [(row[f"{prefix}offset"], row[f"{prefix}length"]) for row, u in zip(rows, known, strict=True) if u]
    read = [range(start, start + length) for start, length in places]
    edges = [place for chunk in read for place in (chunk[0], chunk[-1])]
    for place in {*edges, *range(0, len(whole), 499)}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (in_zarr / name).write_bytes(flipped)
        if any(place in chunk for chunk in read):
            with pytest.raises(ShardError, match=rf"{name}: the blob at byte \d+ fails .*labelgen verify"):
                train(in_zarr, method)
        else:
            for one, other in zip(train(in_zarr, method), sound, strict=True):
                assert torch.equal(one.masks, other.masks)


def test_descriptions_of_arrays_are_not_needed(in_zarr: Path) -> None:
    sound = train(in_zarr, units=4)
    for path in in_zarr.rglob("zarr.json"):
        path.unlink()
    require_same(train(in_zarr, units=4), sound)


def boundaries(data: bytes) -> list[int]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [place for member in tar for place in (member.offset, member.offset_data)]


@pytest.mark.parametrize("name", TARS)
def test_data_cut_anywhere_are_refused(shards: Path, name: str) -> None:
    whole = (shards / name).read_bytes()
    for length in sorted({*boundaries(whole), *range(0, len(whole), 2029), len(whole) - 1}, reverse=True):
        os.truncate(shards / name, length)
        with pytest.raises(ShardError, match=rf"{name}: {length} bytes, expected {len(whole)}.*labelgen verify"):
            train(shards)


@pytest.mark.parametrize("name", TARS)
def test_data_cut_while_they_are_read_are_refused_or_were_not_needed(shards: Path, name: str) -> None:
    sound, whole = train(shards), (shards / name).read_bytes()
    pseudo = PseudoSet(ShardSet.open(str(shards)), "refinement", METHODS["sum"], SETTINGS)
    refused = []
    for length in sorted({*boundaries(whole), *range(0, len(whole), 1021)}, reverse=True):
        os.truncate(shards / name, length)
        for index, sample in enumerate(sound):
            try:
                require_same([pseudo.load(index, SampleId("pseudo", 0, index)).on(CPU)], [sample])
            except ShardError as error:
                refused.append(str(error))
    assert refused
    assert all(f"{name}: the blob at byte" in message for message in refused)


@pytest.mark.parametrize("name", TARS)
def test_flipped_bit_of_data_is_refused_if_it_is_in_what_is_read(shards: Path, name: str) -> None:
    sound, whole = train(shards), (shards / name).read_bytes()
    layer = name.removesuffix("/000000.tar")
    known = ShardSet.open(str(shards)).manifest(0, "uncertainty/refinement")[0]["u_valid"].to_pylist()
    rows = ShardSet.open(str(shards)).manifest(0, layer)[0].to_pylist()
    read = [range(row["offset"], row["offset"] + row["length"]) for row, u in zip(rows, known, strict=True) if u]
    assert read
    edges = [place for blob in read for place in (blob[0], blob[-1])]
    for place in {*boundaries(whole), *edges, *range(0, len(whole), 499)}:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        (shards / name).write_bytes(flipped)
        if any(place in blob for blob in read):
            with pytest.raises(ShardError, match=rf"{name}: the blob at byte \d+ fails .*labelgen verify"):
                train(shards)
        else:
            require_same(train(shards), sound)


@pytest.mark.parametrize("name", SEALED)
def test_flipped_bit_and_cut_of_what_describes_data_are_refused(shards: Path, name: str) -> None:
    whole = (shards / name).read_bytes()
    for place in range(0, len(whole), 149):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        for damaged in (bytes(flipped), whole[:place]):
            (shards / name).write_bytes(damaged)
            with pytest.raises(ShardError, match=f"{name}: damaged"):
                train(shards)


def swap(shards: Path, name: str) -> None:
    """Exchange a file of unit 0 with that of unit 2, which has as many images."""
    one, two = shards / name, shards / name.replace("000000", "000002")
    one.rename(shards / "aside")
    two.rename(one)
    (shards / "aside").rename(two)


def other_masks(shards: Path) -> None:
    """Put other masks, sound by themselves, in the place of those that the maps are of."""
    opened = ShardSet.open(str(shards))
    table, _ = opened.manifest(0)
    writer = UnitWriter(opened.dataset, opened.layer(), opened.unit(0))
    for image in opened.images(0):
        blobs = [encode_label(-decode_label(blob)) for blob in opened.label_blobs(0, image)]
        skipped = ("image", "image_index", "height", "width", "error", "mask", "offset", "length", "crc32")
        columns = {name: [row[name] for row in image.masks] for name in table.column_names if name not in skipped}
        writer.add_image(image.index, (image.height, image.width), blobs, columns if blobs else {}, {})
    (shards / "manifest/masks/000000.parquet").unlink()
    assert writer.commit(opened.storage)[1]


LOST: dict[str, tuple[Callable[[Path], object], str]] = {
    "data": (lambda shards: (shards / TARS[0]).unlink(), r"masks/000000\.tar: 0 bytes, expected"),
    "maps": (lambda shards: (shards / TARS[1]).unlink(), r"refinement/000000\.tar: 0 bytes, expected"),
    "plan": (lambda shards: (shards / SEALED[1]).unlink(), r"units/000000\.json: missing"),
    "dataset": (lambda shards: (shards / SEALED[0]).unlink(), r"dataset\.json: missing"),
    "manifest of maps": (lambda shards: (shards / SEALED[3]).unlink(), r"refinement/000000\.parquet: missing"),
    "other masks": (other_masks, r"refinement/000000\.parquet: its maps are of other masks"),
    "data of another unit": (lambda shards: swap(shards, TARS[0]), r"masks/000000\.tar"),
    "maps of another unit": (lambda shards: swap(shards, TARS[1]), r"refinement/000000\.tar"),
    "plan of another unit": (lambda shards: swap(shards, SEALED[1]), r"units/000000\.json: of unit 2"),
    "manifest of another unit": (lambda shards: swap(shards, SEALED[2]), "masks/000000.parquet: belongs to another"),
}


@pytest.mark.parametrize("damage", LOST)
def test_what_is_lost_or_belongs_to_others_is_refused(shards: Path, damage: str) -> None:
    do, message = LOST[damage]
    do(shards)
    with pytest.raises(ShardError, match=message):
        train(shards)


def test_what_is_not_committed_is_not_trained_on(shards: Path) -> None:
    """Temporary files, and data without a manifest."""
    for name in TARS:
        (shards / name).with_name(".partial-000009.tar-00ff").write_bytes(b"half")
    (shards / "manifest/masks/.partial-000009.parquet-00ff").write_bytes(b"half")
    (shards / "masks/000009.tar").write_bytes(b"data")
    sound = train(shards, units=4)
    (shards / SEALED[2]).unlink()
    left = train(shards, units=4)
    kept = {sample.key for sample in left}
    assert kept == {sample.key for sample in sound[2:]}
