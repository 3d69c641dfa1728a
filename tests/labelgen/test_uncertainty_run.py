"""Layers of uncertainty on disk: in one pass or later, the same bytes; each beside the others; never of other masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.codecs.uncertainty import decode_uncertainty
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.exactness import Exactness
from sum_factory.shared.sam.runtime import Runtime
from sum_factory.shared.shards.shard_set import ImageRows, ShardSet
from sum_factory.shared.store.storage import Storage

Label = Callable[..., RunSummary]
Snapshot = Callable[[Path], dict[str, str]]
Problems = Callable[[Path], list[str]]
Refined = tuple[Path, RunSummary]

UNITS = ("000000", "000001", "000002")
TAR, MANIFEST = "uncertainty/refinement/000001.tar", "manifest/uncertainty/refinement/000001.parquet"


def rows_of(shards: Path, layer: str) -> list[dict[str, Any]]:
    """Return all rows of a layer, as anybody with pyarrow reads them."""
    return [row for path in sorted((shards / "manifest" / layer).iterdir()) for row in pq.read_table(path).to_pylist()]


def drop_layer(shards: Path, name: str) -> None:
    """Make a shard set as if a layer had never been added."""
    shutil.rmtree(shards / "uncertainty" / name)
    shutil.rmtree(shards / "manifest/uncertainty" / name)
    told = ShardSet.open(str(shards)).dataset
    layers = {layer: described for layer, described in told.layers.items() if layer != f"uncertainty/{name}"}
    (shards / "dataset.json").write_bytes(replace(told, layers=layers).to_json())
    for empty in (shards / "uncertainty", shards / "manifest/uncertainty"):
        if not any(empty.iterdir()):
            empty.rmdir()


# What lies on disk


def test_layer_lies_beside_the_masks_and_leaves_them_alone(
    refined: Refined, finished: Refined, snapshot: Snapshot
) -> None:
    files, masks = snapshot(refined[0]), snapshot(finished[0])
    added = {f"uncertainty/refinement/{u}.tar" for u in UNITS}
    added |= {f"manifest/uncertainty/refinement/{u}.parquet" for u in UNITS}
    assert set(files) - set(masks) == added
    assert {name for name in masks if files[name] != masks[name]} == {"dataset.json"}


def test_manifest_is_row_for_row_that_of_the_masks(refined: Refined) -> None:
    maps, masks = rows_of(refined[0], "uncertainty/refinement"), rows_of(refined[0], "masks")
    names = ("image", "image_index", "height", "width", "error", "mask")
    assert [[row[name] for name in names] for row in maps] == [[row[name] for name in names] for row in masks]
    assert list(maps[0]) == [*names, "offset", "length", "crc32", "mean_u", "u_valid"]
    assert refined[1].unknown == 0
    assert {row["u_valid"] for row in maps if row["mask"] is not None} == {True}


def test_dataset_file_says_what_decided_the_layer(refined: Refined, refiner: str) -> None:
    layers = json.loads((refined[0] / "dataset.json").read_text())["layers"]
    layer = layers["uncertainty/refinement"]
    assert layer["settings"] == {
        "source": "refinement",
        "min_refine_area": 0,
        "precision": "fp32",
        "masks": layers["masks"]["id"],
    }
    assert layer["weights"]["sam"] == layers["masks"]["weights"]["sam"]
    assert set(layer["weights"]) == {"sam", "refiner"}
    assert len(layer["weights"]["refiner"]["sha256"]) == 64


def test_frames_decode_to_the_valid_part_of_the_grid_and_their_mean(refined: Refined) -> None:
    shards = ShardSet.open(str(refined[0]))
    masks = rows_of(refined[0], "masks")
    for row, mask in zip(rows_of(refined[0], "uncertainty/refinement"), masks, strict=True):
        if row["mask"] is None:
            continue
        unit = next(n for n in shards.committed() if row["image"] in [i.key for i in shards.unit(n).images])
        data = (refined[0] / f"uncertainty/refinement/{unit:06d}.tar").read_bytes()
        u, logits = decode_uncertainty(data[row["offset"] : row["offset"] + row["length"]])
        frame = ImageRows("", 0, 0, 0, None, None, (mask,)).frame(0, 256)
        assert logits is not None
        assert u.shape == logits.shape == frame.interpolation_cells
        height, width = frame.photo_cells
        assert abs(u[:height, :width].mean() - row["mean_u"]) < 0.02


def test_refiner_that_disagrees_leaves_traces(refined: Refined) -> None:
    shards = ShardSet.open(str(refined[0]))
    maps = [
        one for n in shards.committed() for rows in shards.uncertainty(n) for one in shards.read_uncertainty(n, rows)
    ]
    assert max(one.u.max() for one in maps) > 0.3
    assert np.mean([row["mean_u"] for row in rows_of(refined[0], "uncertainty/refinement")]) > 0


def test_plain_webdataset_reads_a_tar_of_maps(refined: Refined) -> None:
    rows = rows_of(refined[0], "uncertainty/refinement")
    for path in sorted((refined[0] / "uncertainty/refinement").iterdir()):
        for sample in webdataset.WebDataset(str(path), shardshuffle=False):
            meta = json.loads(sample["json"])
            of_image = [row for row in rows if row["image"] == meta["key"] and row["mask"] is not None]
            assert unquote(sample["__key__"]) == meta["key"]
            assert meta["length"] == [row["length"] for row in of_image]
            assert sum(meta["length"]) == len(sample["uncertainty"])


# Again, later, elsewhere


def test_layer_that_is_added_later_has_the_bytes_of_one_pass(
    own_refined: Path, refined: Refined, refiner: str, add_maps: Label, snapshot: Snapshot, problems: Problems
) -> None:
    drop_layer(own_refined, "refinement")
    summary = add_maps(own_refined, refiner)
    assert (summary.units_done, summary.images, summary.masks) == (3, 6, refined[1].masks)
    assert snapshot(own_refined) == snapshot(refined[0])
    assert problems(own_refined) == []


@pytest.mark.parametrize(
    ("changes", "batch", "least"),
    [
        ({"points_per_side": 1, "crop_n_layers": 1, "crop_nms_thresh": 1.0}, 5, 0),
        ({"min_mask_region_area": 60}, 3, 20_000),
    ],
    ids=["crops", "cleaned and small"],
)
def test_one_pass_and_later_agree_with_crops_and_clean_up(
    three_photos: Path, tmp_path: Path, label: Label, add_maps: Label, loose: AutomaskSettings, refiner: str,
    snapshot: Snapshot, changes: dict[str, Any], batch: int, least: int,
) -> None:  # fmt: skip
    automask = replace(loose, box_nms_thresh=1.0, **changes)
    together, later = tmp_path / "together", tmp_path / "later"
    options = {"automask": automask, "points_per_batch": batch, "unit_size": 3}
    label(three_photos, together, refiner=refiner, min_refine_area=least, **options)
    label(three_photos, later, **options)
    add_maps(later, refiner, min_refine_area=least, points_per_batch=batch)
    assert snapshot(later) == snapshot(together)
    means = [row["mean_u"] for row in rows_of(later, "uncertainty/refinement")]
    assert 0 < means.count(0.0) < len(means) if least else 0.0 not in means
    if "crop_n_layers" in changes:
        assert len({row["crop_x1"] for row in rows_of(later, "masks")}) > 1


@pytest.mark.parametrize(("layers", "crops"), [(0, 1), (1, 5)])
def test_image_encoder_runs_once_a_crop_in_one_pass(
    three_photos: Path, tmp_path: Path, label: Label, loose: AutomaskSettings, refiner: str,
    encoder_calls: list[int], layers: int, crops: int,
) -> None:  # fmt: skip
    automask = replace(loose, points_per_side=1, crop_n_layers=layers)
    summary = label(three_photos, tmp_path / "shards", automask=automask, refiner=refiner)
    assert (summary.images, summary.unknown) == (3, 0)
    assert encoder_calls == [1] * (3 * crops)


def test_image_encoder_runs_once_an_image_later(
    own_refined: Path, other_refiner: str, add_maps: Label, encoder_calls: list[int]
) -> None:
    add_maps(own_refined, other_refiner, layer_name="other")
    assert encoder_calls == [1] * 6


def test_layer_is_written_and_read_where_there_is_no_disk(
    photos: Path, refined: Refined, label: Label, refiner: str, add_maps: Label
) -> None:
    url = "memory://refined/shards"
    label(photos, url, refiner=refiner)
    for path in refined[0].rglob("*.*"):
        assert Storage(url).read(str(path.relative_to(refined[0]))) == path.read_bytes()
    assert add_maps(url, source="entropy").units_done == 3
    assert ShardSet.open(url).uncertainty_layers == ("entropy", "refinement")


def test_second_run_does_nothing_and_says_so(
    refined: Refined, photos: Path, label: Label, refiner: str, add_maps: Label, snapshot: Snapshot
) -> None:
    before = snapshot(refined[0])
    assert label(photos, refined[0], refiner=refiner).lines() == "3 of 3 units present, nothing to do"
    assert add_maps(refined[0], refiner).lines() == "3 of 3 units present, nothing to do"
    assert label(photos, refined[0]).units_done == 0
    assert snapshot(refined[0]) == before


def test_run_with_a_refiner_adds_maps_to_masks_that_are_there(
    own_shards: Path, photos: Path, refined: Refined, label: Label, refiner: str, snapshot: Snapshot
) -> None:
    summary = label(photos, own_shards, refiner=refiner)
    assert (summary.units_before, summary.units_done, summary.unknown) == (0, 3, 0)
    assert snapshot(own_shards) == snapshot(refined[0])


def test_deleted_unit_of_maps_is_made_again(
    own_refined: Path, photos: Path, refined: Refined, label: Label, refiner: str, snapshot: Snapshot
) -> None:
    (own_refined / MANIFEST).unlink()
    (own_refined / TAR).unlink()
    assert label(photos, own_refined, refiner=refiner).units_done == 1
    assert snapshot(own_refined) == snapshot(refined[0])


def test_layers_stand_beside_each_other(
    own_refined: Path, other_refiner: str, add_maps: Label, snapshot: Snapshot, problems: Problems
) -> None:
    before = snapshot(own_refined)
    add_maps(own_refined, other_refiner, layer_name="other")
    add_maps(own_refined, source="entropy")
    add_maps(own_refined, source="confidence", layer_name="sure")
    after = snapshot(own_refined)
    assert {name: after[name] for name in before if name != "dataset.json"} == {
        name: value for name, value in before.items() if name != "dataset.json"
    }
    shards = ShardSet.open(str(own_refined))
    assert shards.uncertainty_layers == ("entropy", "other", "refinement", "sure")
    assert problems(own_refined) == []
    row = max(shards.uncertainty(0, "other"), key=len)[:1]
    other, first = (shards.read_uncertainty(0, row_of, layer)[0] for layer, row_of in
                    (("other", row), ("refinement", max(shards.uncertainty(0), key=len)[:1])))  # fmt: skip
    assert not np.array_equal(other.u, first.u)
    for layer in ("entropy", "sure"):
        (one,) = shards.read_uncertainty(0, max(shards.uncertainty(0, layer), key=len)[:1], layer)
        assert one.refined is None


# Photos and masks that are not there


def test_photo_that_is_gone_or_changed_leaves_its_masks_unknown_and_says_why(
    own_photos: Path, tmp_path: Path, label: Label, add_maps: Label, problems: Problems
) -> None:
    shards = tmp_path / "shards"
    label(own_photos, shards)
    (own_photos / "photo0.jpg").unlink()
    Image.new("RGB", (64, 48)).save(own_photos / "photo4.png")
    summary = add_maps(shards, source="entropy")
    rows = rows_of(shards, "uncertainty/entropy")
    unknown = [row for row in rows if row["u_valid"] is False]
    assert {row["image"] for row in unknown} == {"photo0", "photo4"}
    assert {(row["length"], row["mean_u"]) for row in unknown} == {(0, None)}
    assert {row["error"].split(": ", 1)[1].split(" ")[0] for row in unknown} == {"cannot", "changed"}
    assert summary.unknown == len(unknown) > 0
    assert len(summary.errors) == 2
    assert problems(shards) == []
    opened = ShardSet.open(str(shards))
    of_photo = opened.uncertainty(0, "entropy")[0]
    assert {(row.u_valid, row.mean_u) for row in of_photo} == {(False, None)}
    assert opened.read_uncertainty(0, of_photo, "entropy") == [None] * len(of_photo)


def test_images_without_masks_and_bad_images_have_their_rows(
    own_photos: Path, tmp_path: Path, label: Label, refiner: str, add_maps: Label, loose: AutomaskSettings,
    problems: Problems,
) -> None:  # fmt: skip
    (own_photos / "bad.jpg").write_bytes(b"")
    none = replace(loose, max_area_share=0.0)
    for automask, name in ((loose, "some"), (none, "none")):
        label(own_photos, tmp_path / name, automask=automask, refiner=refiner, unit_size=7)
        assert add_maps(tmp_path / name, source="entropy").units_done == 1
        assert problems(tmp_path / name) == []
        for layer in ("refinement", "entropy"):
            rows = rows_of(tmp_path / name, f"uncertainty/{layer}")
            (bad,) = [row for row in rows if row["image"] == "bad"]
            assert bad["error"] is not None
            assert (bad["mask"], bad["u_valid"]) == (None, None)
            assert len({row["image"] for row in rows}) == 7
            assert ShardSet.open(str(tmp_path / name)).uncertainty(0, layer)[0] == ()


def test_units_without_masks_are_left_out_and_made_when_they_have_some(
    own_shards: Path, photos: Path, refined: Refined, label: Label, refiner: str, add_maps: Label, snapshot: Snapshot
) -> None:
    (own_shards / "manifest/masks/000001.parquet").unlink()
    said: list[str] = []
    assert add_maps(own_shards, refiner, say=said.append).units_done == 2
    assert said == ["1 of 3 units have no masks yet and are left out"]
    label(photos, own_shards)
    assert add_maps(own_shards, refiner, say=said.append).units_done == 1
    assert snapshot(own_shards) == snapshot(refined[0])


@pytest.mark.parametrize(("exactness", "decoder"), [("encoder-bf16", None), ("fast", "bf16")])
def test_level_of_maps_is_that_of_the_masks(
    three_photos: Path,
    tmp_path: Path,
    label: Label,
    refiner: str,
    add_maps: Label,
    snapshot: Snapshot,
    exactness: Exactness,
    decoder: str | None,
) -> None:
    runtime = Runtime("cpu", exactness)
    label(three_photos, tmp_path / "together", runtime=runtime, refiner=refiner)
    label(three_photos, tmp_path / "later", runtime=runtime)
    add_maps(tmp_path / "later", refiner)  # asks for no level, and gets that of the masks
    assert snapshot(tmp_path / "later") == snapshot(tmp_path / "together")
    settings = ShardSet.open(str(tmp_path / "later")).layer("uncertainty/refinement").settings
    assert (settings["precision"], settings.get("decoder_precision")) == ("bf16", decoder)
    named = f"layer masks: exactness: there {exactness}.*Give --exactness {exactness} to go on"
    with pytest.raises(SettingsDifferError, match=named):
        add_maps(tmp_path / "later", refiner, exactness="exact")
    assert add_maps(tmp_path / "later", refiner, exactness=exactness).units_done == 0


def test_plan_of_another_shard_set_is_refused(own_shards: Path, three_photos: Path, tmp_path: Path, label: Label,
                                              add_maps: Label) -> None:  # fmt: skip
    (three_photos / "photo0.jpg").unlink()
    label(three_photos, tmp_path / "other")
    shutil.copy(tmp_path / "other/units/000000.json", own_shards / "units/000000.json")
    with pytest.raises(ShardError, match=r"units/000000\.json: of another shard set"):
        add_maps(own_shards, source="entropy")
