"""The recipes and suites of the README open miniatures of their sets in the layouts that these are published in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image

from sum_factory.trainer.data.check import sets_of
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import open_set
from sum_factory.trainer.fit import fit
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.settings import read_settings

HEIGHT, WIDTH = 24, 36
Mask = npt.NDArray[np.bool_]


def drawn(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Mask:
    mask = np.zeros(size[::-1], bool)
    mask[3 : 12 + seed, 4 : 15 + seed] = True
    return mask


def save_photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


def save_values(path: Path, values: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_mask(path: Path, mask: Mask) -> None:
    save_values(path, np.where(mask, 255, 0).astype(np.uint8))


def coco(path: Path, names: list[str], categories: list[dict[str, Any]] | None = None, per_image: int = 2) -> None:
    """Write a file in which each photo has ``per_image`` polygons, of the categories in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    annotations = []
    for number in range(len(names) * per_image):
        left = 2 + 5 * (number % per_image) % 20
        polygon = [[left, 2, left + 9, 2, left + 9, 11, left, 11]]
        category = None if categories is None else categories[number % len(categories)]["id"]
        annotations.append(
            {"id": number, "image_id": number // per_image, "category_id": category, "segmentation": polygon}
        )
    images = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for n, name in enumerate(names)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories or []}))


def hqseg(root: Path) -> None:
    """HQSeg-44K as HQ-SAM's three archives unpack."""
    pairs = {
        "DIS5K/DIS-TR": ("im", "gt"),
        "DIS5K/DIS-VD": ("im", "gt"),
        "thin_object_detection/COIFT": ("images", "masks"),
        "thin_object_detection/ThinObject5K": ("images_train", "masks_train"),
        "thin_object_detection/ThinObject5K ": ("images_test", "masks_test"),
    }
    for folder, (images, masks) in pairs.items():
        for number in range(3):
            stem = f"{number}#Group#1#Thing#88_o"
            save_photo(root / folder.strip() / images / f"{stem}.jpg")
            save_mask(root / folder.strip() / masks / f"{stem}.png", drawn(number))
    for name in ("DUTS-TR", "DUTS-TE", "ecssd", "fss_all", "MSRA_10K"):
        for number in range(4):
            save_photo(root / "cascade_psp" / name / f"x_{number}.jpg")
            save_mask(root / "cascade_psp" / name / f"x_{number}.png", drawn(number))
    save_mask(root / "cascade_psp" / "fss_all" / "left_over.png", drawn())
    save_mask(root / "cascade_psp" / "DUTS-TR" / "x_3.png", drawn(0, (WIDTH - 9, HEIGHT)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for number, options in enumerate(({}, {"exif": exif})):
        save_photo(root / "thin_object_detection" / "HRSOD" / "images" / f"{number}.jpg", **options)
        size = (HEIGHT, WIDTH) if options else (WIDTH, HEIGHT)
        save_mask(root / "thin_object_detection" / "HRSOD" / "masks_max255" / f"{number}.png", drawn(0, size))


ENTITY_FOLDERS = ("entity_01_11580/images_merge", "entity_02_11598/images", "entity_03_10049/images_03_10049")
"""With the inner folders that the archives bring."""


def entityseg(root: Path) -> None:
    for number, folder in enumerate(ENTITY_FOLDERS, 1):
        outer = folder.partition("/")[0]
        for name in ("t.jpg", "v.jpg"):
            save_photo(root / "images" / folder / name)
        coco(root / "annotations" / f"entityseg_train_0{number}.json", ["t.jpg"])
        assert outer.startswith(f"entity_0{number}")
    coco(root / "annotations" / "entityseg_val.json", [f"{each.partition('/')[0]}/v.jpg" for each in ENTITY_FOLDERS])


def paper14(root: Path) -> None:
    hqseg(root / "HQSeg-44K")
    for place, name, suffix in (("BIG/test", "99_ab_o_dog", "jpg"), ("VOCEVAL", "2007_000123_08", "png")):
        save_photo(root / place / f"{name}_im.{suffix}")
        save_mask(root / place / f"{name}_gt.png", drawn())
    save_mask(root / "BIG/test" / "99_ab_o_dog_seg.png", ~drawn())  # of the separate download of a model's outputs
    entityseg(root / "EntitySeg")
    save_photo(root / "LV-MHP-v2/val/images/17.jpg")
    for person in range(2):
        parts = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        parts[4:9, 4 + person : 9, 0], parts[10:15, 4:9, 0] = 2, 11
        save_values(root / f"LV-MHP-v2/val/parsing_annos/17_02_0{person}.png", parts)
    (root / "LV-MHP-v2/val/parsing_annos/._17_02_00.png").write_bytes(b"\0\5\26\7")
    save_photo(root / "EasyPortrait/images/val/u.jpg")
    save_values(root / "EasyPortrait/annotations/val/u.png", np.where(drawn(), 2, 1).astype(np.uint8))
    for name in ("f.jpg", "g.jpg"):
        save_photo(root / "Fashionpedia/test" / name)
    names = [{"id": number, "name": f"n{number}", "supercategory": "s"} for number in range(46)]
    coco(root / "Fashionpedia/instances_attributes_val2020.json", ["f.jpg", "g.jpg"], names, 46)
    save_photo(root / "coco/train2017/000000000009.jpg")
    kinds = [{"id": 1, "name": "mug", "supercategory": "OBJECT"}, {"id": 2, "name": "mug:rim", "supercategory": "PART"}]
    coco(root / "PACO/paco_lvis_v1_val.json", ["train2017/000000000009.jpg"], kinds, 4)


def paper8(root: Path) -> None:
    for city in ("bonn", "ulm"):
        save_photo(root / f"Cityscapes/leftImg8bit/val/{city}/{city}_000000_000001_leftImg8bit.png")
        ids = np.full((HEIGHT, WIDTH), 7, np.uint16)  # road
        ids[:2], ids[4:8, 4:8], ids[4:8, 10:14], ids[20:] = 4, 26000, 26001, 26  # void, two cars, a group of cars
        base = root / f"Cityscapes/gtFine/val/{city}/{city}_000000_000001_gtFine"
        save_values(base.with_name(base.name + "_instanceIds.png"), ids)
        save_values(base.with_name(base.name + "_labelIds.png"), (ids // 1000).astype(np.uint8))
    save_photo(root / "EgoHOS/val/image/e.jpg")
    save_values(root / "EgoHOS/val/label/e.png", np.where(drawn(), 2, 0).astype(np.uint8))
    for artist in ("realism/a", "cubism/b"):
        save_photo(root / f"DRAM_processed/test/{artist}/1.jpg")
        values = np.where(drawn(), 15, 0).astype(np.uint8)
        values[-1] = 255
        save_values(root / f"DRAM_processed/labels/{artist}/1.png", values)
    for kind in ("antenna", "wire"):
        for split in ("train", "val"):
            save_photo(root / f"iShape/{kind}/{split}/image/0.jpg")
            save_values(
                root / f"iShape/{kind}/{split}/instance_map/0.png", np.where(drawn(), 3001, 0).astype(np.uint16)
            )
    save_photo(root / "GTAV/images/00001.png")
    save_values(root / "GTAV/labels/00001.png", np.where(drawn(), 7, 23).astype(np.uint8))
    square = {"name": "polyline", "all_points_x": [4, 14, 14, 4], "all_points_y": [4, 4, 14, 14]}
    dot = {"name": "polyline", "all_points_x": [4, 14], "all_points_y": [4, 4]}
    for place in ("ABOVE", "BELOW"):
        save_photo(root / f"NDD20/{place}/1.jpg")
        regions = [{"shape_attributes": shape, "region_attributes": {}} for shape in (square, square, dot)]
        record = {"1.jpg9": {"filename": "1.jpg", "size": 9, "regions": regions}}
        (root / f"NDD20/{place}_LABELS.json").write_text(json.dumps(record))
    trash = root / "TrashCan/dataset/instance_version"
    save_photo(trash / "val/vid_1_frame1.jpg")
    coco(trash / "instances_val_trashcan.json", ["vid_1_frame1.jpg"])
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
    save_values(root / "IBD/val/r.png", pixels)
    roof = {"shape_attributes": {**square, "name": "polygon"}}
    (root / "IBD/via_region_data-val.json").write_text(
        json.dumps({"r.png1": {"filename": "r.png", "size": 1, "regions": {"0": roof}}})
    )


def ft_large(root: Path) -> None:
    for number in range(2):
        save_photo(root / f"salient/images/{number}.jpg")
        save_mask(root / f"salient/masks/{number}.png", drawn(number))
        save_photo(root / f"part/images/{number}.jpg")
        save_values(root / f"part/labels/{number}.png", np.where(drawn(), 2, 0).astype(np.uint8))
    save_photo(root / "entity/images/e.jpg")
    coco(root / "entity/instances.json", ["e.jpg"])


def hqseg_and_entityseg(root: Path) -> None:
    hqseg(root / "hq")
    entityseg(root / "entity")


HQSEG = {
    "DIS5K-TR": (3, 3), "ThinObject5K-TR": (3, 3), "FSS-1000": (4, 4), "DUTS-TR": (3, 3), "DUTS-TE": (4, 4),
    "ECSSD": (4, 4), "MSRA-10K": (4, 4),
}  # fmt: skip
"""Photos and masks of each set of the miniature."""
OF_VARIANTS = {"hq_sam": "hq", "sum_hq": "hq", "sam_adapter": "sam-adapter", "lora": "lora", "adapter": "adapter"}
"""Recipes of variants on HQSeg-44K, and the variant of each."""
EXPECTED: dict[str, tuple[Callable[[Path], None], dict[str, str], dict[str, tuple[int, int]]]] = {
    "ft_small": (hqseg_and_entityseg, {"HQSEG44K": "hq"}, HQSEG),
    "refiner_hqseg44k": (hqseg_and_entityseg, {"HQSEG44K": "hq"}, HQSEG),
    **{name: (hqseg_and_entityseg, {"HQSEG44K": "hq"}, HQSEG) for name in OF_VARIANTS},
    "ft_medium": (
        hqseg_and_entityseg,
        {"HQSEG44K": "hq", "ENTITYSEG": "entity"},
        {**HQSEG, **{f"EntitySeg-train {number}": (1, 2) for number in (1, 2, 3)}},
    ),
    "ft_large": (
        ft_large,
        {"SALIENT": "salient", "ENTITY": "entity", "PART": "part"},
        {"salient": (2, 2), "entity": (1, 2), "part": (2, 2)},
    ),
    "paper14": (
        paper14,
        {"DATA": ""},
        {
            "COIFT": (3, 3), "DIS-VD": (3, 3), "HRSOD": (2, 2), "ThinObject5K": (3, 3), "BIG": (1, 1),
            "VOCEVAL": (1, 1), "EntitySeg 0": (1, 2), "EntitySeg 1": (1, 2), "EntitySeg 2": (1, 2), "Bodypart": (1, 4),
            "EasyPortrait": (1, 2), "Fashionpedia": (2, 2 * 27), "Fashionpedia subpart": (2, 2 * 19), "PACO": (1, 2),
        },
    ),
    "paper8": (
        paper8,
        {"DATA": ""},
        {
            "Cityscapes": (2, 6), "EgoHOS": (1, 1), "DRAM": (2, 2), "iShape": (2, 2), "GTAV": (1, 2),
            "NDD20 above": (1, 2), "NDD20 below": (1, 2), "TrashCan": (1, 2), "IBD": (1, 1),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPECTED)
def test_recipe_opens_its_sets_as_they_are_published(name: str, tmp_path: Path) -> None:
    make, variables, expected = EXPECTED[name]
    make(tmp_path)
    found: dict[str, HumanSet] = {}
    for settings in sets_of(name, {key: str(tmp_path / place) for key, place in variables.items()}):
        found[settings.name] = open_set(settings)
    samples = {key: [each.load(index) for index in range(len(each.keys))] for key, each in found.items()}
    counts = {key: (len(some), sum(len(sample.masks) for sample in some)) for key, some in samples.items()}
    assert counts == expected
    areas = [sample.masks.mean((1, 2)) for some in samples.values() for sample in some]
    assert all(0 < area < 1 for some in areas for area in some.tolist())


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HQSeg-44K and EntitySeg, which no test may change."""
    root = tmp_path_factory.mktemp("published")
    hqseg_and_entityseg(root)
    return root


@pytest.mark.parametrize("name", [*OF_VARIANTS, "ft_small", "ft_medium"])
def test_recipe_trains_on_its_sets_as_they_are_published(
    name: str, miniatures: Path, tiny_weights: str, known_shards: Any, tmp_path: Path
) -> None:
    places = {"HQSEG44K": str(miniatures / "hq"), "ENTITYSEG": str(miniatures / "entity")}
    variables = {"SAM": tiny_weights, "SHARDS": known_shards.url, **places}
    small = ["steps=1", "batch=2", "micro_batch=2", "masks=1", "data_threads=1", "device=cpu", "precision=fp32"]
    recipe = read_settings(name, Recipe, variables, small)
    assert recipe.variant == OF_VARIANTS.get(name, "full")
    fit(recipe, tmp_path, say=lambda _: None)
    (line,) = read_log(tmp_path)
    assert line["masks"] == 2 or (recipe.method == "sum" and line["masks"] == 1), "labelled photos may have no mask"
    assert len(line["iou"]) == recipe.rounds


def test_masks_of_the_miniatures_are_those_that_were_drawn(tmp_path: Path) -> None:
    paper14(tmp_path)
    sets = {each.name: open_set(each) for each in sets_of("paper14", {"DATA": str(tmp_path)})}
    for name in ("COIFT", "DIS-VD", "ThinObject5K", "BIG", "VOCEVAL"):
        assert np.array_equal(sets[name].load(0).masks[0], drawn())
    turned = sets["HRSOD"].load(1)
    assert turned.image.shape[:2] == (WIDTH, HEIGHT), "as EXIF turns it"
    assert np.array_equal(turned.masks[0], drawn(0, (HEIGHT, WIDTH)))
    paper8(tmp_path)
    sets = {each.name: open_set(each) for each in sets_of("paper8", {"DATA": str(tmp_path)})}
    assert sets["DRAM"].keys == ["cubism/b/1", "realism/a/1"]
    assert sets["iShape"].keys == ["antenna/0", "wire/0"]
    roofs = sets["IBD"].load(0)
    with Image.open(tmp_path / "IBD/val/r.png") as stored:
        assert np.array_equal(roofs.image, np.asarray(stored)[..., :3])
