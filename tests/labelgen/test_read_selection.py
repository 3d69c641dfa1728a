"""A selection reads like a shard set, and refuses data that are no longer those it was made of."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chosen import MAPS, Finished, image_of, labelgen, median_of, problems, rows_of, seen
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import DATASET
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.photos import read_photo, require_photos
from sum_factory.shared.shards.selection.opened import Selection, open_shards
from sum_factory.shared.shards.selection.plan import SelectionPlan
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_images import UnitImage, add_unit_image, read_unit_images
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.shards.verify import verify
from sum_factory.shared.store.cache import Cache


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "selection"


def test_selection_of_a_selection_is_one_of_the_shard_set(refined: Finished, tmp_path: Path) -> None:
    stability, most = median_of(refined[0], "stability"), median_of(refined[0], "mean_u", MAPS)
    one, two, both = (str(tmp_path / name) for name in ("one", "two", "both"))
    select(str(refined[0]), one, Filter(min_stability=stability))
    select(one, two, Filter(max_mean_u=most))
    select(str(refined[0]), both, Filter(min_stability=stability, max_mean_u=most))
    selections = [open_shards(url) for url in (two, both)]
    assert all(isinstance(selection, Selection) for selection in selections)
    assert seen(selections[0]) == seen(selections[1]) != []
    shutil.rmtree(one)
    selection = open_shards(two)
    assert isinstance(selection, Selection)
    assert isinstance(selections[1], Selection)
    assert selection.plan.id == selections[1].plan.id
    assert selection.identity([MASKS]) == selections[1].identity([MASKS])


def test_photos_of_a_selection_are_those_of_its_images(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], out: Path
) -> None:
    """The layer of photos has a row per image, not one per mask."""
    (own_photos / "sub" / "photo5.png").write_bytes(b"no photo")
    shards = tmp_path / "shards"
    label(own_photos, shards, keep_photos=True)
    least = sorted({row["stability"] for row in rows_of(shards) if row["image"] == "photo4"})[1]
    select(str(shards), str(out), Filter(images=("photo[24]", "sub/*"), min_stability=least))
    selection, whole = open_shards(str(out)), ShardSet.open(str(shards))
    assert problems(out) == []
    compared = []
    for number, image in selection.walk():
        there, original = image_of(whole, image.key)
        require_photos(selection, number)
        ours, theirs = read_photo(selection, number, image.index), read_photo(whole, there, original.index)
        np.testing.assert_array_equal(ours, theirs)
        compared.append(image.key)
    assert "photo4" in compared
    assert set(compared) < {row["image"] for row in rows_of(shards)}
    select(str(shards), str(tmp_path / "failed"), Filter(images=("sub/*",)))
    failed = open_shards(str(tmp_path / "failed"))
    number, broken = image_of(failed, "sub/photo5")
    assert broken.error is not None
    with pytest.raises(ShardError, match="could not be read when the layer was made"):
        read_photo(failed, number, broken.index)


def test_selection_on_an_object_store_is_that_of_a_local_one(
    refined: Finished, out: Path, bucket: str, upload: Callable[[Path, str], None], tmp_path: Path
) -> None:
    upload(refined[0], f"{bucket}/labels")
    chosen = Filter(max_mean_u=median_of(refined[0], "mean_u", MAPS))
    local, remote = str(out), f"{bucket}/sure"
    assert select(str(refined[0]), local, chosen) == select(f"{bucket}/labels", remote, chosen)
    assert not select(f"{bucket}/labels", remote, chosen).written
    select(f"{bucket}/labels", str(tmp_path / "here"), chosen)
    selections = [
        open_shards(local),
        open_shards(remote, Cache(tmp_path / "cache", 1 << 24)),
        open_shards(str(tmp_path / "here")),
    ]
    assert seen(selections[0]) == seen(selections[1]) == seen(selections[2]) != []
    assert len({selection.layer_id() for selection in selections}) == 1
    assert (tmp_path / "cache").exists()
    assert [problem for check in verify(open_shards(remote)) for problem in check.problems] == []


def test_selection_and_shard_set_move_together(refined: Finished, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    shutil.copytree(refined[0], tmp_path / "here" / "labels")
    select(str(tmp_path / "here" / "labels"), str(tmp_path / "here" / "sure"), Filter(images=("sub/*",)))
    (tmp_path / "here").rename(tmp_path / "there")
    assert seen(open_shards(str(tmp_path / "there" / "sure")))


def test_source_of_other_settings_is_refused_by_name(
    photos: Path, own_shards: Path, out: Path, label: Callable[..., RunSummary], loose: Any
) -> None:
    select(str(own_shards), str(out), Filter(images=("sub/*",)))
    shutil.rmtree(own_shards)
    with pytest.raises(ShardError, match=r"(?s)cannot open a base of this selection: .*own_shards.*missing"):
        open_shards(str(out))
    label(photos, own_shards, unit_size=3)
    with pytest.raises(ShardError, match=r"own_shards: its units changed since the selection .*select"):
        open_shards(str(out))
    shutil.rmtree(own_shards)
    label(photos, own_shards, automask=replace(loose, box_nms_thresh=0.5))
    with pytest.raises(ShardError, match=r"own_shards: layer masks was made anew"):
        open_shards(str(out))


def test_unit_whose_data_were_made_anew_is_refused(own_shards: Path, refined: Finished, out: Path) -> None:
    """Rows chosen from other masks would be other masks."""
    select(str(own_shards), str(out), Filter(images=("sub/*",)))
    parsed = SelectionPlan.from_json((out / DATASET).read_bytes(), "")
    assert parsed is not None
    other = replace(parsed, units=tuple(replace(unit, data={MASKS: "0" * 64}) for unit in parsed.units))
    (out / DATASET).write_bytes(other.to_json())
    with pytest.raises(ShardError, match=r"manifest/masks/00000[12]\.parquet: of other data than when the selection"):
        seen(open_shards(str(out)))


@pytest.mark.parametrize("pattern", ["sub/*", "*"])
def test_data_that_were_made_anew_after_the_rows_were_read_are_refused(
    own_refined: Path, out: Path, pattern: str
) -> None:
    """Whoever opened the selection before finds out too, and does not get the masks that are in their places now."""
    select(str(own_refined), str(out), Filter(images=(pattern,)))
    selection = open_shards(str(out))
    unit, (base, own) = 0, selection.origin(0)
    (image, *_) = (image for image in selection.images(unit) if image.masks)
    (rows, *_) = (rows for rows in selection.uncertainty(unit) if rows)
    writers = {name: UnitWriter(base.dataset, base.layer(name), base.unit(own)) for name in (MASKS, MAPS)}
    for name, writer in writers.items():
        for index, sample in enumerate(read_unit_images(base, own, name)):
            add_unit_image(writer, index, UnitImage(sample.rows[::-1], sample.blobs[::-1]))
        (own_refined / manifest_path(name, own)).unlink()
    record, _ = writers[MASKS].commit(base.storage)
    writers[MAPS].commit(base.storage, record.data_sha256)
    for read in (selection.label_blobs, lambda unit, image: selection.read_label_logits(unit, image, [0])):
        with pytest.raises(ShardError, match=r"manifest/masks/00000\d\.parquet: of other data than when the selection"):
            read(unit, image)
    with pytest.raises(ShardError, match=r"refinement/00000\d\.parquet: of other data than when the selection"):
        selection.read_uncertainty(unit, rows)


def test_verify_checks_the_rows_and_the_data_they_are_of(own_refined: Path, out: Path) -> None:
    select(str(own_refined), str(out), Filter(max_mean_u=median_of(own_refined, "mean_u", MAPS)))
    assert problems(out) == []
    rows = out / "rows" / "000000.parquet"
    whole = rows.read_bytes()
    rows.write_bytes(whole[:60] + bytes([whole[60] ^ 1]) + whole[61:])
    assert any("rows/000000.parquet: damaged" in problem for problem in problems(out))
    rows.unlink()
    assert any("rows/000000.parquet: missing" in problem for problem in problems(out))
    rows.write_bytes(whole)
    tar = own_refined / "masks" / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    assert any("masks/000001.tar: " in problem for problem in problems(out))


@pytest.mark.parametrize("place", range(0, 1200, 37))
def test_flipped_bit_of_a_selection_is_noticed(finished: Finished, tmp_path: Path, place: int) -> None:
    out = tmp_path / "selection"
    select(str(finished[0]), str(out), Filter(images=("sub/*",)))
    data = bytearray((out / DATASET).read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    (out / DATASET).write_bytes(bytes(data))
    with pytest.raises(ShardError, match=r"selection/dataset\.json: damaged"):
        open_shards(str(out))


def test_commands_read_a_selection_like_a_shard_set(refined: Finished, out: Path, tmp_path: Path) -> None:
    made = labelgen("select", "--shards", str(refined[0]), "--out", str(out), "--images", "sub/*")
    assert made.exit_code == 0, made.output
    assert made.output.startswith("wrote a selection: ")
    count = len(seen(open_shards(str(out))))
    status = labelgen("status", "--shards", str(out))
    assert f"{out}: 3 images in 2 units" in status.output
    assert f"layer masks (tar): 2 of 2 units, 3 images, {count} masks, 0 errors" in status.output
    verified = labelgen("verify", "--shards", str(out))
    assert verified.exit_code == 0, verified.output
    assert f"layer masks: 2 units sound with {count} masks" in verified.output
    assert labelgen("view", "--shards", str(out), "--out", str(tmp_path / "page.html")).exit_code == 0
    export = labelgen("export", "--shards", str(out), "--out", str(tmp_path / "coco.json"))
    assert f"3 images, {count} masks" in export.output
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert {image["key"] for image in coco["images"]} == {"sub/photo1", "sub/photo3", "sub/photo5"}
    assert labelgen("gc", "--shards", str(out)).output.startswith("0 files")
