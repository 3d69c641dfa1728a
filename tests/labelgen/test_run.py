"""A run writes what is documented, once, and goes on past photos and places that are bad."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from labelled import KEYS, Finished, Label, Snapshot, problems
from sum_factory.labelgen import plan
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import (
    InputError,
    StorageError,
)
from sum_factory.shared.shards.manifest import CROP_BOX
from sum_factory.shared.shards.shard_set import ShardSet


def test_shard_set_has_the_documented_layout(finished: Finished, snapshot: Snapshot) -> None:
    units = ("000000", "000001", "000002")
    expected = {"dataset.json", *(f"units/{u}.json" for u in units), *(f"masks/{u}.tar" for u in units)}
    assert set(snapshot(finished[0])) == expected | {f"manifest/masks/{u}.parquet" for u in units}


def test_units_hold_all_images_in_order(finished: Finished) -> None:
    dataset = json.loads((finished[0] / "dataset.json").read_text())
    units = [json.loads(path.read_text()) for path in sorted((finished[0] / "units").iterdir())]
    assert [image["key"] for unit in units for image in unit["images"]] == KEYS
    assert [unit["id"] for unit in units] == dataset["units"]
    assert dataset["images"] == 6
    assert list(dataset["layers"]) == ["masks"]


def test_manifest_has_a_row_for_every_mask(finished: Finished) -> None:
    shards, summary = finished
    rows = [row for path in sorted(shards.glob("manifest/masks/*")) for row in pq.read_table(path).to_pylist()]
    masks = [row for row in rows if row["mask"] is not None]
    assert len(masks) == summary.masks > 0
    assert sorted({row["image"] for row in rows}) == KEYS
    assert summary.images == 6
    assert summary.errors == ()


def test_plain_webdataset_reads_a_tar(finished: Finished) -> None:
    for path in sorted((finished[0] / "masks").iterdir()):
        rows = pq.read_table(finished[0] / "manifest/masks" / f"{path.stem}.parquet").to_pylist()
        samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
        assert [unquote(sample["__key__"]) for sample in samples] == list(dict.fromkeys(row["image"] for row in rows))
        for sample in samples:
            meta = json.loads(sample["json"])
            of_image = [row for row in rows if row["image"] == meta["key"] and row["mask"] is not None]
            assert meta["length"] == [row["length"] for row in of_image]
            assert sum(meta["length"]) == len(sample["labels"])
            assert "crop_box" not in meta


def test_tar_tells_the_crops_of_masks_unless_all_are_of_the_whole_photo(
    photos: Path, tmp_path: Path, label: Label, loose: AutomaskSettings
) -> None:
    label(photos, tmp_path / "shards", automask=replace(loose, crop_n_layers=1, box_nms_thresh=0.99))
    boxes = []
    for path in sorted((tmp_path / "shards/masks").iterdir()):
        rows = pq.read_table(tmp_path / "shards/manifest/masks" / f"{path.stem}.parquet").to_pylist()
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            meta = json.loads(sample["json"])
            of_image = [row for row in rows if row["image"] == meta["key"] and row["mask"] is not None]
            whole = [[0, 0, row["width"], row["height"]] for row in of_image]
            expected = [[row[name] for name in CROP_BOX] for row in of_image]
            assert meta.get("crop_box", whole) == expected
            boxes += expected if "crop_box" in meta else []
    assert len({*map(tuple, boxes)}) > 1


def test_manifest_offsets_point_into_the_tar(finished: Finished) -> None:
    data = (finished[0] / "masks/000000.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        labels = b"".join(tar.extractfile(name).read() for name in tar.getnames() if name.endswith(".labels"))
    rows = pq.read_table(finished[0] / "manifest/masks/000000.parquet").to_pylist()
    assert b"".join(data[row["offset"] : row["offset"] + row["length"]] for row in rows) == labels


def test_tar_tells_nothing_of_when_and_by_whom(finished: Finished) -> None:
    with tarfile.open(finished[0] / "masks/000000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_images_without_masks_have_a_row(photos: Path, tmp_path: Path, label: Label, loose: AutomaskSettings) -> None:
    summary = label(photos, tmp_path / "shards", automask=replace(loose, max_area_share=0.0))
    assert (summary.images, summary.masks, summary.errors) == (6, 0, ())
    rows = [row for path in sorted(tmp_path.glob("shards/manifest/masks/*")) for row in pq.read_table(path).to_pylist()]
    assert [row["image"] for row in rows] == KEYS
    assert all(row["mask"] is None and row["error"] is None and row["height"] > 0 for row in rows)
    assert problems(tmp_path / "shards") == []


def test_keys_with_dots_and_foreign_letters_come_back(tmp_path: Path, label: Label) -> None:
    keys = ["v1.5/100%.raw", "写真/é", "x" * 120]
    for i, key in enumerate(keys):
        (tmp_path / "photos" / key).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30 + i), (9, 99, 199)).save(tmp_path / "photos" / f"{key}.png")
    label(tmp_path / "photos", tmp_path / "shards", unit_size=3)
    samples = list(webdataset.WebDataset(str(tmp_path / "shards/masks/000000.tar"), shardshuffle=False))
    assert sorted(unquote(sample["__key__"]) for sample in samples) == sorted(keys)
    assert sorted(image.key for _, image in ShardSet.open(str(tmp_path / "shards")).walk()) == sorted(keys)
    assert problems(tmp_path / "shards") == []


@pytest.mark.skipif(sys.platform == "darwin", reason="the file system takes UTF-8 names only")
def test_name_that_is_not_utf8_is_labelled(tmp_path: Path, label: Label) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "photos" / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "photos" / os.fsdecode(b"bad\xe9.png")).write_bytes(b"")
    summary = label(tmp_path / "photos", tmp_path / "shards")
    assert (summary.images, len(summary.errors)) == (2, 1)
    assert [image.key for _, image in ShardSet.open(str(tmp_path / "shards")).walk()] == ["bad\\xe9", "caf\\xe9"]
    assert label(tmp_path / "photos", tmp_path / "shards").units_done == 0


def test_bad_images_become_rows_and_the_run_goes_on(own_photos: Path, tmp_path: Path, label: Label) -> None:
    whole = (own_photos / "photo0.jpg").read_bytes()
    (own_photos / "bad_cut.jpg").write_bytes(whole[: len(whole) // 2])
    (own_photos / "bad_empty.jpg").write_bytes(b"")
    (own_photos / "bad_text.jpg").write_text("not a photo")
    Image.new("RGB", (3000, 1), (9, 9, 9)).save(own_photos / "bad_thin.png")
    Image.new("CMYK", (40, 30), (0, 200, 200, 0)).save(own_photos / "odd_cmyk.jpg")
    Image.new("RGB", (1, 1), (200, 0, 0)).save(own_photos / "odd_dot.png")
    deep = np.linspace(0, 65_535, 1200).astype(np.uint16).reshape(30, 40)
    Image.fromarray(deep).save(own_photos / "odd_deep.png")
    summary = label(own_photos, tmp_path / "shards")
    images = {image.key: image for _, image in ShardSet.open(str(tmp_path / "shards")).walk()}
    assert summary.images == len(images) == 13
    bad = {key for key, image in images.items() if image.error is not None}
    assert bad == {"bad_cut", "bad_empty", "bad_text", "bad_thin"}
    assert sorted(summary.errors) == sorted(images[key].error for key in bad)
    for key in bad:
        assert key in images[key].error
        assert images[key].masks == ()
    assert {(images[key].height, images[key].width) for key in ("odd_cmyk", "odd_deep")} == {(30, 40)}
    assert (images["odd_dot"].height, images["odd_dot"].width) == (1, 1)
    assert sum(len(image.masks) for image in images.values()) == summary.masks > 0
    assert problems(tmp_path / "shards") == []
    assert label(own_photos, tmp_path / "shards").units_done == 0


def test_bad_neighbours_do_not_change_a_label(
    own_photos: Path, finished: Finished, tmp_path: Path, label: Label
) -> None:
    (own_photos / "a_bad.jpg").write_bytes(b"\xff\xd8\xff")
    label(own_photos, tmp_path / "shards", unit_size=7)
    before = {image.key: image.masks for _, image in ShardSet.open(str(finished[0])).walk()}
    after = {image.key: image.masks for _, image in ShardSet.open(str(tmp_path / "shards")).walk()}
    assert after.pop("a_bad") == ()
    for key, masks in after.items():
        assert [{**mask, "offset": 0, "image_index": 0} for mask in masks] == [
            {**mask, "offset": 0, "image_index": 0} for mask in before[key]
        ]


def test_image_that_changes_after_planning_is_left_out_by_name(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = plan.prepare

    def prepare_and_change(*args: Any, **kwargs: Any) -> Any:
        planned = prepare(*args, **kwargs)
        Image.new("RGB", (64, 48)).save(three_photos / "photo4.png")
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_change)
    (error,) = label(three_photos, tmp_path / "shards").errors
    assert "photo4.png: changed since the run was planned" in error


# Refused places


def test_missing_images_leave_no_shard_set(tmp_path: Path, label: Label) -> None:
    with pytest.raises(InputError, match="gone"):
        label(tmp_path / "gone", tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_file_in_the_place_of_the_shard_set_is_refused_by_name(photos: Path, tmp_path: Path, label: Label) -> None:
    (tmp_path / "shards").write_text("in the way")
    with pytest.raises(StorageError, match=f"{tmp_path}/shards/"):
        label(photos, tmp_path / "shards")


def test_full_disk_is_named_and_leaves_nothing_half_done(
    photos: Path, finished: Finished, tmp_path: Path, label: Label, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, []

    def full_after_six(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 6:  # the plan's four files and the first unit
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_six)
    with pytest.raises(StorageError, match=r"shards/masks/000001\.tar: No space left on device"):
        label(photos, tmp_path / "shards")
    monkeypatch.undo()
    whole = snapshot(finished[0])
    left = snapshot(tmp_path / "shards")
    assert left == {name: whole[name] for name in left}
    assert ShardSet.open(str(tmp_path / "shards")).committed() == [0]
    label(photos, tmp_path / "shards")
    assert snapshot(tmp_path / "shards") == whole
