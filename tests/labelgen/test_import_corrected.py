"""Masks that people corrected in labelme or Label Studio come back: as labels, and as human data that is trained on."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.importing.run import ImportSummary, import_masks
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.sets.export import export, full_size_masks
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.shared.annotations.brush import decode_brush, encode_brush
from sum_factory.shared.annotations.coco_file import read_annotations
from sum_factory.shared.annotations.segmentations import check_segmentations, draw
from sum_factory.shared.errors import InputError
from sum_factory.shared.masks import iou
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.cli import main as trainer
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.data.sets import CocoSettings, open_set
from sum_factory.trainer.methods import METHODS

Mask = npt.NDArray[np.bool_]
SIZE = (48, 64)
RECTANGLE = [[8.0, 6.0], [40.0, 30.0]]


def imported(format: str, annotations: Path, images: Path, out: Path, **more: Any) -> ImportSummary:
    asked = ImportSettings(format, (str(annotations),), (str(images),), str(out), unit_size=2, **more)  # type: ignore[arg-type]
    return import_masks(asked, lambda line: None)


def rectangle() -> Mask:
    mask = np.zeros(SIZE, bool)
    mask[6:30, 8:40] = True
    return mask


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a", "b", "sub/c")):
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)).save(folder / f"{name}.jpg")
    return folder


@pytest.fixture
def labels(photos: Path, tmp_path: Path) -> ShardSet:
    """Labels of two masks per photo, a disc and a band in two parts."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    disc, band = np.hypot(y - 24.0, x - 20.0) < 14, (x > 40) & (abs(y - 24) > 6)
    shapes = [labelme_of("mask", [[0, 0], [63, 47]], mask=png(mask)) for mask in (disc, band)]
    for path in photos.rglob("*.jpg"):
        write_labelme(path.with_suffix(".json"), shapes)
    imported("labelme", photos, photos, tmp_path / "labels")
    for path in photos.rglob("*.json"):
        path.unlink()
    return ShardSet.open(str(tmp_path / "labels"))


def png(mask: Mask) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode()


def labelme_of(kind: str, points: list[list[float]], **more: Any) -> dict[str, Any]:
    return {"label": "object", "points": points, "group_id": None, "shape_type": kind, "flags": {}, **more}


def write_labelme(path: Path, shapes: list[dict[str, Any]], **more: Any) -> None:
    told = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": f"{path.stem}.jpg", "imageData": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**told, "imageHeight": SIZE[0], "imageWidth": SIZE[1], **more}))


def masks_of(shards: ShardSet) -> dict[str, list[Mask]]:
    return {image.key: list(full_size_masks(shards, number, image)) for number, image in shards.walk()}


def human(annotations: Path, images: Path) -> dict[str, list[Mask]]:
    opened = open_set(CocoSettings("coco", annotations, images, "entity"))
    return {key: list(opened.load(index).masks) for index, key in enumerate(opened.keys)}


def compare(found: dict[str, list[Mask]], expected: dict[str, list[Mask]], least: float) -> None:
    assert {key: len(of_photo) for key, of_photo in found.items()} == {key: len(it) for key, it in expected.items()}
    for key, of_photo in expected.items():
        assert min(map(iou, found[key], of_photo)) >= least


@pytest.mark.parametrize("shapes", ["polygons", "bitmaps"])
def test_labelme_round_trip(labels: ShardSet, tmp_path: Path, shapes: str) -> None:
    """Exported, corrected, read as human data and as labels."""
    export(labels, tmp_path / "fix", ExportSettings("labelme", shapes))  # type: ignore[arg-type]
    expected = masks_of(labels)
    compare(human(tmp_path / "fix", tmp_path / "fix"), expected, 0.93 if shapes == "polygons" else 1)
    path = tmp_path / "fix/sub/c.json"
    told = json.loads(path.read_text())
    told["shapes"] = [labelme_of("rectangle", RECTANGLE), *told["shapes"][1:]]  # the disc is drawn anew
    path.write_text(json.dumps(told))
    expected["sub/c"][0] = rectangle()
    compare(human(tmp_path / "fix", tmp_path / "fix"), expected, 0.93)
    summary = imported("labelme", tmp_path / "fix", tmp_path / "fix", tmp_path / "again")
    assert (summary.run.images, summary.run.masks, summary.run.errors) == (3, 6, ())
    compare(masks_of(ShardSet.open(str(tmp_path / "again"))), expected, 0.9)
    result = CliRunner().invoke(
        trainer, ["data", "check", str(tmp_path / "fix"), "--all", f"--sheet={tmp_path / 'sheet.jpg'}"]
    )
    assert result.exit_code == 0, result.output
    assert "3 photos" in result.output


@pytest.mark.parametrize("shapes", ["polygons", "bitmaps"])
def test_label_studio_round_trip(labels: ShardSet, photos: Path, tmp_path: Path, shapes: str) -> None:
    export(labels, tmp_path / "tasks.json", ExportSettings("label-studio", shapes))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no task has an annotation that people made, only predictions"):
        imported("label-studio", tmp_path / "tasks.json", photos, tmp_path / "again")
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    for task in tasks:
        task["annotations"] = [{"id": 1, "result": [], "was_cancelled": True}]
        task["annotations"].append({"id": 2, "result": task["predictions"].pop()["result"]})
        task["data"] = {"image": f"/data/upload/7/0123abcd-{Path(task['data']['file_name']).name}"}
        del task["predictions"]
    corrected = tasks[0]["annotations"][1]["result"][0]
    corners = [[8, 6], [40, 6], [40, 30], [8, 30]]
    percent = [[x / SIZE[1] * 100, y / SIZE[0] * 100] for x, y in corners]
    corrected |= {"type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["cup"]}}
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    expected = masks_of(labels)
    expected["a"][0] = rectangle()
    compare(human(tmp_path / "tasks.json", photos), renamed(expected), 0.93)
    assert {each["name"] for each in read_annotations(tmp_path / "tasks.json").categories} == {"object", "cup"}
    summary = imported("label-studio", tmp_path / "tasks.json", photos, tmp_path / "again")
    assert (summary.run.masks, summary.run.errors) == (6, ())
    compare(masks_of(ShardSet.open(str(tmp_path / "again"))), expected, 0.9)


def renamed(masks: dict[str, list[Mask]]) -> dict[str, list[Mask]]:
    """The same by the names that an upload leaves: without folders."""
    return {key.rpartition("/")[2]: of_photo for key, of_photo in masks.items()}


def test_an_extension_adds_photos_and_keeps_masks(
    labels: ShardSet, photos: Path, tmp_path: Path, problems: Callable[[Path], list[str]]
) -> None:
    before, out = masks_of(labels), tmp_path / "labels"
    for name in ("a", "b", "sub/c", "d"):
        write_labelme(photos / f"{name}.json", [labelme_of("rectangle", RECTANGLE)])
    shutil.copy(photos / "a.jpg", photos / "d.jpg")
    command = ["import", "--format=labelme", f"--annotations={photos}", f"--images={photos}", f"--shards={out}"]
    result = CliRunner().invoke(main, [*command, "--unit-size=2"])
    assert "was made with other annotations" in result.output
    result = CliRunner().invoke(main, [*command, "--unit-size=2", "--extend"])
    assert result.exit_code == 0, result.output
    assert problems(out) == []
    found = masks_of(ShardSet.open(str(out)))
    compare({"d": found.pop("d")}, {"d": [rectangle()]}, 0.9)
    compare(found, before, 1)
    told = ShardSet.open(str(out)).layer().provenance["annotations_sha256"]
    assert len(set(told)) == 2
    result = CliRunner().invoke(main, [*command, "--unit-size=2"])
    assert result.exit_code == 0, result.output


def test_corrected_masks_are_certain_to_every_method(
    labels: ShardSet, tmp_path: Path, add_maps: Callable[..., Any], problems: Callable[[Path], list[str]]
) -> None:
    made = add_maps(tmp_path / "labels", source="certain", layer_name="certain")
    assert (made.masks, made.unknown, made.errors) == (6, 0, ())
    assert problems(tmp_path / "labels") == []
    shards = ShardSet.open(str(tmp_path / "labels"))
    for number in shards.committed():
        for rows in shards.uncertainty(number, "certain"):
            assert [row.mean_u for row in rows] == [0.0, 0.0]
            assert all(not found.u.any() for found in shards.read_uncertainty(number, rows, "certain") if found)
    for name in ("sum", "sum-confidence-uncer", "u2pl-entropy"):
        opened = PseudoSet(shards, "certain", METHODS[name], SampleSettings(shards.input_side, 4, 2, 0))
        sample = opened.load(0, SampleId("pseudo", 0, 0)).on(torch.device("cpu"))
        assert (len(sample.masks), sample.skipped) == (2, 0)
        assert sample.certainty is None or bool((sample.certainty[:, : sample.valid[0], : sample.valid[1]] == 1).all())


# Shapes, one by one


def test_areas_of_labelme_are_masks_and_lines_are_none(tmp_path: Path) -> None:
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] + 0.5
    write_labelme(
        tmp_path / "a.json",
        [
            labelme_of("circle", [[30, 20], [30, 32]]),
            labelme_of("rectangle", RECTANGLE, group_id=3),
            labelme_of("mask", [[50.0, 40.0], [51.0, 41.0]], group_id=3, mask=png(np.ones((2, 2), bool))),
            labelme_of("line", RECTANGLE),
            labelme_of("mask", [[60, 40], [70, 47]], mask=png(np.ones((8, 11), bool))),
            labelme_of("polygon", [[1, "a"]]),  # type: ignore[list-item]
        ],
        imagePath="..\\photos\\a.jpg",
    )
    read = read_annotations(tmp_path)
    assert [image["file_name"] for image in read.images] == ["a.jpg"]
    circle, group, *others = (each["segmentation"] for each in read.annotations)
    assert others == [None, None, None]
    assert iou(draw(circle, *SIZE), np.hypot(y - 20, x - 30) < 12) > 0.95
    both = rectangle()
    both[40:42, 50:52] = True
    assert np.array_equal(draw(group, *SIZE), both)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"annotations": [{"result": []}, {"result": []}]}, "has 2 annotations; mark one of them as ground truth"),
        ({"data": {"text": "nothing"}}, "names no picture"),
        ({"annotations": [{"result": [{"type": "polygonlabels", "image_rotation": 90, "value": {}}]}]}, "was turned"),
    ],
)
def test_tasks_that_mean_several_things_are_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    task = {"id": 5, "data": {"image": "/data/local-files/?d=a%20b.jpg"}, "annotations": [{"result": []}]}
    (tmp_path / "a.json").write_text(json.dumps([task]))
    assert read_annotations(tmp_path / "a.json").images[0]["file_name"] == "a b.jpg"
    (tmp_path / "a.json").write_text(json.dumps([task | change]))
    with pytest.raises(InputError, match=f"a.json: task 5.*{told}"):
        read_annotations(tmp_path / "a.json")


def unpacked(packed: list[int]) -> npt.NDArray[np.int64]:
    """Label Studio's runs, read as plainly as can be."""
    bits = "".join(f"{each:08b}" for each in packed)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    count, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        repeats, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if repeats else [take(word) for _ in range(length)]
    assert len(values) == count
    return np.array(values)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_brush_is_packed_and_unpacked(seed: int, height: int, width: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    packed = encode_brush(mask)
    assert np.array_equal(unpacked(packed).reshape(height, width, 4)[..., 3] == 255, mask)
    assert np.array_equal(decode_brush(packed, height, width), mask)


def test_damaged_brushes_are_refused() -> None:
    packed = encode_brush(np.eye(9, dtype=bool))
    head = f"{36:032b}{7:05b}" + f"{2:04b}" * 4
    single = f"{head}000{3:03b}" + "1" * 32  # 4 of the 36 values, not as a run
    for damaged in (packed[:-4], packed[:3], [*packed[:5], 300], "text", None):
        with pytest.raises(InputError, match="has an rle"):
            decode_brush(damaged, 9, 9)
    with pytest.raises(InputError, match=r"of 324 values, and 9 x 8 pixels"):
        decode_brush(packed, 8, 9)
    as_they_are = [int(single[at : at + 8].ljust(8, "0"), 2) for at in range(0, len(single), 8)]
    with pytest.raises(InputError, match="ends too soon"):
        decode_brush(as_they_are, 3, 3)


def test_many_photos_are_made_side_by_side_as_one_by_one(
    labels: ShardSet, photos: Path, tmp_path: Path, snapshot: Callable[[Path], dict[str, str]]
) -> None:
    export(labels, tmp_path / "fix", ExportSettings("labelme"))
    for threads in (1, 3):
        imported("labelme", tmp_path / "fix", tmp_path / "fix", tmp_path / f"of_{threads}", threads=threads)
    assert snapshot(tmp_path / "of_1") == snapshot(tmp_path / "of_3")


def places_in(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in what a JSON file holds."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*above, key)
        yield from places_in(each, (*above, key))


STRANGE = [None, True, -1, 0.5, float("nan"), float("inf"), 10**400, "", "mask", [], [[]], [None], {}, {"a": 1}]


@pytest.mark.parametrize("format", ["labelme", "label-studio"])
def test_whatever_stands_in_a_file_is_read_or_refused_in_words(tmp_path: Path, format: str) -> None:
    random = np.random.default_rng(0)
    size = {"original_width": 8, "original_height": 8, "image_rotation": 0}
    brush = {"type": "brushlabels", "value": {"rle": encode_brush(np.eye(8, dtype=bool)), "brushlabels": ["x"]}}
    polygon = {"type": "polygonlabels", "parentID": "a", "value": {"points": [[0, 0], [50, 0], [50, 50]]}}
    results = [{"id": "a", **size, **brush}, {"id": "b", **size, **polygon}]
    shapes = [labelme_of(kind, [[0, 0], [3, 3]], group_id=1, mask=png(np.eye(4, dtype=bool)))
              for kind in ("polygon", "circle", "rectangle", "mask")]  # fmt: skip
    of_labelme = {"imagePath": "a.jpg", "imageHeight": 8, "imageWidth": 8, "shapes": shapes}
    task = {"id": 1, "data": {"image": "/data/upload/1/0123abcd-a.jpg"}, "annotations": [{"result": results}]}
    whole: Any = of_labelme if format == "labelme" else [task]
    places = list(places_in(whole))
    for _ in range(300):
        changed = json.loads(json.dumps(whole))
        place = places[random.integers(len(places))]
        inner = changed
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = STRANGE[random.integers(len(STRANGE))]
        path = tmp_path / "a.json"
        path.write_text(json.dumps(changed))
        try:
            read = read_annotations(tmp_path if format == "labelme" else path)
        except InputError:
            continue
        found = [each.get("segmentation") for each in read.annotations]
        kinds = check_segmentations(found, np.full((len(found), 2), 8)).kinds
        for segmentation, kind in zip(found, kinds, strict=True):
            assert kind or draw(segmentation, 8, 8).shape == (8, 8)
