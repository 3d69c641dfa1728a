"""Miniatures of sets with files of annotations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from miniatures.pictures import HEIGHT, WIDTH, Build, Drawn, Mask, box, mask_of, save_photo, save_values


def rle(mask: Mask) -> dict[str, Any]:
    """Return COCO's uncompressed RLE: runs down the columns, of background first."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *runs] if flat[0] else runs}


def text_rle(mask: Mask) -> dict[str, Any]:
    """Return COCO's compressed RLE, written a count at a time."""
    counts = rle(mask)["counts"]
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = not ((value == 0 and not bits & 16) or (value == -1 and bits & 16))
            text += chr(bits + 32 * more + 48)
    return {"size": list(mask.shape), "counts": text}


def polygon(number: int) -> list[list[int]]:
    top, left, bottom, right = box(number)
    return [[left, top, right, top, right, bottom, left, bottom]]


def segmentation(number: int) -> Any:
    """The object of a number as polygon, RLE or its text, in turn."""
    return (polygon(number), rle(mask_of(number)), text_rle(mask_of(number)))[number % 3]


def coco(
    path: Path,
    objects: Mapping[str, Sequence[tuple[int, int]]],
    categories: Sequence[Mapping[str, Any]] = ({"id": 1, "name": "thing", "supercategory": "things"},),
    name_key: str = "file_name",
    first_id: int = 1,
    extra: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a file of COCO: of each photo the numbers of its objects with their categories; ``extra`` as it is."""
    images = [
        {"id": first_id + place, name_key: name, "width": WIDTH, "height": HEIGHT} for place, name in enumerate(objects)
    ]
    annotations = [
        {
            "id": 1000 * place + number,
            "image_id": first_id + place,
            "category_id": category,
            "iscrowd": 0,
            "segmentation": segmentation(number),
        }
        for place, found in enumerate(objects.values())
        for number, category in found
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": [*annotations, *extra], "categories": list(categories)}
    path.write_text(json.dumps(content))


def masks_of(numbers: Sequence[int]) -> list[Mask]:
    return [mask_of(number) for number in numbers]


INNER = {1: "entity_01_11580/images_merge", 2: "entity_02_11598/images", 3: "entity_03_10049/images_03_10049"}
"""The folders of EntitySeg, with the inner ones that its archives bring."""
OUTER = {number: folder.partition("/")[0] for number, folder in INNER.items()}


def entity_photos(root: Path) -> None:
    for number, folder in INNER.items():
        for name in ("t.jpg", f"v{number}.jpg"):
            save_photo(root / "EntitySeg/images" / folder / name)


def entity_train(root: Path) -> Drawn:
    """The joint file, and that of another task, which is not to be read."""
    entity_photos(root)
    folder = root / "EntitySeg/annotations"
    coco(folder / "entityseg_train.json", {f"{OUTER[n]}/t.jpg": [(n, 1), (n + 3, 1)] for n in INNER})
    coco(folder / "entityseg_insseg_train.json", {f"{OUTER[1]}/t.jpg": [(1, 1)]})
    return {f"{OUTER[n]}/t": masks_of([n, n + 3]) for n in INNER}


def entity_train_parts(names: str) -> Build:
    """A file for each folder: ids begin anew, and so do names."""

    def build(root: Path) -> Drawn:
        entity_photos(root)
        for number in INNER:
            coco(
                root / "EntitySeg/annotations" / names.format(number),
                {"t.jpg": [(number, 1), (number + 3, 1)]},
            )
        return {f"{number}/t": masks_of([number, number + 3]) for number in INNER}

    return build


def entity_val(number: int) -> Build:
    def build(root: Path) -> Drawn:
        entity_photos(root)
        listed = {f"{OUTER[n]}/v{n}.jpg": [(n, 0), (n + 6, 0)] for n in INNER}
        unknown = [{"id": 0, "name": "unknown", "supercategory": "unknown"}]
        coco(root / "EntitySeg/annotations/entityseg_val.json", listed, unknown)
        return {f"{OUTER[number]}/v{number}": masks_of([number, number + 6])}

    return build


def entity_val_part(number: int) -> Build:
    def build(root: Path) -> Drawn:
        entity_photos(root)
        name = f"entityv2_0{number}_entity_val.json"
        coco(root / "EntitySeg/annotations" / name, {f"v{number}.jpg": [(number, 1)]})
        return {f"v{number}": masks_of([number])}

    return build


GARMENTS = (
    *({"id": n, "name": f"garment {n}", "supercategory": "upperbody"} for n in range(27)),
    *({"id": n, "name": f"part {n}", "supercategory": "garment parts"} for n in range(27, 34)),
    *({"id": n, "name": f"closure {n}", "supercategory": "closures"} for n in range(34, 36)),
    *({"id": n, "name": f"decoration {n}", "supercategory": "decorations"} for n in range(36, 46)),
)


def fashionpedia(split: str, parts: bool, shift: int = 0) -> Build:
    """Every category on one photo, the garments alone on another; ids begin with ``shift``. One polygon is a point."""

    def build(root: Path) -> Drawn:
        folder = "train" if split == "train" else "test"
        for name in ("f", "g", "of_the_test_split"):
            save_photo(root / f"Fashionpedia/{folder}/{name}.jpg")
        categories = [{**each, "id": int(str(each["id"])) + shift} for each in GARMENTS]
        listed = {
            "f.jpg": [(n, n + shift) for n in range(46)],
            "g.jpg": [(n, n + shift) for n in range(3)],
        }
        point = {"id": 9, "image_id": 1, "category_id": 30 + shift, "segmentation": [[4, 4, 4, 4]]}
        coco(root / f"Fashionpedia/instances_attributes_{split}2020.json", listed, categories, extra=[point])
        if parts:
            return {"f": masks_of(range(27, 46))}
        return {"f": masks_of(range(27)), "g": masks_of(range(3))}

    return build


def paco(split: str, wanted: str, photos: str = "coco") -> Build:
    """Objects are those whose id is that of their object; file names hold the folder. One part has no segmentation."""
    kinds = [{"id": 1, "name": "mug", "supercategory": "OBJECT"}, {"id": 2, "name": "mug:rim", "supercategory": "PART"}]

    def build(root: Path) -> Drawn:
        for name in ("1", "2"):
            save_photo(root / photos / f"train2017/00{name}.jpg")
        empty = {"id": 77, "image_id": 1, "category_id": 2, "segmentation": [], "obj_ann_id": 1}
        listed = {"train2017/001.jpg": [(0, 1), (1, 2), (2, 2)], "train2017/002.jpg": [(3, 1)]}
        coco(root / f"PACO/paco_lvis_v1_{split}.json", listed, kinds, extra=[empty])
        if wanted == "PART":
            return {"train2017/001": masks_of([1, 2])}
        return {"train2017/001": masks_of([0]), "train2017/002": masks_of([3])}

    return build


def ishape_coco(root: Path) -> Drawn:
    drawn: Drawn = {}
    for number, part in enumerate(("antenna", "branch", "fence", "hanger", "log", "wire")):
        for split in ("train", "val"):
            save_photo(root / f"iShape/{part}/{split}/image/0.jpg")
            objects = {"0.jpg": [(number + (split == "train"), 1), (number + 9, 1)]}
            coco(root / f"iShape/{part}/{split}/coco_format-mask_encoding=rle-instances_2017.json", objects)
        drawn[f"{part}/0"] = masks_of([number, number + 9])
    return drawn


def ishape_maps(root: Path) -> Drawn:
    drawn: Drawn = {}
    for number, part in enumerate(("antenna", "branch", "fence", "hanger", "log", "wire")):
        for split in ("train", "val"):
            save_photo(root / f"iShape/{part}/{split}/image/0.jpg")
            values = np.where(mask_of(number), 3001, 0).astype(np.uint16)
            values[-2:] = 3002
            save_values(root / f"iShape/{part}/{split}/instance_map/0.png", values)
        drawn[f"{part}/0"] = [values == 3001, values == 3002]
    return drawn


def ndd20(root: Path) -> Drawn:
    """The same names above and below water, a region that is no animal, and a photo that has no other."""
    drawn: Drawn = {}
    for start, place in enumerate(("ABOVE", "BELOW")):
        records = {}
        for name, regions in (("1.jpg", [start, start + 2]), ("2.jpg", [])):
            save_photo(root / f"NDD20/{place}/{name}")
            shapes = [outline(number, "polyline" if number % 2 else "polygon") for number in regions]
            shapes.append({"name": "polyline", "all_points_x": [4, 9], "all_points_y": [4, 4]})
            found = [{"shape_attributes": shape, "region_attributes": {"species": "BND"}} for shape in shapes]
            records[f"{name}99"] = {"filename": name, "size": 99, "regions": found}
        (root / f"NDD20/{place}_LABELS.json").write_text(json.dumps(records))
        drawn[f"{place.lower()}/1"] = masks_of([start, start + 2])
    return drawn


def outline(number: int, name: str) -> dict[str, Any]:
    top, left, bottom, right = box(number)
    return {
        "name": name,
        "all_points_x": [left, right, right, left],
        "all_points_y": [top, top, bottom, bottom],
    }


def ibd(split: str) -> Build:
    """Regions by number in a table, and photos whose fourth channel is height."""

    def build(root: Path) -> Drawn:
        pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)
        save_values(root / f"IBD/{split}/r.png", pixels)
        roofs = {str(n): {"shape_attributes": outline(n, "polygon"), "region_attributes": {}} for n in range(2)}
        record = {"r.png1": {"filename": "r.png", "size": 1, "regions": roofs, "file_attributes": {}}}
        (root / f"IBD/via_region_data-{split}.json").write_text(json.dumps(record))
        return {"r": masks_of([0, 1])}

    return build


def trashcan(split: str) -> Build:
    """A photo without annotations, a polygon of two points, and another version of the same photos."""

    def build(root: Path) -> Drawn:
        for version in ("instance", "material"):
            for name in ("vid_1_frame1", "vid_1_frame2"):
                save_photo(root / f"dataset/{version}_version/{split}/{name}.jpg")
        listed = {"vid_1_frame1.jpg": [(0, 1), (4, 1)], "vid_1_frame2.jpg": []}
        line = {"id": 5, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 9]], "iscrowd": 0}
        coco(root / f"dataset/instance_version/instances_{split}_trashcan.json", listed, extra=[line])
        coco(root / f"dataset/material_version/instances_{split}_trashcan.json", {"vid_1_frame1.jpg": [(1, 1)]})
        return {"vid_1_frame1": masks_of([0, 4])}

    return build


def crowds_and_blank(path: Path, folder: Path, prefix: str = "") -> Drawn:
    """COCO instances: a crowd, a photo without annotations, a grey photo."""
    for name in ("000000000139", "000000000285", "000000000632"):
        save_photo(folder / f"{name}.jpg")
    Image.new("L", (WIDTH, HEIGHT), 77).save(folder / "000000000285.jpg")
    listed = {
        f"{prefix}000000000139.jpg": [(0, 1), (1, 1)],
        f"{prefix}000000000285.jpg": [(2, 1)],
        f"{prefix}000000000632.jpg": [],
    }
    crowd = {"id": 3, "image_id": 1, "category_id": 1, "segmentation": rle(mask_of(9)), "iscrowd": 1}
    coco(path, listed, extra=[crowd])
    return {f"{prefix}000000000139": masks_of([0, 1]), f"{prefix}000000000285": masks_of([2])}


def coco_set(split: str, photos: str = "{}") -> Build:
    return lambda root: crowds_and_blank(
        root / f"coco/annotations/instances_{split}.json", root / "coco" / photos.format(split)
    )


def lvis(split: str, annotations: str) -> Build:
    """No file names: the photos, in two folders, are told by their addresses."""

    def build(root: Path) -> Drawn:
        for place in ("train2017", "val2017"):
            save_photo(root / f"coco/{place}/000000000139.jpg")
        where = "http://images.cocodataset.org/{}/000000000139.jpg"
        listed = {where.format(place): [(n, 1), (n + 5, 1)] for n, place in enumerate(("train2017", "val2017"))}
        coco(root / "coco" / annotations / f"lvis_v1_{split}.json", listed, name_key="coco_url")
        return {f"{place}/000000000139": masks_of([n, n + 5]) for n, place in enumerate(("train2017", "val2017"))}

    return build


def sa_1b(folders: Sequence[str]) -> Build:
    """A file per photo, beside it; annotations do not name their photo."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for number, folder in enumerate(folders):
            stem = f"sa_{number + 1}"
            save_photo(root / folder / f"{stem}.jpg")
            image = {"image_id": number + 1, "width": WIDTH, "height": HEIGHT, "file_name": f"{stem}.jpg"}
            found = [
                {"id": n, "segmentation": text_rle(mask_of(n)), "bbox": [1, 1, 2, 2], "area": 9, "predicted_iou": 0.9,
                 "stability_score": 0.97, "crop_box": [0, 0, WIDTH, HEIGHT], "point_coords": [[1.5, 2.5]]}
                for n in (number, number + 7)
            ]  # fmt: skip
            (root / folder / f"{stem}.json").write_text(json.dumps({"image": image, "annotations": found}))
            inner = folder.partition("/")[2]
            drawn[f"{inner}/{stem}" if inner else stem] = masks_of([number, number + 7])
        return drawn

    return build
