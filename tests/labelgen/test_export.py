"""The COCO file that ``labelgen export`` writes: readable by pycocotools, and true to the masks that SAM means."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from segment_anything.utils.transforms import ResizeLongestSide

from sum_factory.labelgen.page.write import write_page
from sum_factory.labelgen.run import RunSummary
from sum_factory.labelgen.sets.export import ExportSummary, export
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.labelgen.sets.file_names import names_of
from sum_factory.shared.automask.automask import LabelGenerator
from sum_factory.shared.automask.settings import AutomaskSettings
from sum_factory.shared.errors import ShardError, StorageError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.trainer.data.sets import CocoSettings, open_set

Finished = tuple[Path, RunSummary]


@pytest.fixture(scope="module")
def coco(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> COCO:
    """The finished shard set as pycocotools reads its export."""
    out = tmp_path_factory.mktemp("export") / "coco.json"
    assert export(ShardSet.open(str(finished[0])), out) == ExportSummary(6, finished[1].masks)
    return COCO(str(out))


def test_every_image_and_mask_is_exported(coco: COCO, finished: Finished, photos: Path) -> None:
    sizes = {}
    for path in photos.rglob("*.*"):
        with Image.open(path) as image:
            sizes[str(path.relative_to(photos))] = image.size
    assert {image["file_name"]: (image["width"], image["height"]) for image in coco.imgs.values()} == sizes
    assert len(coco.anns) == finished[1].masks
    rows = [row for path in sorted(finished[0].glob("manifest/*/*")) for row in pq.read_table(path).to_pylist()]
    by_key = {image["key"]: image["id"] for image in coco.imgs.values()}
    for key, number in by_key.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[number]))
        of_image = [row for row in rows if row["image"] == key]
        assert [a["predicted_iou"] for a in annotations] == [row["predicted_iou"] for row in of_image]
        assert [a["point_coords"] for a in annotations] == [[[row["point_x"], row["point_y"]]] for row in of_image]
    assert {annotation["category_id"] for annotation in coco.anns.values()} == set(coco.cats)


def test_area_and_box_are_those_of_the_decoded_mask(coco: COCO) -> None:
    for annotation in coco.anns.values():
        image = coco.imgs[annotation["image_id"]]
        mask = coco.annToMask(annotation).astype(bool)
        assert mask.shape == (image["height"], image["width"])
        rows, columns = np.nonzero(mask)
        assert annotation["area"] == len(rows)
        corner, far = (columns.min(), rows.min()), (columns.max() + 1, rows.max() + 1)
        assert annotation["bbox"] == [*corner, far[0] - corner[0], far[1] - corner[1]]


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one photo of 300 x 420 pixels: larger than the tiny SAM's input, and not square."""
    folder = tmp_path_factory.mktemp("large")
    rows, columns = np.mgrid[0:300, 0:420]
    pixels = np.stack([rows // 2, columns // 2, (rows + columns) // 3], axis=2).astype(np.uint8)
    pixels[np.hypot(rows - 90, columns - 120) < 60] = (220, 30, 30)
    pixels[180:260, 200:390] = (20, 200, 40)
    Image.fromarray(pixels).save(folder / "large.png")
    return folder


def upstream_masks(photo: Path, settings: AutomaskSettings) -> list[npt.NDArray[np.bool_]]:
    """Return the masks that upstream's own post-processing makes of the logits the generator kept."""
    with Image.open(photo) as image:
        pixels = np.asarray(image)
    sam = load_sam().sam
    labels = LabelGenerator(sam, settings).label(pixels)
    resize = ResizeLongestSide(sam.image_encoder.img_size)
    masks = []
    for logits, frame in zip(labels.logits, labels.frames, strict=True):
        x0, y0, x1, y1 = frame.crop_box
        size = (y1 - y0, x1 - x0)
        square = torch.from_numpy(logits)[None, None]
        input_size = resize.get_preprocess_shape(*size, resize.target_length)
        whole = np.zeros(pixels.shape[:2], bool)
        whole[y0:y1, x0:x1] = (sam.postprocess_masks(square, input_size, size)[0, 0] > sam.mask_threshold).numpy()
        masks.append(whole)
    return masks


@pytest.mark.parametrize("crop_layers", [0, 1])
def test_masks_are_those_that_upstream_makes_of_the_kept_logits(
    large_photo: Path, tmp_path: Path, label: Callable[..., RunSummary], loose: AutomaskSettings, crop_layers: int
) -> None:
    settings = replace(loose, box_nms_thresh=1.0, crop_n_layers=crop_layers, crop_nms_thresh=1.0)
    label(large_photo, tmp_path / "shards", automask=settings)
    export(ShardSet.open(str(tmp_path / "shards")), tmp_path / "coco.json")
    coco = COCO(str(tmp_path / "coco.json"))
    exported = [coco.annToMask(annotation).astype(bool) for annotation in coco.anns.values()]
    expected = upstream_masks(large_photo / "large.png", settings)
    assert len({tuple(annotation["crop_box"]) for annotation in coco.anns.values()}) > crop_layers
    assert len(exported) == len(expected)
    overlaps = [(a & b).sum() / (a | b).sum() for a, b in zip(exported, expected, strict=True)]
    assert np.mean(overlaps) >= 0.99


def test_image_without_masks_is_exported_and_a_bad_one_is_not(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], loose: AutomaskSettings
) -> None:
    (own_photos / "empty.jpg").write_bytes(b"")
    label(own_photos, tmp_path / "shards", automask=replace(loose, max_area_share=0.0))
    assert export(ShardSet.open(str(tmp_path / "shards")), tmp_path / "coco.json") == ExportSummary(6, 0)
    coco = COCO(str(tmp_path / "coco.json"))
    assert len(coco.imgs) == 6
    assert coco.anns == {}


def test_unfinished_set_exports_what_is_committed(own_shards: Path, tmp_path: Path) -> None:
    (own_shards / "manifest/masks/000001.parquet").unlink()
    summary = export(ShardSet.open(str(own_shards)), tmp_path / "coco.json")
    coco = COCO(str(tmp_path / "coco.json"))
    assert (len(coco.imgs), len(coco.anns)) == (summary.images, summary.masks)
    assert {image["key"] for image in coco.imgs.values()} == {"photo0", "photo2", "sub/photo3", "sub/photo5"}


def test_failed_export_leaves_nothing_and_what_is_there_stays(own_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "coco.json"
    export(ShardSet.open(str(own_shards)), out)
    before = out.read_bytes()
    with pytest.raises(StorageError, match=r"coco\.json: is there already, and nothing is written over"):
        export(ShardSet.open(str(own_shards)), out)
    (own_shards / "masks/000002.tar").unlink()
    for settings in (ExportSettings(), ExportSettings("yolo"), ExportSettings(max_images_per_file=1)):
        with pytest.raises(ShardError, match=r"masks/000002\.tar: missing"):
            export(ShardSet.open(str(own_shards)), out.with_name("other"), settings)
    assert out.read_bytes() == before
    assert os.listdir(tmp_path / "out") == ["coco.json"]


def test_full_disk_is_named_and_leaves_no_file(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StorageError, match=r"coco\.json: No space left on device"):
        export(ShardSet.open(str(finished[0])), tmp_path / "coco.json")
    assert os.listdir(tmp_path) == []


def test_export_is_plain_json(coco: COCO, finished: Finished, tmp_path: Path) -> None:
    export(ShardSet.open(str(finished[0])), tmp_path / "coco.json")
    content = json.loads((tmp_path / "coco.json").read_text(), parse_constant=pytest.fail)
    assert sorted(content) == ["annotations", "categories", "images", "info"]
    assert content["annotations"] == list(coco.anns.values())


# Names of files


def test_photos_of_one_name_are_told_apart_and_read_by_the_trainer(
    tmp_path: Path, label: Callable[..., RunSummary]
) -> None:
    colours = {"x/a.png": (200, 30, 30), "y/a.png": (30, 200, 30), "y/deep/a.png": (30, 30, 200)}
    for name, colour in colours.items():
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((64, 64, 3), colour, np.uint8)
        pixels[16:48, 16:48] = 255
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    out = tmp_path / "coco.json"
    label(tmp_path / "photos", tmp_path / "shards")
    export(ShardSet.open(str(tmp_path / "shards")), out)
    content = json.loads(out.read_text())
    assert [image["file_name"] for image in content["images"]] == list(colours)
    assert content["info"]["root"] == str(tmp_path / "photos")
    opened = open_set(CocoSettings("coco", out, Path(content["info"]["root"]), "entity"))
    assert len(opened.keys) == 3
    for index, colour in enumerate(colours.values()):
        assert tuple(opened.load(index).image[0, 0]) == colour


@pytest.mark.parametrize(
    ("photos", "root", "names"),
    [
        ([("a", "/p/a.jpg", ""), ("b/a", "/p/b/a.jpg", "")], "/p", ["a.jpg", "b/a.jpg"]),
        ([("x/a", "/p/x/a.jpg", ""), ("x/b", "/p/x/b.jpg", "")], "/p", ["x/a.jpg", "x/b.jpg"]),
        ([("a", "/p/x/a.jpg", ""), ("a~2", "/p/y/a.jpg", "")], "/p", ["x/a.jpg", "y/a.jpg"]),
        ([("a", "/pa/a.jpg", ""), ("a~2", "/pb/a.jpg", "")], "", ["pa/a.jpg", "pb/a.jpg"]),
        ([("a", "/p/1.tar", "./a.jpg"), ("b", "/p/2.tar", "/abs/../b.jpg")], "/p", ["a.jpg", "b.jpg"]),
        ([("a", "/p/1.tar", "a.jpg"), ("a~2", "/p/2.tar", "a.jpg")], "/p", ["1/a.jpg", "2/a.jpg"]),
        ([("a", "/p/1.tar", "a.jpg"), ("a~2", "/p/a.jpg", "")], "/p", ["1/a.jpg", "a.jpg"]),
        ([("a", "zip://x/a.jpg::/p/1.zip", "")], "/p", ["x/a.jpg"]),
        ([("x/a", "s3://b/p/x/a.jpg", "")], "s3://b/p", ["x/a.jpg"]),
        ([("a", "https://h/p/a.jpg?X-Sig=1/2", "")], "https://h/p", ["a.jpg"]),
        ([("a", "/p/a.jpg", ""), ("a~2", "/p/a.jpg", "")], "/p", ["a.jpg", "a.jpg"]),
        ([("a", "/p\udce9/caf\udce9\x1b.jpg", "")], r"/p\xe9", [r"caf\xe9\x1b.jpg"]),
        ([], "", []),
    ],
)
def test_names_of_files_tell_photos_apart(photos: list[tuple[str, str, str]], root: str, names: list[str]) -> None:
    listed = [PhotoFile(*photo) for photo in photos]
    found, name = names_of(lambda: listed)
    assert (found, [name(photo) for photo in listed]) == (root, names)


def test_names_that_are_not_utf8_are_exported_and_shown(
    own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary]
) -> None:
    folder = tmp_path / os.fsdecode(b"set\xff")
    os.mkdir(folder)
    os.rename(own_photos / "photo0.jpg", folder / os.fsdecode(b"caf\xe9\x1b[2J.jpg"))
    label(folder, folder / "shards")
    export(ShardSet.open(str(folder / "shards")), tmp_path / "coco.json")
    (image,) = json.loads((tmp_path / "coco.json").read_bytes().decode("utf-8"))["images"]
    assert image["file_name"] == r"caf\xe9\x1b[2J.jpg"
    assert image["source"] == rf"{tmp_path}/set\xff/caf\xe9\x1b[2J.jpg"
    json.dumps(image, ensure_ascii=False).encode("utf-8")
    opened = open_set(CocoSettings("coco", tmp_path / "coco.json", folder, "entity"))
    assert opened.load(0).image.shape == (image["height"], image["width"], 3)
    assert opened.load(0).key == r"caf\xe9\x1b[2J"
    assert write_page(ShardSet.open(str(folder / "shards")), tmp_path / "page.html", 1) == 1
    assert rb"set\udcff" in (tmp_path / "page.html").read_bytes()


def test_names_that_would_be_equal_are_those_of_keys() -> None:
    photos = [
        PhotoFile("get", "https://h/get?id=1"),
        PhotoFile("get~2", "https://h/get?id=2"),
        PhotoFile("m", "/d/a.tar", "m.jpg", 512),
        PhotoFile("m~2", "/d/a.tar", "m.jpg", 9_216),
        PhotoFile("a@2x", "zip://a@2x.jpg::/d/b.zip"),
        PhotoFile("2x", "zip://2x.jpg::/d/b.zip"),
    ]
    name = names_of(lambda: photos)[1]
    names = [name(photo) for photo in photos]
    assert len({*names}) == len(photos)
    assert names[2:] == ["m.jpg", "m~2.jpg", "a@2x.jpg", "2x.jpg"]
