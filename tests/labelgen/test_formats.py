"""What ``labelgen export`` writes for other software, read back by simple means, and by libraries of that software."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools.coco import COCO

from sum_factory.labelgen.cli import main
from sum_factory.labelgen.importing.run import import_masks
from sum_factory.labelgen.importing.settings import ImportSettings
from sum_factory.labelgen.sets.export import ExportSummary, export, full_size_masks
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.labelgen.sets.formats.format import ExportedImage, Head, PhotoCopy
from sum_factory.labelgen.sets.formats.yolo import YoloWriter
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.masks import iou
from sum_factory.shared.shards.shard_set import ShardSet

Mask = npt.NDArray[np.bool_]
SIZE = (48, 64)
FOLDERS = ("yolo", "voc", "labelme", "png", "hf")
JSONS = ("coco", "label-studio")
FORMATS = (*FOLDERS, *JSONS, "cvat")


def filled(ring: npt.ArrayLike, size: tuple[int, int] = SIZE) -> Mask:
    """Return which pixels have their centre in a ring: a line to the left crosses it an odd number of times."""
    corners = np.asarray(ring, np.float64).reshape(-1, 2)
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        if y0 != y1:
            inside ^= ((y0 > y) != (y1 > y)) & (x > x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def drawn() -> dict[str, list[Mask]]:
    """Masks of two photos: a disc, a ring with an island in it, two parts one of which has a hole; a photo without."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    radius = np.hypot(y - 22.4, x - 24.3)
    parts = (abs(y - 12) < 8) & (abs(x - 12) < 9) & ~((abs(y - 12) < 3) & (abs(x - 12) < 4))
    parts |= (abs(y - 34) < 6) & (abs(x - 50) < 10)
    return {
        "a": [radius < 9, (radius < 19) & (radius > 13) | (radius < 6)],
        "sub/b": [parts],
        "c": [],
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A shard set of these masks, of photos as JPEG, as PNG, and as a JPEG that EXIF turns."""
    folder = tmp_path_factory.mktemp("formats")
    images, annotations = [], []
    turned = Image.Exif()
    turned[0x0112] = 6
    for number, (key, masks) in enumerate(drawn().items()):
        name = f"{key}.png" if key == "a" else f"{key}.jpg"
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = SIZE[::-1] if key == "c" else SIZE
        pixels = np.random.default_rng(number).integers(0, 256, (*stored, 3), np.uint8)
        Image.fromarray(pixels).save(path, exif=turned if key == "c" else Image.Exif())
        images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for mask in masks:
            scores = {"predicted_iou": 0.9, "stability_score": 0.8, "point_coords": [[20.5, 21.5]]}
            more = {"segmentation": encode_rle(mask), "iscrowd": 0, "category_id": 1, **scores}
            annotations.append({"id": len(annotations), "image_id": number, **more})
    told = {"images": images, "annotations": annotations, "categories": []}
    (folder / "instances.json").write_text(json.dumps(told))
    places = ((str(folder / "instances.json"),), (str(folder / "photos"),), str(folder / "shards"))
    import_masks(ImportSettings("coco", *places), lambda line: None)
    return ShardSet.open(str(folder / "shards"))


@pytest.fixture(scope="module")
def masks(shards: ShardSet) -> dict[str, list[Mask]]:
    """The masks of the shard set at full size: nearly those that were imported, with holes and parts."""
    found = {image.key: list(full_size_masks(shards, number, image)) for number, image in shards.walk()}
    for key, of_photo in drawn().items():
        assert min(map(iou, found[key], of_photo), default=1) > 0.85
    return found


def exported(shards: ShardSet, out: Path, format: str, **settings: Any) -> ExportSummary:
    return export(shards, out, ExportSettings(format, **{"tolerance": 0.0, **settings}))  # type: ignore[arg-type]


def same(found: dict[str, list[Mask]], masks: dict[str, list[Mask]]) -> None:
    assert found.keys() == masks.keys()
    for key, of_photo in masks.items():
        assert len(found[key]) == len(of_photo)
        assert all(map(np.array_equal, found[key], of_photo))


# Each format, exact at a tolerance of 0


def test_coco_polygons_are_the_masks(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path) -> None:
    assert exported(shards, tmp_path / "a.json", "coco", shapes="polygons").lost == ()
    coco = COCO(str(tmp_path / "a.json"))
    found: dict[str, list[Mask]] = {}
    for number, image in coco.imgs.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        rings = [annotation["segmentation"] for annotation in annotations]
        found[image["key"]] = [np.logical_xor.reduce([filled(ring) for ring in of_mask]) for of_mask in rings]
        drawn_by_library = [coco.annToMask(annotation).astype(bool) for annotation in annotations]
        assert min(map(iou, drawn_by_library, masks[image["key"]]), default=1) > 0.9
    same(found, masks)
    assert [len(each["segmentation"]) for each in coco.anns.values()] == [1, 2, 2]


def test_yolo_lines_are_the_masks(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path) -> None:
    summary = exported(shards, tmp_path / "out", "yolo")
    assert [line.split()[0] for line in summary.lost] == ["2", "1"]  # joined outlines, a photo that is turned
    found = {}
    for path in (tmp_path / "out/labels").rglob("*.txt"):
        key = path.relative_to(tmp_path / "out/labels").with_suffix("").as_posix()
        (photo,) = (tmp_path / "out/images").glob(f"{key}.*")
        with Image.open(photo) as image:
            assert image.size == SIZE[::-1]
            assert image.getexif().get(0x0112, 1) == 1
        lines = [list(map(float, line.split())) for line in path.read_text().splitlines()]
        assert all(line[0] == 0 and min(line) >= 0 and max(line) <= 1 for line in lines)
        found[key] = [filled(np.reshape(line[1:], (-1, 2)) * SIZE[::-1]) for line in lines]
    same(found, masks)


def test_voc_maps_have_the_smallest_mask_on_top(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    summary = exported(shards, folder, "voc")
    assert any(line.startswith("1 masks lack pixels") for line in summary.lost)
    keys = (folder / "ImageSets/Segmentation/train.txt").read_text().split()
    assert sorted(keys) == sorted(masks)
    for key in keys:
        expected = np.zeros(SIZE, int)
        order = sorted(range(len(masks[key])), key=lambda k: -masks[key][k].sum())
        for k in order:
            expected[masks[key][k]] = k + 1
        with Image.open(folder / f"JPEGImages/{key}.jpg") as photo:
            assert (photo.format, photo.size) == ("JPEG", SIZE[::-1])
        with Image.open(folder / f"SegmentationClass/{key}.png") as classes:
            assert np.array_equal(np.asarray(classes), expected > 0)
            assert classes.getpalette()[:12] == [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
        with Image.open(folder / f"SegmentationObject/{key}.png") as objects:
            assert np.array_equal(np.asarray(objects), expected)
        boxes = ElementTree.parse(folder / f"Annotations/{key}.xml").getroot().iter("bndbox")
        for each, mask in zip(boxes, masks[key], strict=True):
            ys, xs = np.nonzero(mask)
            box = [int(each.findtext(name, "")) for name in ("xmin", "ymin", "xmax", "ymax")]
            assert box == [xs.min() + 1, ys.min() + 1, xs.max() + 1, ys.max() + 1]


@pytest.mark.parametrize("shapes", ["polygons", "bitmaps"])
def test_labelme_shapes_are_the_masks(
    shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path, shapes: str
) -> None:
    exported(shards, tmp_path / "out", "labelme", shapes=shapes)
    found = {}
    for path in (tmp_path / "out").rglob("*.json"):
        told = json.loads(path.read_text())
        with Image.open(path.parent / told["imagePath"]) as image:
            assert image.size == (told["imageWidth"], told["imageHeight"]) == SIZE[::-1]
        by_group: dict[Any, Mask] = {}
        for number, shape in enumerate(told["shapes"]):
            group = f"alone {number}" if shape["group_id"] is None else shape["group_id"]
            by_group[group] = by_group.get(group, np.zeros(SIZE, bool)) | shape_of_labelme(shape)
        found[path.relative_to(tmp_path / "out").with_suffix("").as_posix()] = list(by_group.values())
    same(found, masks)


def shape_of_labelme(shape: dict[str, Any]) -> Mask:
    if shape["shape_type"] == "polygon":
        return filled(shape["points"])
    (x0, y0), (x1, y1) = np.array(shape["points"], int)
    mask = np.zeros(SIZE, bool)
    with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as part:
        mask[y0 : y1 + 1, x0 : x1 + 1] = np.asarray(part)
    return mask


def test_label_studio_regions_are_the_masks(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path) -> None:
    exported(shards, tmp_path / "a.json", "label-studio")
    found = {}
    for task in json.loads((tmp_path / "a.json").read_text()):
        of_mask: dict[str, Mask] = {}
        for region in task["predictions"][0]["result"]:
            assert (region["original_height"], region["original_width"]) == SIZE
            part = filled(np.array(region["value"]["points"]) / 100 * SIZE[::-1])
            own = region.get("parentID", region["id"])
            of_mask[own] = of_mask.get(own, np.zeros(SIZE, bool)) | part
        found[task["data"]["key"]] = list(of_mask.values())
    same(found, masks)


@pytest.mark.parametrize("shapes", ["polygons", "bitmaps"])
def test_cvat_shapes_are_the_masks(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path, shapes: str) -> None:
    exported(shards, tmp_path / "a.xml", "cvat", shapes=shapes)
    found = {}
    for image in ElementTree.parse(tmp_path / "a.xml").getroot().iter("image"):
        assert (int(image.get("height", 0)), int(image.get("width", 0))) == SIZE
        by_group: dict[str, Mask] = {}
        for number, shape in enumerate(image):
            group = shape.get("group_id", f"alone {number}")
            by_group[group] = by_group.get(group, np.zeros(SIZE, bool)) | shape_of_cvat(shape)
        found[image.get("name", "").rpartition(".")[0]] = list(by_group.values())
    same(found, masks)


def shape_of_cvat(shape: ElementTree.Element) -> Mask:
    if shape.tag == "polygon":
        return filled([list(map(float, point.split(","))) for point in shape.attrib["points"].split(";")])
    left, top, width, height = (int(shape.attrib[name]) for name in ("left", "top", "width", "height"))
    runs = [int(run) for run in shape.attrib["rle"].split(",")]
    part = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return np.pad(part, ((top, SIZE[0] - top - height), (left, SIZE[1] - left - width))).astype(bool)


def test_pngs_are_the_masks(shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path) -> None:
    exported(shards, tmp_path / "out", "png")
    assert os.listdir(tmp_path / "out") == ["masks"]
    found = {}
    for path in (tmp_path / "out").rglob("metadata.csv"):
        of_photo = []
        for row in csv.DictReader(path.read_text().splitlines()):
            with Image.open(path.with_name(f"{row['id']}.png")) as image:
                of_photo.append(np.asarray(image) == 255)
            ys, xs = np.nonzero(of_photo[-1])
            assert [int(row[name]) for name in ("area", "bbox_x0", "bbox_h")] == [len(xs), xs.min(), np.ptp(ys)]
            assert (float(row["predicted_iou"]), row["point_input_x"]) == (pytest.approx(0.9), "20.5")
        found[path.parent.relative_to(tmp_path / "out/masks").as_posix()] = of_photo
    same(found, masks)


def test_datasets_loads_the_folder(
    shards: ShardSet, masks: dict[str, list[Mask]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(shards, tmp_path / "out", "hf", max_images_per_file=2)
    assert sorted(os.listdir(tmp_path / "out/data")) == [f"train-0000{k}-of-00002.parquet" for k in range(2)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    same({row["key"]: [np.asarray(mask) == 255 for mask in row["masks"]] for row in loaded}, masks)
    assert all(row["image"].size == SIZE[::-1] for row in loaded)
    row = next(row for row in loaded if row["key"] == "sub/b")
    assert row["predicted_iou"] == pytest.approx([0.9])
    assert row["points"] == [[20.5, 21.5]]
    card = (tmp_path / "out/README.md").read_text()
    assert "3 photos with 3 masks" in card
    assert shards.layer().weights["sam"]["sha256"] in card


# What holds for all


@pytest.mark.parametrize("tolerance", [0.5, 2.0])
def test_coarser_outlines_stay_within_the_tolerance(shards: ShardSet, tmp_path: Path, tolerance: float) -> None:
    rings = {}
    for allowed in (0.0, tolerance):
        exported(shards, tmp_path / f"{allowed}.json", "coco", shapes="polygons", tolerance=allowed)
        annotations = json.loads((tmp_path / f"{allowed}.json").read_text())["annotations"]
        rings[allowed] = [np.reshape(ring, (-1, 2)) for each in annotations for ring in each["segmentation"]]
    assert sum(map(len, rings[tolerance])) < 0.6 * sum(map(len, rings[0.0]))
    for exact, coarse in zip(rings[0.0], rings[tolerance], strict=True):
        ends = np.roll(coarse, -1, 0)
        along = ends - coarse
        share = ((exact[:, None] - coarse) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-9)
        nearest = coarse + np.clip(share, 0, 1)[..., None] * along
        assert np.linalg.norm(exact[:, None] - nearest, axis=-1).min(1).max() <= tolerance + 0.02


@pytest.mark.parametrize("format", FORMATS)
def test_command_writes_each_format_once(shards: ShardSet, tmp_path: Path, format: str) -> None:
    out = tmp_path / "out"
    command = ["export", f"--shards={shards.storage.url}", f"--format={format}", f"--out={out}"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    assert f"wrote {out}: 3 images, 3 masks" in result.output
    assert out.is_dir() == (format in FOLDERS)
    assert os.listdir(tmp_path) == ["out"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1
    assert "is there already, and nothing is written over" in result.output


def test_photos_are_left_out_where_nobody_asks_for_them(shards: ShardSet, tmp_path: Path) -> None:
    for format in FOLDERS:
        exported(shards, tmp_path / format, format, photos="none")
    assert [path for path in tmp_path.rglob("*") if path.suffix in (".jpg", ".jpeg")] == []
    assert pq.read_schema(tmp_path / "hf/data/train-00000-of-00001.parquet").names[:2] == ["key", "source"]
    told = json.loads((tmp_path / "labelme/sub/b.json").read_text())
    assert told["imagePath"] == "b.jpg"  # to be laid beside the photo


def test_files_are_cut_after_so_many_photos(shards: ShardSet, tmp_path: Path) -> None:
    for format, suffix in (("coco", ".json"), ("label-studio", ".json"), ("cvat", ".xml")):
        exported(shards, tmp_path / format, format, max_images_per_file=2)
        assert sorted(os.listdir(tmp_path / format)) == [f"0000{k}{suffix}" for k in range(2)]
    parts = [COCO(str(path)) for path in sorted((tmp_path / "coco").iterdir())]
    assert [len(part.imgs) for part in parts] == [2, 1]
    assert sum(len(part.anns) for part in parts) == 3


def test_other_formats_of_no_photos_are_written(
    own_photos: Path, tmp_path: Path, label: Callable[..., Any], loose: Any
) -> None:
    for path in own_photos.rglob("*.*"):
        path.write_bytes(b"")
    label(own_photos, tmp_path / "shards", automask=loose)
    for format in FORMATS:
        assert exported(ShardSet.open(str(tmp_path / "shards")), tmp_path / format, format) == ExportSummary(0, 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ExportSettings("yolo", shapes="bitmaps"), "yolo holds polygons alone"),
        (ExportSettings("hf", shapes="polygons"), "hf holds bitmaps alone"),
        (ExportSettings("coco", photos="copy"), "coco is a file of masks alone"),
        (ExportSettings("labelme", max_images_per_file=3), "labelme has files of a single photo"),
        (ExportSettings("coco", max_images_per_file=0), "expected 1 or more"),
        (ExportSettings("coco", tolerance=float("nan")), "expected 0 or more"),
    ],
)
def test_what_a_format_cannot_do_is_refused(
    shards: ShardSet, tmp_path: Path, settings: ExportSettings, told: str
) -> None:
    with pytest.raises(SettingsError, match=told):
        export(shards, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_yolo_has_one_folder_of_the_name_that_ultralytics_replaces(shards: ShardSet, tmp_path: Path) -> None:
    head = Head(ExportSettings("yolo"), "polygons", "", shards.layer(), ExitStack())
    image = ExportedImage(1, "images/a", "a.jpg", "images/a", "", *SIZE, iter(()), lambda: PhotoCopy(b"", ".jpg"))
    YoloWriter(tmp_path, head).add(image)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "images/images_/a.jpg",
        "labels/images_/a.txt",
    ]
