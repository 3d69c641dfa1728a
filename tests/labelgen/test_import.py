"""Masks that are there already become labels, and nothing goes unsaid."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ellipses import Mask, ellipse
from sum_factory.labelgen.cli import main
from sum_factory.labelgen.engine.stop import Stop
from sum_factory.labelgen.importing.run import Importer, ImportSummary, import_masks
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.sets.convert import convert
from sum_factory.labelgen.sets.export import export, full_size_masks
from sum_factory.labelgen.sets.merge import merge
from sum_factory.labelgen.sets.repair import diagnose, take_back
from sum_factory.labelgen.sets.select import Filter, select
from sum_factory.labelgen.sets.status import status_of
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.errors import InputError, SettingsDifferError, ShardError
from sum_factory.shared.masks import deepest_pixel, iou
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import ShardSet

SIZES = {"one": (48, 64), "two": (64, 64), "sub/three": (60, 44)}


def scored(number: int, mask: Mask, **more: Any) -> dict[str, Any]:
    """An annotation as SA-1B has it."""
    told = {"predicted_iou": 0.9 + number / 100, "stability_score": 0.95, "point_coords": [[20.5, 21.0 + number]]}
    return {"id": number, "segmentation": encode_rle(mask), **told, **more}


@pytest.fixture
def masks() -> dict[str, list[Mask]]:
    """Two masks of each photo."""
    return {
        name: [ellipse(*size, 10 * seed), ellipse(*size, 10 * seed + 1)]
        for seed, (name, size) in enumerate(SIZES.items())
    }


@pytest.fixture
def sa1b(tmp_path: Path, masks: dict[str, list[Mask]]) -> Path:
    """Three photos, each with its JSON beside it."""
    folder = tmp_path / "sa1b"
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        image = {"image_id": seed, "file_name": path.name, "height": height, "width": width}
        found = [scored(number, mask) for number, mask in enumerate(masks[name])]
        path.with_suffix(".json").write_text(json.dumps({"image": image, "annotations": found}))
    return folder


@pytest.fixture
def coco(sa1b: Path, masks: dict[str, list[Mask]]) -> Path:
    """The same as one file of COCO: an RLE of counts, a compressed one, polygons, and a crowd."""
    box = [[8.0, 8.0, 24.0, 8.0, 24.0, 40.0, 8.0, 40.0]]
    flat = masks["one"][0].T.ravel().astype(int)
    runs = np.diff(np.flatnonzero(np.diff(flat, prepend=-1)), append=len(flat)).tolist()
    segmentations = [
        (0, {"size": [48, 64], "counts": runs if not flat[0] else [0, *runs]}, 0),
        (1, encode_rle(masks["two"][0]), 0),
        (1, box, 0),
        (1, encode_rle(masks["two"][1]), 1),
    ]
    images = [
        {"id": number, "file_name": f"{name}.jpg", "height": height, "width": width}
        for number, (name, (height, width)) in enumerate(SIZES.items())
    ]
    annotations = [
        {"id": number, "image_id": of, "category_id": 1, "segmentation": segmentation, "iscrowd": crowd}
        for number, (of, segmentation, crowd) in enumerate(segmentations)
    ]
    path = sa1b.parent / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    return path


def imported(
    annotations: Path, images: Path, shards: Path, said: list[str] | None = None, **changes: Any
) -> ImportSummary:
    """Import in units of two photos."""
    kind = "coco" if annotations.suffix == ".json" else "sa1b"
    settings = {"unit_size": 2, **changes}
    stop = settings.pop("stop", None)
    asked = ImportSettings(kind, (str(annotations),), (str(images),), str(shards), **settings)  # type: ignore[arg-type]
    return import_masks(asked, (said if said is not None else []).append, stop)


def rows_of(shards: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of each photo's masks."""
    return {image.key: list(image.masks) for _, image in ShardSet.open(str(shards)).walk()}


def test_sa1b_is_imported_with_its_points_and_scores(
    sa1b: Path, masks: dict[str, list[Mask]], tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    summary = imported(sa1b, sa1b, tmp_path / "labels")
    assert (summary.run.images, summary.run.masks, summary.run.errors, summary.missing) == (3, 6, (), ())
    assert problems(tmp_path / "labels") == []
    shards = ShardSet.open(str(tmp_path / "labels"))
    for number, image in shards.walk():
        given = masks[image.key]
        assert min(map(iou, full_size_masks(shards, number, image), given)) > 0.95
        for k, row in enumerate(image.masks):
            ys, xs = np.nonzero(given[k])
            box = (row["box_x"], row["box_y"], row["box_x"] + row["box_w"], row["box_y"] + row["box_h"])
            assert box == (xs.min(), ys.min(), xs.max(), ys.max())
            assert (row["area"], row["point_x"], row["point_y"]) == (given[k].sum(), 20.5, 21.0 + k)
            assert (row["predicted_iou"], row["stability"]) == (np.float32(0.9 + k / 100), np.float32(0.95))
    layer = shards.layer()
    assert layer.settings == {"imported_from": "sa1b", "precision": "fp32"}
    assert len(layer.provenance["annotations_sha256"]) == 64


def test_tar_of_sa1b_makes_the_same_masks(sa1b: Path, tmp_path: Path) -> None:
    imported(sa1b, sa1b, tmp_path / "labels")
    with tarfile.open(tmp_path / "sa.tar", "w") as tar:
        tar.add(sa1b, ".")
    imported(tmp_path / "sa.tar", tmp_path / "sa.tar", tmp_path / "of_tar")
    ours, theirs = rows_of(tmp_path / "labels"), rows_of(tmp_path / "of_tar")
    assert {key: [row["crc32"] for row in rows] for key, rows in theirs.items()} == {
        key: [row["crc32"] for row in rows] for key, rows in ours.items()
    }


def test_coco_has_the_deepest_pixel_as_point_and_no_scores(
    sa1b: Path, coco: Path, masks: dict[str, list[Mask]], tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    said: list[str] = []
    summary = imported(coco, sa1b, tmp_path / "labels", said)
    assert (summary.run.masks, summary.run.errors) == (3, ())
    assert "left out 1 crowds" in said
    assert problems(tmp_path / "labels") == []
    rows = rows_of(tmp_path / "labels")
    assert rows["sub/three"] == []
    box = np.zeros((64, 64), bool)
    box[8:40, 8:24] = True
    for row, mask in zip([*rows["one"], *rows["two"]], [masks["one"][0], masks["two"][0], box], strict=True):
        assert (row["point_x"], row["point_y"]) == deepest_pixel(mask)
        assert (row["predicted_iou"], row["stability"], row["area"]) == (None, None, mask.sum())


def test_scores_that_are_not_there_are_not_asked_for(sa1b: Path, coco: Path, tmp_path: Path) -> None:
    imported(coco, sa1b, tmp_path / "labels")
    for asked in ({"min_stability": 0.5}, {"min_predicted_iou": 0.5}):
        with pytest.raises(ShardError, match="were imported without; leave --min-"):
            select(str(tmp_path / "labels"), str(tmp_path / "chosen"), Filter(**asked))  # type: ignore[arg-type]
    select(str(tmp_path / "labels"), str(tmp_path / "chosen"), Filter(min_area=1))
    assert len(list(open_shards(str(tmp_path / "chosen")).walk())) == 2
    export(ShardSet.open(str(tmp_path / "labels")), tmp_path / "out.json")
    exported = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert all("predicted_iou" not in each and "stability_score" not in each for each in exported)


def test_what_was_exported_is_imported_with_its_scores(sa1b: Path, tmp_path: Path) -> None:
    imported(sa1b, sa1b, tmp_path / "labels")
    export(ShardSet.open(str(tmp_path / "labels")), tmp_path / "out.json")
    imported(tmp_path / "out.json", sa1b, tmp_path / "again")
    told = ("point_x", "point_y", "predicted_iou", "stability")
    ours, theirs = rows_of(tmp_path / "labels"), rows_of(tmp_path / "again")
    assert {key: [[row[name] for name in told] for row in rows] for key, rows in theirs.items()} == {
        key: [[row[name] for name in told] for row in rows] for key, rows in ours.items()
    }


def test_photos_without_annotations_and_annotations_without_photos_are_named(
    sa1b: Path, tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    (sa1b / "two.json").unlink()
    (sa1b / "one.jpg").unlink()
    command = ["import", "--format=sa1b", f"--annotations={sa1b}", f"--images={sa1b}", f"--shards={tmp_path}/labels"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 3, result.output
    assert "two.jpg: has no annotations in" in result.output
    assert "1 photos that have annotations are not in --images: one" in result.output
    assert any("two.jpg: has no annotations" in line for line in status_of(ShardSet.open(f"{tmp_path}/labels"), ""))
    assert problems(tmp_path / "labels") == []
    (sa1b / "two.jpg").unlink()
    result = CliRunner().invoke(main, [*command[:-1], f"--shards={tmp_path}/others"])
    assert result.exit_code == 3, result.output


def test_masks_smaller_than_a_cell_are_left_out_and_counted(sa1b: Path, tmp_path: Path) -> None:
    path = sa1b / "two.json"
    content = json.loads(path.read_text())
    content["image"] |= {"height": 640, "width": 640}
    thin = np.zeros((640, 640), bool)
    thin[:, 300:303] = True  # a cell is 10 pixels wide
    content["annotations"] = [scored(0, thin)]
    Image.new("RGB", (640, 640)).save(sa1b / "two.jpg")
    path.write_text(json.dumps(content))
    said: list[str] = []
    summary = imported(sa1b, sa1b, tmp_path / "labels", said)
    assert summary.run.masks == 4
    assert rows_of(tmp_path / "labels")["two"] == []
    assert any(line.startswith("left out 1 masks that cover no more than half of any cell") for line in said)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"predicted_iou": None}, "has predicted_iou None; expected a number"),
        ({"point_coords": [[70.0, 1.0]]}, r"has point_coords \[\[70.0, 1.0\]\]"),
        ({"segmentation": {"size": [64, 64], "counts": [5]}}, "RLE that is shorter or longer"),
        ({"segmentation": {"size": [65, 64], "counts": [65 * 64]}}, r"has an RLE of \[65, 64\]"),
        ({"iscrowd": "perhaps"}, "iscrowd that is neither 0 nor 1"),
    ],
)
def test_a_damaged_annotation_is_the_fault_of_its_photo(
    change: dict[str, Any], told: str, sa1b: Path, tmp_path: Path
) -> None:
    path = sa1b / "two.json"
    content = json.loads(path.read_text())
    content["annotations"][1] |= change
    path.write_text(json.dumps(content))
    (error,) = imported(sa1b, sa1b, tmp_path / "labels").run.errors
    assert "two.json: annotation 1 " in error
    assert re.search(told, error)


@pytest.mark.parametrize(("orientation", "size", "fits"), [(6, (48, 64), True), (6, (64, 48), False), (3, None, False)])
def test_masks_on_photos_that_exif_turns(
    orientation: int, size: tuple[int, int] | None, fits: bool, sa1b: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = (48, 64) if size else (64, 64)  # width, height in the file; as shown the first is 64 x 48
    Image.new("RGB", stored).save(sa1b / "two.jpg", exif=exif)
    height, width = size or (64, 64)
    content = {"image": {"file_name": "two.jpg", "height": height, "width": width}, "annotations": []}
    content["annotations"] = [scored(0, ellipse(height, width, 0))]  # type: ignore[assignment]
    (sa1b / "two.json").write_text(json.dumps(content))
    assert (imported(sa1b, sa1b, tmp_path / "labels").run.errors == ()) is fits


def test_photos_of_one_name_are_refused(sa1b: Path, tmp_path: Path) -> None:
    (sa1b / "sub" / "one.jpg").write_bytes((sa1b / "one.jpg").read_bytes())
    with pytest.raises(InputError, match=r"one may be of .*one\.jpg and of .*one\.jpg"):
        imported(sa1b, sa1b, tmp_path / "labels")


def test_an_import_that_is_killed_goes_on_to_the_same_bytes(
    sa1b: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(sa1b, sa1b, tmp_path / "whole")
    original, calls = Importer._import, []

    def dying(self: Importer, *of: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *of)

    monkeypatch.setattr(Importer, "_import", dying)
    with pytest.raises(KeyboardInterrupt):
        imported(sa1b, sa1b, tmp_path / "killed")
    assert len(ShardSet.open(str(tmp_path / "killed")).committed()) == 1
    summary = imported(sa1b, sa1b, tmp_path / "killed")
    assert (summary.run.units_before, summary.run.units_done) == (1, 1)
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "whole")
    assert "nothing to do" in imported(sa1b, sa1b, tmp_path / "killed").run.lines()


def test_a_stop_ends_between_units(sa1b: Path, tmp_path: Path) -> None:
    stop = Stop()
    stop.request("by a test")
    assert not imported(sa1b, sa1b, tmp_path / "labels", stop=stop).run.is_whole


def test_other_annotations_are_refused(sa1b: Path, tmp_path: Path) -> None:
    imported(sa1b, sa1b, tmp_path / "labels")
    content = json.loads((sa1b / "one.json").read_text())
    (sa1b / "one.json").write_text(json.dumps(content | {"more": 1}))
    with pytest.raises(SettingsDifferError, match="was made with other annotations"):
        imported(sa1b, sa1b, tmp_path / "labels")


def test_other_commands_work_on_imported_masks(
    sa1b: Path, coco: Path, tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    for name, images in (("first", [sa1b / "one.jpg"]), ("second", [sa1b / "two.jpg"])):
        folder = tmp_path / f"{name}_photos"
        folder.mkdir()
        for path in images:
            shutil.copy(path, folder)
            shutil.copy(path.with_suffix(".json"), folder)
        imported(folder, folder, tmp_path / name)
    merge([str(tmp_path / "first"), str(tmp_path / "second")], str(tmp_path / "both"))
    assert [len(image.masks) for _, image in open_shards(str(tmp_path / "both")).walk()] == [2, 2]
    imported(coco, sa1b, tmp_path / "labels")
    assert convert(str(tmp_path / "labels"), str(tmp_path / "zarr"), "zarr").problems == ()
    assert problems(tmp_path / "zarr") == []
    imported(coco, sa1b, tmp_path / "made_so", encoding="zarr")
    ours, theirs = rows_of(tmp_path / "zarr"), rows_of(tmp_path / "made_so")
    assert ours == theirs
    result = CliRunner().invoke(main, ["view", f"--shards={tmp_path}/labels", f"--out={tmp_path}/page.html"])
    assert result.exit_code == 0, result.output


def test_what_is_taken_back_is_made_again_by_an_import(
    sa1b: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    imported(sa1b, sa1b, tmp_path / "labels")
    before = snapshot(tmp_path / "labels")
    (tmp_path / "labels/masks/000000.tar").write_bytes(b"damaged")
    shards = ShardSet.open(str(tmp_path / "labels"))
    diagnosis = diagnose(shards)
    assert diagnosis.commands() == "`labelgen import`"
    take_back(shards.storage, diagnosis.broken)
    imported(sa1b, sa1b, tmp_path / "labels")
    shutil.rmtree(tmp_path / "labels/quarantine")
    assert snapshot(tmp_path / "labels") == before


def test_maps_of_imported_masks_are_those_of_the_masks_that_were_exported(
    refined: tuple[Path, Any],
    photos: Path,
    tmp_path: Path,
    refiner: str,
    add_maps: Callable[..., Any],
    problems: Callable[[Path], list[str]],
) -> None:
    theirs = ShardSet.open(str(refined[0]))
    export(theirs, tmp_path / "out.json")
    summary = imported(tmp_path / "out.json", photos, tmp_path / "labels").run
    made = add_maps(tmp_path / "labels", refiner)
    assert (made.masks, made.errors) == (summary.masks, ())
    assert problems(tmp_path / "labels") == []
    ours = ShardSet.open(str(tmp_path / "labels"))
    compared = 0
    for (number, image), (their_number, their_image) in zip(ours.walk(), theirs.walk(), strict=True):
        if len(image.masks) != len(their_image.masks):
            continue  # masks that are too small, or have no pixel, were left out
        rows, their_rows = ours.uncertainty(number)[image.index], theirs.uncertainty(their_number)[their_image.index]
        for row, their_row in zip(rows, their_rows, strict=True):
            if row.mean_u is not None and their_row.mean_u is not None:
                assert row.mean_u == pytest.approx(their_row.mean_u, abs=0.1)
                compared += 1
    assert compared > 5


def test_maps_of_labels_are_known_whatever_made_the_masks(
    sa1b: Path, tmp_path: Path, add_maps: Callable[..., Any]
) -> None:
    imported(sa1b, sa1b, tmp_path / "labels")
    made = add_maps(tmp_path / "labels", source="label-confidence")
    assert (made.masks, made.unknown, made.errors) == (6, 0, ())
