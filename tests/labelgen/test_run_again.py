"""A run that is begun again does what is missing, and refuses other settings and photos by name."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from labelled import Finished, Label, Snapshot
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import (
    CheckpointError,
    SettingsDifferError,
    ShardError,
)
from sum_factory.shared.exactness import Exactness, exactness_of
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage


def test_second_run_does_nothing_and_says_so(finished: Finished, photos: Path, label: Label) -> None:
    paths = [path for path in finished[0].rglob("*") if path.is_file()]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths}
    summary = label(photos, finished[0])
    assert summary.lines() == "3 of 3 units present, nothing to do"
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths} == before
    assert sorted(path for path in finished[0].rglob("*") if path.is_file()) == sorted(paths)


def test_same_run_elsewhere_writes_the_same_bytes(
    finished: Finished, photos: Path, tmp_path: Path, label: Label, snapshot: Snapshot
) -> None:
    label(photos, tmp_path / "shards")
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_settings_that_do_not_count_are_free_to_change(finished: Finished, photos: Path, label: Label) -> None:
    assert label(photos, finished[0], points_per_batch=3, runtime=Runtime("auto")).units_done == 0


def test_points_per_batch_changes_rounding_only(
    three_photos: Path, tmp_path: Path, label: Label, loose: AutomaskSettings
) -> None:
    scores = {}
    for batch in (64, 3):
        label(
            three_photos, tmp_path / f"{batch}", points_per_batch=batch, automask=replace(loose, box_nms_thresh=1.0)
        )  # without NMS, whose order rounding may change
        rows = [row for _, image in ShardSet.open(str(tmp_path / f"{batch}")).walk() for row in image.masks]
        scores[batch] = sorted((row["image"], row["point_x"], row["point_y"], row["predicted_iou"]) for row in rows)
    assert len(scores[64]) == len(scores[3])
    for one, other in zip(scores[64], scores[3], strict=True):
        assert one[:3] == other[:3]
        assert one[3] == pytest.approx(other[3], abs=1e-5)


def test_run_reads_and_writes_where_there_is_no_disk(photos: Path, label: Label, finished: Finished) -> None:
    summary = label(photos, "memory://labelled/shards")
    assert summary.masks == finished[1].masks
    for path in finished[0].rglob("*.*"):
        name = str(path.relative_to(finished[0]))
        assert Storage("memory://labelled/shards").read(name) == path.read_bytes()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"points_per_side": 3}, "points_per_side: there 2, asked for 3"),
        ({"box_nms_thresh": 0.5, "crop_n_layers": 1}, r"box_nms_thresh(.|\n)*crop_n_layers: there 0, asked for 1"),
        ({"max_area_share": 0.9}, "max_area_share"),
    ],
)
def test_other_settings_are_refused_by_name(
    finished: Finished, photos: Path, label: Label, loose: AutomaskSettings, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(SettingsDifferError, match=named):
        label(photos, finished[0], automask=replace(loose, **changes))


@pytest.mark.parametrize("exactness", ["encoder-bf16", "fast"])
def test_another_level_is_refused_by_name(finished: Finished, photos: Path, label: Label, exactness: Exactness) -> None:
    named = f"layer masks: exactness: there exact, here it would be {exactness}. Give --exactness exact to go on"
    with pytest.raises(SettingsDifferError, match=named):
        label(photos, finished[0], runtime=Runtime("cpu", exactness))


@pytest.mark.parametrize(
    ("exactness", "recorded"),
    [
        ("exact", {"precision": "fp32"}),
        ("encoder-bf16", {"precision": "bf16"}),
        ("fast", {"precision": "bf16", "decoder_precision": "bf16"}),
    ],
)
def test_level_is_recorded_as_what_each_part_computed_in(
    three_photos: Path, tmp_path: Path, label: Label, exactness: Exactness, recorded: dict[str, str]
) -> None:
    """The first two as they were before there were levels: such sets go on, with the same ids."""
    label(three_photos, tmp_path, runtime=Runtime("cpu", exactness), keep_logits=True)
    shards = ShardSet.open(str(tmp_path))
    for layer in ("masks", "logits"):
        settings = shards.layer(layer).settings
        assert {name: value for name, value in settings.items() if "precision" in name} == recorded
        assert exactness_of(settings) == exactness
    assert label(three_photos, tmp_path, runtime=Runtime("cpu", exactness), keep_logits=True).units_done == 0


def test_other_unit_size_is_refused_by_name(finished: Finished, photos: Path, label: Label) -> None:
    with pytest.raises(SettingsDifferError, match="unit_size: there 2, asked for 3"):
        label(photos, finished[0], unit_size=3)


def test_other_weights_are_refused(finished: Finished, photos: Path, tmp_path: Path, label: Label) -> None:
    state = load_sam().sam.state_dict()
    state["mask_decoder.iou_token.weight"] = state["mask_decoder.iou_token.weight"] + 1
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(SettingsDifferError, match=r"other weights(.|\n)*sha256"):
        label(photos, finished[0], sam=str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        label(photos, finished[0], sam=str(tmp_path / "gone.pth"))


def test_changed_image_is_refused_by_name(finished: Finished, own_photos: Path, label: Label) -> None:
    Image.new("RGB", (64, 48)).save(own_photos / "photo4.png")
    with pytest.raises(SettingsDifferError, match=r"photo4\.png: changed"):
        label(own_photos, finished[0])


def test_touched_and_moved_images_are_accepted(finished: Finished, own_photos: Path, label: Label) -> None:
    os.utime(own_photos / "photo0.jpg", (1, 1))
    assert label(own_photos, finished[0]).units_done == 0


def test_added_and_removed_images_are_refused_by_name(finished: Finished, own_photos: Path, label: Label) -> None:
    (own_photos / "photo2.jpg").rename(own_photos / "photo9.jpg")
    with pytest.raises(SettingsDifferError, match=r"1 planned images are gone.*'photo2'.*1 images are new.*'photo9'"):
        label(own_photos, finished[0])


def test_other_order_of_the_same_images_is_refused(
    finished: Finished, three_photos: Path, tmp_path: Path, label: Label
) -> None:
    paths = [str(path) for path in three_photos.rglob("*.*")]
    (tmp_path / "list.txt").write_text("\n".join(sorted(paths)))
    label(tmp_path / "list.txt", tmp_path / "shards")
    (tmp_path / "list.txt").write_text("\n".join(sorted(paths, reverse=True)))
    with pytest.raises(SettingsDifferError, match="another order"):
        label(tmp_path / "list.txt", tmp_path / "shards")


def test_deleted_manifest_makes_its_unit_again(
    own_shards: Path, photos: Path, label: Label, snapshot: Snapshot
) -> None:
    before = snapshot(own_shards)
    (own_shards / "manifest/masks/000001.parquet").unlink()
    summary = label(photos, own_shards)
    assert (summary.units_before, summary.units_done, summary.images) == (2, 1, 2)
    assert snapshot(own_shards) == before


@pytest.mark.parametrize("content", [None, b"{"], ids=["missing", "damaged and deleted"])
def test_lost_plan_of_a_unit_is_made_again(
    own_shards: Path, photos: Path, label: Label, snapshot: Snapshot, content: bytes | None
) -> None:
    before = snapshot(own_shards)
    plan_of_unit = own_shards / "units/000001.json"
    if content is not None:
        plan_of_unit.write_bytes(content)
        with pytest.raises(ShardError, match=r"units/000001\.json: damaged.*delete it"):
            label(photos, own_shards)
    plan_of_unit.unlink()
    assert label(photos, own_shards).units_done == 0
    assert snapshot(own_shards) == before


def test_lost_plan_is_not_made_of_other_images(
    own_shards: Path, own_photos: Path, label: Label, snapshot: Snapshot
) -> None:
    (own_shards / "units/000001.json").unlink()
    (own_photos / "photo4.png").unlink()  # which is in it
    before = snapshot(own_shards)
    with pytest.raises(SettingsDifferError, match="made of other images"):
        label(own_photos, own_shards)
    assert snapshot(own_shards) == before


def test_plan_of_another_shard_set_is_refused(
    own_shards: Path, three_photos: Path, tmp_path: Path, label: Label
) -> None:
    (three_photos / "photo0.jpg").unlink()
    label(three_photos, tmp_path / "other")
    shutil.copy(tmp_path / "other/units/000000.json", own_shards / "units/000000.json")
    with pytest.raises(ShardError, match=r"units/000000\.json"):
        label(three_photos, own_shards)
