"""Opening a shard set for training: all is checked, next to nothing is kept, and what changes later is noticed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sum_factory.shared.codecs.label import decode_label, encode_label
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.manifest import UnitRecord, manifest_path, read_manifest, write_manifest
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.survey import survey
from sum_factory.trainer.methods import METHODS

SETTINGS = SampleSettings(side=128, stride=4, masks=30, seed=0)
MAPS = "uncertainty/refinement"


def open_pseudo(url: str, method: str) -> PseudoSet:
    layer = "refinement" if METHODS[method].needs_uncertainty else None
    return PseudoSet(ShardSet.open(url), layer, METHODS[method], SETTINGS)


@pytest.fixture
def shards(known_shards: Any, tmp_path: Path) -> Path:
    return shutil.copytree(known_shards.url, tmp_path / "shards")


def relabel(folder: Path, number: int) -> None:
    """Put other masks, as many and of the same sizes, in the place of a unit's."""
    opened = ShardSet.open(str(folder))
    table, _ = opened.manifest(number)
    writer = UnitWriter(opened.dataset, opened.layer(), opened.unit(number))
    skipped = ("image", "image_index", "height", "width", "error", "mask", "offset", "length", "crc32")
    for image in opened.images(number):
        blobs = [encode_label(-decode_label(blob)) for blob in opened.label_blobs(number, image)]
        columns = {name: [row[name] for row in image.masks] for name in table.column_names if name not in skipped}
        writer.add_image(image.index, (image.height, image.width), blobs, columns if blobs else {}, {})
    (folder / manifest_path(MASKS, number)).unlink()
    assert writer.commit(opened.storage)[1]


@pytest.fixture
def columns_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[str] | None]]:
    """The layer and the columns of every manifest that is read."""
    read, seen = ShardSet.manifest, []

    def counted(
        self: ShardSet, number: int, layer: str = MASKS, columns: Sequence[str] | None = None
    ) -> tuple[pa.Table, UnitRecord]:
        seen.append((layer, columns))
        return read(self, number, layer, columns)

    monkeypatch.setattr(ShardSet, "manifest", counted)
    return seen


def test_survey_knows_which_images_have_masks_and_what_the_manifests_say(known_shards: Any) -> None:
    shards = ShardSet.open(known_shards.url)
    surveyed = survey(shards, [MASKS, MAPS])
    assert [unit.number for unit in surveyed] == shards.committed()
    for unit in surveyed:
        expected = [image.index for image in shards.images(unit.number) if image.masks]
        assert unit.images.tolist() == expected
        assert unit.records == {layer: shards.manifest(unit.number, layer)[1] for layer in (MASKS, MAPS)}


def test_opening_reads_no_more_of_a_manifest_than_which_masks_there_are(
    known_shards: Any, columns_read: list[tuple[str, Sequence[str] | None]]
) -> None:
    pseudo = open_pseudo(known_shards.url, "sum")
    units = len(pseudo.shards.committed())
    looked_for = [(MASKS, ("image_index", "image", "digest"))] * 3  # photos of the first, the middle and the last unit
    assert sorted(columns_read) == sorted([(MASKS, WHICH), (MAPS, WHICH)] * units + looked_for)


def test_rows_are_read_when_a_sample_needs_them_and_once(
    known_shards: Any, columns_read: list[tuple[str, Sequence[str] | None]]
) -> None:
    pseudo = open_pseudo(known_shards.url, "sum")
    columns_read.clear()
    for epoch in range(2):
        for index in range(pseudo.groups[0]):
            pseudo.load(index, SampleId("pseudo", epoch, index))
    assert columns_read == [(MASKS, None), (MAPS, None)]


def test_unit_that_changed_since_it_was_opened_is_not_trained_on(shards: Path) -> None:
    pseudo = open_pseudo(str(shards), "vanilla")
    relabel(shards, 0)
    with pytest.raises(ShardError, match=r"manifest/masks/000000\.parquet: changed since training began"):
        pseudo.load(0, SampleId("pseudo", 0, 0))
    assert len(pseudo.load(2, SampleId("pseudo", 0, 2)).crops) > 0  # of another unit


def test_manifest_that_was_damaged_since_it_was_opened_is_named(shards: Path) -> None:
    pseudo = open_pseudo(str(shards), "sum")
    path = shards / manifest_path(MAPS, 0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"refinement/000000\.parquet: damaged"):
        pseudo.load(0, SampleId("pseudo", 0, 0))


def test_other_labels_of_the_same_photos_make_another_set(shards: Path) -> None:
    """The order of the samples and what a resumed run is held to depend on the data and not on settings alone."""
    before = open_pseudo(str(shards), "vanilla")
    relabel(shards, 2)
    after = open_pseudo(str(shards), "vanilla")
    assert (after.layer_ids, after.groups) == (before.layer_ids, before.groups)
    assert after.identity != before.identity
    assert open_pseudo(str(shards), "vanilla").identity == after.identity


def test_maps_that_are_not_row_for_row_the_masks_are_refused_at_once(shards: Path) -> None:
    path = shards / manifest_path(MAPS, 0)
    table, record = read_manifest(path.read_bytes(), str(path))
    masks = np.flatnonzero(table["mask"].is_valid().to_numpy())
    path.write_bytes(write_manifest(table.take(np.delete(np.arange(len(table)), masks[-1])), record))
    with pytest.raises(ShardError, match=r"refinement/000000\.parquet: its rows are not those of the masks"):
        open_pseudo(str(shards), "sum")
    assert len(open_pseudo(str(shards), "vanilla")) == 7


def test_first_unit_at_fault_is_named(shards: Path) -> None:
    """Though several are looked at at once."""
    for number in (3, 1, 2):
        (shards / f"masks/{number:06d}.tar").unlink()
    with pytest.raises(ShardError, match=r"masks/000001\.tar: 0 bytes, expected"):
        open_pseudo(str(shards), "vanilla")
