"""Public sets are read from the layouts in which they are published: miniatures, whose masks are those that were drawn.

Each miniature has the odd files of its set, and those that macOS adds to archives.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image
from scipy.io import savemat

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.check import sets_of
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.public import public_sets
from sum_factory.trainer.data.sets import PublicSettings, open_set
from sum_factory.trainer.recipe import Recipe
from sum_factory.trainer.run.log import read_log
from sum_factory.trainer.settings import read_settings
from sum_factory.trainer.training import fit

HEIGHT, WIDTH = 24, 32
Mask = npt.NDArray[np.bool_]
Values = npt.NDArray[Any]
Drawn = dict[str, list[Mask]]
"""The masks of each photo, by its key."""
Build = Callable[[Path], Drawn]
Shape = tuple[int, int]


def box(number: int) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the object of a number: no two of the first 420 are the same."""
    top, left = 2 + 2 * (number % 3), 3 + 3 * (number % 4)
    return top, left, top + 6 + number % 5, left + 8 + number % 7


def mask_of(number: int, shape: Shape = (HEIGHT, WIDTH)) -> Mask:
    mask = np.zeros(shape, bool)
    top, left, bottom, right = box(number)
    mask[top:bottom, left:right] = True
    return mask


def save_photo(path: Path, shape: Shape = (HEIGHT, WIDTH), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


def save_values(path: Path, values: Values) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def save_palette(path: Path, values: Values) -> None:
    """Write places of a palette of which the first is black and others are colours, as VOC and DAVIS do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8), "P")
    image.putpalette([0, 0, 0] + [channel for n in range(1, 256) for channel in (n * 53 % 256, n * 91 % 256, 255 - n)])
    image.save(path)


def white(mask: Mask) -> Values:
    return np.where(mask, 255, 0).astype(np.uint8)


def soft(mask: Mask) -> Values:
    """An object with edges of 100 around it, and of 200 at its left: half of white and above is the object."""
    values = np.where(mask, 255, 0).astype(np.uint8)
    values[1:][mask[:-1] & ~mask[1:]] = 100
    values[:, :-1][mask[:, :-1] & mask[:, 1:] & ~np.roll(mask, 1, 1)[:, :-1]] = 200
    return values


def numbered(mask: Mask) -> Values:
    """Two objects, 1 and 2, that are one mask together."""
    return np.where(mask, 1 + (np.arange(mask.shape[1]) > 8), 0).astype(np.uint8)


def pairs(
    images: str,
    masks: str,
    photo: str = "{}.jpg",
    mask: str = "{}.png",
    stems: Sequence[str] = ("a", "b", "c"),
    values: Callable[[Mask], Values] = white,
    more: Callable[[Path], None] = lambda _: None,
) -> Build:
    """Photos of several sizes with a mask each."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for number, stem in enumerate(stems):
            shape = (HEIGHT + number, WIDTH - number)
            save_photo(root / images / photo.format(stem), shape)
            save_values(root / masks / mask.format(stem), values(mask_of(number, shape)))
            drawn[stem] = [mask_of(number, shape)]
        more(root)
        return drawn

    return build


def left_over(root: Path) -> None:
    save_values(root / "cascade_psp/fss_all/never_labelled.png", white(mask_of(1)))


def of_another_size(root: Path) -> None:
    for name in ("ILSVRC2014_train_00023530", "n04442312_17818"):
        save_photo(root / f"cascade_psp/DUTS-TR/{name}.jpg")
        save_values(root / f"cascade_psp/DUTS-TR/{name}.png", white(mask_of(0, (HEIGHT, WIDTH + 9))))


def results_of_a_model(root: Path) -> None:
    save_values(root / "BIG/test/a_im_seg.png", white(~mask_of(0)))
    save_values(root / "BIG/test/a_seg.png", white(~mask_of(0)))


def thin_object_original(split: str) -> Build:
    """Photos of all splits in one folder, and lists whose lines are the names of masks."""

    def build(root: Path) -> Drawn:
        every = pairs("ThinObject5K/images", "ThinObject5K/masks", stems=("t1", "t2", "v1", "e1"), values=soft)(root)
        (root / "ThinObject5K/list").mkdir()
        for name in ("train", "val", "test"):
            chosen = [stem for stem in every if stem[0] == {"train": "t", "val": "v", "test": "e"}[name]]
            (root / f"ThinObject5K/list/{name}.txt").write_text("".join(f"{stem}.png\n" for stem in chosen))
        return {stem: masks for stem, masks in every.items() if stem[0] == {"train": "t", "test": "e"}[split]}

    return build


def original_lists(name: str) -> Callable[[Path], None]:
    def more(root: Path) -> None:
        (root / name / "list").mkdir()
        (root / name / "list" / "test.txt").write_text("a\nb\nc\n")

    return more


def turned(masks: str, values: Callable[[Mask], Values], more: Callable[[Path], None] = lambda _: None) -> Build:
    """HRSOD: some photos are turned by EXIF, and their masks were drawn on them so."""

    def build(root: Path) -> Drawn:
        images = masks.rpartition("/")[0] + "/images"
        drawn = pairs(images, masks, values=values, more=more)(root)
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        save_photo(root / images / "t.jpg", (HEIGHT, WIDTH), exif=exif)
        drawn["t"] = [mask_of(5, (WIDTH, HEIGHT))]
        save_values(root / masks / "t.png", values(drawn["t"][0]))
        return drawn

    return build


# Files of annotations


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


# Label maps


def maps(
    images: str,
    labels: str,
    classes: Mapping[int, int],
    photo: str = "{}.jpg",
    label: str = "{}.png",
    void: Sequence[int] = (),
    stems: Sequence[str] = ("a", "b"),
    dtype: Any = np.uint8,
    save: Callable[[Path, Values], None] = save_values,
    background: int = 0,
) -> Build:
    """Photos with a map each: of each value the number of its object; ``void`` values stand in the last row.

    A ``background`` that is not 0 is a class, too.
    """

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for place, stem in enumerate(stems):
            shape = (HEIGHT + place, WIDTH)
            save_photo(root / images / photo.format(stem), shape)
            values = np.full(shape, background, dtype)
            for value, number in classes.items():
                values[mask_of(number + place, shape)] = value
            values[-1, : len(void)] = void
            save(root / labels / label.format(stem), values)
            wanted = [*classes, background] if background else list(classes)
            drawn[stem] = [values == value for value in wanted if (values == value).any()]
        return drawn

    return build


VOID_CLASSES = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""What the scorer of Cityscapes ignores."""
NO_OBJECTS = (*VOID_CLASSES[:-2], *range(24, 34))
"""These, and the groups of objects that are not told apart."""


def cityscapes(split: str) -> Build:
    """Roads, cars, void classes and an undivided group of cars, in 16 bits; beside maps of another kind."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for city in ("bonn", "ulm"):
            name = f"{city}/{city}_000000_000001"
            save_photo(root / f"Cityscapes/leftImg8bit/{split}/{name}_leftImg8bit.png")
            ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
            ids[:2], ids[4:8, 4:8], ids[4:8, 10:14], ids[20:22] = 4, 26000, 26001, 26
            ids[-1, : len(NO_OBJECTS)] = NO_OBJECTS
            base = root / f"Cityscapes/gtFine/{split}/{name}_gtFine"
            save_values(base.with_name(base.name + "_instanceIds.png"), ids)
            save_values(base.with_name(base.name + "_labelIds.png"), (ids // 1000).astype(np.uint8))
            save_values(base.with_name(base.name + "_color.png"), np.stack([ids.astype(np.uint8)] * 3, -1))
            drawn[name] = [ids == value for value in (7, 26000, 26001)]
        return drawn

    return build


def mhp_v1(split: str) -> Build:
    """Persons that overlap, a map each; a list of 4,000 lines, of which few are names here."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        lines = [""] * 4000
        for line in (1, 3000, 3001, 4000):
            stem = f"{line:04d}"
            lines[line - 1] = f"{stem}.jpg"
            save_photo(root / f"LV-MHP-v1/images/{stem}.jpg")
            drawn[stem] = []
            for person in (1, 2):
                parts = np.zeros((HEIGHT, WIDTH), np.uint8)
                parts[mask_of(line % 3 + person)], parts[-3:, :9] = 2, 18
                save_values(root / f"LV-MHP-v1/annotations/{stem}_02_0{person}.png", parts)
                drawn[stem] += [parts == 2, parts == 18]
        (root / "LV-MHP-v1/train_list.txt").write_text("\n".join(lines) + "\n")
        save_photo(root / "LV-MHP-v1/images/4001.jpg")
        save_values(root / "LV-MHP-v1/annotations/4001_01_01.png", np.zeros((HEIGHT, WIDTH), np.uint8))
        return {stem: masks for stem, masks in drawn.items() if (int(stem) > 3000) == (split == "val")}

    return build


def mhp_v2(split: str) -> Build:
    """Persons that overlap, a colour map each, in whose red channel the part stands."""

    def build(root: Path) -> Drawn:
        folder = root / f"LV-MHP-v2/{split}"
        save_photo(folder / "images/17.jpg")
        drawn: list[Mask] = []
        for person in range(2):
            parts = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
            parts[..., 0][mask_of(person)], parts[-3:, :9, 0] = 2, 58
            parts[..., 1], parts[: HEIGHT // 2, :, 2] = 7, 9
            save_values(folder / f"parsing_annos/17_02_0{person}.png", parts)
            drawn += [parts[..., 0] == 2, parts[..., 0] == 58]
        return {"17": drawn}

    return build


def coco_panoptic(photos: str) -> Build:
    """Segments are colours; one is a crowd, and one is a grey."""

    def build(root: Path) -> Drawn:
        save_photo(root / f"coco/{photos}/000000000139.jpg")
        ids = np.zeros((HEIGHT, WIDTH), np.int64)
        for number, segment in enumerate((3226956, 255, 0x050505, 6979964)):
            ids[mask_of(number)] = segment
        ids[-2:] = 777777
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        save_values(root / "coco/annotations/panoptic_val2017/000000000139.png", colours)
        segments = [{"id": each, "iscrowd": int(each == 777777)} for each in (3226956, 255, 0x050505, 6979964, 777777)]
        listed = {"annotations": [{"file_name": "000000000139.png", "image_id": 139, "segments_info": segments}]}
        (root / "coco/annotations/panoptic_val2017.json").write_text(json.dumps(listed))
        return {"000000000139": [ids == each for each in (3226956, 255, 0x050505, 6979964) if (ids == each).any()]}

    return build


def ade_full(root: Path) -> Drawn:
    """Classes in red and green, objects in blue: two of one class, one of another; beside parts and whole objects."""
    drawn: Drawn = {}
    base = root / "ADE20K_2021_17_01/images/ADE/validation"
    for scene in ("urban/street/x", "nature/x"):
        save_photo(base / f"{scene}.jpg")
        seg = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        for blue, (number, colour) in enumerate([(0, (20, 7)), (3, (20, 7)), (8, (30, 7))], 1):
            seg[mask_of(number)] = (*colour, blue)
        seg[-2:] = (40, 3, 0)
        save_values(base / f"{scene}_seg.png", seg)
        save_values(base / f"{scene}_parts_1.png", seg)
        save_values(base / f"{scene}/instance_000_x.png", seg[..., 2])
        drawn[scene] = [seg[..., 2] == blue for blue in (1, 2, 3) if (seg[..., 2] == blue).any()]
    return drawn


def voc(split: str, save: Callable[[Path, Values], None] = save_palette) -> Build:
    """Objects with a void border; photos that have no masks, which lists leave out."""

    def build(root: Path) -> Drawn:
        base = root / "VOCdevkit/VOC2012"
        drawn = maps(
            "VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationObject", {1: 0, 2: 4}, void=(255,), save=save
        )(root)
        maps("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationObject", {1: 0}, stems=("other",))(root)
        save_photo(base / "JPEGImages/never_segmented.jpg")
        (base / "ImageSets/Segmentation").mkdir(parents=True)
        for name, stems in ((split, drawn), ("trainval", [*drawn, "other"])):
            (base / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(stems) + "\n")
        return drawn

    return build


def save_without_palette(path: Path, values: Values) -> None:
    """Write the colours that VOC has for its first values, as careless tools do."""
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
    shown = np.zeros((*values.shape, 3), np.uint8)
    for value, colour in colours.items():
        shown[values == value] = colour
    save_values(path, shown)


def davis(year: str) -> Build:
    """The same names in every sequence; the list names sequences, or photos with their masks. An object leaves."""

    def build(root: Path) -> Drawn:
        drawn: Drawn = {}
        for place, sequence in enumerate(("bear", "camel", "of_training")):
            for frame in range(2):
                save_photo(root / f"DAVIS/JPEGImages/480p/{sequence}/0000{frame}.jpg")
                values = np.zeros((HEIGHT, WIDTH), np.uint8)
                for value in range(1, 3 - frame):
                    values[mask_of(place + 4 * value)] = value
                if year == "2017":
                    values[-1] = 255
                save_palette(root / f"DAVIS/Annotations/480p/{sequence}/0000{frame}.png", values)
                objects = [values == value for value in (1, 2) if (values == value).any()]
                drawn[f"{sequence}/0000{frame}"] = objects if year == "2017" else [values != 0]
        lists = root / f"DAVIS/ImageSets/{year}"
        lists.mkdir(parents=True)
        wanted = {key: masks for key, masks in drawn.items() if "training" not in key}
        lines = [f"/JPEGImages/480p/{key}.jpg /Annotations/480p/{key}.png" for key in wanted]
        (lists / "val.txt").write_text("\n".join(["bear", "camel"] if year == "2017" else lines) + "\n")
        return wanted

    return build


def pascal_part(root: Path) -> Drawn:
    """An object with two parts, and one that has none."""
    parts = np.zeros((1, 2), [("part_name", "O"), ("mask", "O")])
    for place in range(2):
        parts[0, place] = (f"part {place}", mask_of(place).astype(np.uint8))
    objects = np.zeros((1, 2), [("class", "O"), ("class_ind", "O"), ("mask", "O"), ("parts", "O")])
    objects[0, 0] = ("dog", 12, (mask_of(0) | mask_of(1)).astype(np.uint8), parts)
    objects[0, 1] = ("boat", 4, mask_of(9).astype(np.uint8), np.zeros((0, 0)))
    for stem in ("2008_000001", "2008_000002"):
        save_photo(root / f"VOCdevkit/VOC2010/JPEGImages/{stem}.jpg")
    save_photo(root / "VOCdevkit/VOC2010/JPEGImages/2008_000003.jpg")
    (root / "Annotations_Part").mkdir()
    for stem in ("2008_000001", "2008_000002"):
        savemat(root / f"Annotations_Part/{stem}.mat", {"anno": {"imname": stem, "objects": objects}})
    return {stem: masks_of([0, 1]) for stem in ("2008_000001", "2008_000002")}


FACE = {value: value for value in range(1, 9)}
HQ, THIN = "cascade_psp", "thin_object_detection"
CASES: dict[str, tuple[str, Build]] = {
    "DIS-TR": ("dis-tr", pairs("DIS5K/DIS-TR/im", "DIS5K/DIS-TR/gt", stems=("1#Art#2#Bench#3_o", "2#Art#2#Bench#4"))),
    "DIS-TR nested": ("dis-tr", pairs("DIS5K/DIS5K/DIS-TR/im", "DIS5K/DIS5K/DIS-TR/gt")),
    "DIS-VD": ("dis-vd", pairs("DIS5K/DIS-VD/im", "DIS5K/DIS-VD/gt")),
    "ThinObject5K train": (
        "thinobject5k-train",
        pairs(f"{THIN}/ThinObject5K/images_train", f"{THIN}/ThinObject5K/masks_train", values=soft),
    ),
    "ThinObject5K train, original": ("thinobject5k-train", thin_object_original("train")),
    "ThinObject5K test": (
        "thinobject5k-test",
        pairs(f"{THIN}/ThinObject5K/images_test", f"{THIN}/ThinObject5K/masks_test", values=soft),
    ),
    "ThinObject5K test, original": ("thinobject5k-test", thin_object_original("test")),
    "COIFT": ("coift", pairs(f"{THIN}/COIFT/images", f"{THIN}/COIFT/masks")),
    "COIFT, original": (
        "coift",
        pairs("COIFT/images", "COIFT/masks", values=numbered, more=original_lists("COIFT")),
    ),
    "HRSOD": ("hrsod", turned(f"{THIN}/HRSOD/masks_max255", white)),
    "HRSOD, original": ("hrsod", turned("HRSOD/masks", numbered, original_lists("HRSOD"))),
    "FSS-1000": ("fss-1000", pairs(f"{HQ}/fss_all", f"{HQ}/fss_all", more=left_over)),
    "FSS-1000, original": (
        "fss-1000",
        pairs("fewshot_data/fewshot_data", "fewshot_data/fewshot_data", stems=("ab_wheel/1", "ab_wheel/2", "abacus/1")),
    ),
    "DUTS-TR": ("duts-tr", pairs(f"{HQ}/DUTS-TR", f"{HQ}/DUTS-TR", more=of_another_size)),
    "DUTS-TR, original": ("duts-tr", pairs("DUTS-TR/DUTS-TR-Image", "DUTS-TR/DUTS-TR-Mask")),
    "DUTS-TE": ("duts-te", pairs(f"{HQ}/DUTS-TE", f"{HQ}/DUTS-TE")),
    "DUTS-TE, original": ("duts-te", pairs("DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask")),
    "ECSSD": ("ecssd", pairs(f"{HQ}/ecssd", f"{HQ}/ecssd")),
    "ECSSD, original": ("ecssd", pairs("ECSSD/images", "ECSSD/ground_truth_mask")),
    "MSRA-10K": ("msra-10k", pairs(f"{HQ}/MSRA_10K", f"{HQ}/MSRA_10K")),
    "MSRA-10K, original": ("msra-10k", pairs("MSRA10K_Imgs_GT/Imgs", "MSRA10K_Imgs_GT/Imgs")),
    "DUT-OMRON": ("dut-omron", pairs("DUT-OMRON/DUT-OMRON-image", "DUT-OMRON/pixelwiseGT-new-PNG")),
    "DUT-OMRON nested": (
        "dut-omron",
        pairs("DUT-OMRON-image/DUT-OMRON-image", "pixelwiseGT-new-PNG/pixelwiseGT-new-PNG"),
    ),
    "BIG": ("big-test", pairs("BIG/test", "BIG/test", "{}_im.jpg", "{}_gt.png", more=results_of_a_model)),
    "BIG val": ("big-val", pairs("BIG/val", "BIG/val", "{}_im.jpg", "{}_gt.png", ("1_ab_o_dog", "1_ab_o_tv"))),
    "VOCEVAL": ("voceval", pairs("VOCEVAL", "VOCEVAL", "{}_im.png", "{}_gt.png", ("2007_000123_08", "2007_000123_15"))),
    "Pascal-S": ("pascal-s", pairs("Pascal-S/Imgs", "Pascal-S/Imgs", values=soft)),
    "EntitySeg train": ("entityseg-train", entity_train),
    "EntitySeg train, parts": ("entityseg-train", entity_train_parts("entityseg_train_0{}.json")),
    "EntitySeg train, older": ("entityseg-train", entity_train_parts("entityv2_0{}_entity_train.json")),
    **{f"EntitySeg val {n}": (f"entityseg-val-{n - 1}", entity_val(n)) for n in INNER},
    **{f"EntitySeg val {n}, older": (f"entityseg-val-{n - 1}", entity_val_part(n)) for n in INNER},
    "MHP v1 train": ("mhp-v1-train", mhp_v1("train")),
    "MHP v1 val": ("mhp-v1-val", mhp_v1("val")),
    "MHP v2 train": ("mhp-v2-train", mhp_v2("train")),
    "MHP v2 val": ("mhp-v2-val", mhp_v2("val")),
    **{
        f"EasyPortrait {split}": (
            f"easyportrait-{split}",
            maps(f"EasyPortrait/images/{split}", f"EasyPortrait/annotations/{split}", FACE),
        )
        for split in ("train", "val")
    },
    **{f"Fashionpedia {split}": (f"fashionpedia-{split}", fashionpedia(split, False)) for split in ("train", "val")},
    **{
        f"Fashionpedia subpart {split}": (f"fashionpedia-subpart-{split}", fashionpedia(split, True))
        for split in ("train", "val")
    },
    "Fashionpedia counted from 1": ("fashionpedia-val", fashionpedia("val", False, shift=1)),
    "Fashionpedia subpart counted from 1": ("fashionpedia-subpart-val", fashionpedia("val", True, shift=1)),
    "PACO train": ("paco-parts-train", paco("train", "PART")),
    "PACO val": ("paco-parts-val", paco("val", "PART")),
    "PACO val, photos beside": ("paco-parts-val", paco("val", "PART", "PACO")),
    "PACO train, photos beside": ("paco-parts-train", paco("train", "PART", "PACO")),
    "PACO objects": ("paco-objects-val", paco("val", "OBJECT")),
    "PACO objects, photos beside": ("paco-objects-val", paco("val", "OBJECT", "PACO")),
    **{f"Cityscapes {split}": (f"cityscapes-{split}", cityscapes(split)) for split in ("train", "val")},
    **{
        f"EgoHOS {split}": (f"egohos-{split}", maps(f"EgoHOS/{split}/image", f"EgoHOS/{split}/label", {1: 0, 4: 4}))
        for split in ("train", "val")
    },
    "DRAM": (
        "dram-test",
        maps(
            "DRAM_processed/test", "DRAM_processed/labels", {15: 0, 3: 4}, void=(255,), stems=("cubism/b/1", "real/a/1")
        ),
    ),
    "iShape": ("ishape-val", ishape_coco),
    "iShape, maps": ("ishape-val", ishape_maps),
    "GTAV": (
        "gtav",
        maps(
            "GTAV/images", "GTAV/labels", {7: 0, 26: 4}, "{}.png", void=VOID_CLASSES, save=save_palette, background=23
        ),
    ),
    "NDD20": ("ndd20", ndd20),
    **{f"TrashCan {split}": (f"trashcan-{split}", trashcan(split)) for split in ("train", "val")},
    **{f"IBD {split}": (f"ibd-{split}", ibd(split)) for split in ("train", "val")},
    **{f"COCO {split}": (f"coco-{split}", coco_set(split)) for split in ("train2017", "val2017")},
    **{
        f"COCO {split}, in images": (f"coco-{split}", coco_set(split, "images/{}"))
        for split in ("train2017", "val2017")
    },
    "COCO panoptic": ("coco-panoptic-val2017", coco_panoptic("val2017")),
    "COCO panoptic, in images": ("coco-panoptic-val2017", coco_panoptic("images/val2017")),
    **{
        f"COCO-Stuff in {labels}": (
            "coco-stuff-val2017",
            maps(images, labels, {0: 0, 91: 4}, void=(255,), background=181),
        )
        for images, labels in (
            ("coco/val2017", "coco/stuffthingmaps/val2017"),
            ("coco/val2017", "coco/stuffthingmaps_trainval2017/val2017"),
            ("coco/images/val2017", "coco/annotations/val2017"),
        )
    },
    **{
        f"LVIS {split} in {place or 'the folder of COCO'}": (f"lvis-v1-{split}", lvis(split, place))
        for split in ("train", "val")
        for place in ("annotations", "")
    },
    "ADE20K": (
        "ade20k-val",
        maps("ADEChallengeData2016/images/validation", "ADEChallengeData2016/annotations/validation", {150: 0, 3: 4}),
    ),
    "ADE20K full": ("ade20k-full-val", ade_full),
    **{f"VOC {split}": (f"voc2012-{split}", voc(split)) for split in ("train", "val")},
    "VOC without its palette": ("voc2012-val", voc("val", save_without_palette)),
    "Pascal-Part": ("pascal-part", pascal_part),
    "DAVIS 2016": ("davis2016-val", davis("2016")),
    "DAVIS 2017": ("davis2017-val", davis("2017")),
    "SA-1B": ("sa-1b", sa_1b(["SA-1B/sa_000000", "SA-1B/sa_000001"])),
    "SA-1B in one folder": ("sa-1b", sa_1b(["SA-1B", "SA-1B"])),
}
"""Miniatures: the set that each is of, and what builds it."""


def add_files_of_macos(root: Path) -> None:
    """Add what macOS adds to archives: a file beside each, and a folder of such files."""
    for path in [path for path in root.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        other = root / "__MACOSX" / path.relative_to(root).with_name(f"._{path.name}")
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(b"\0\5\26\7")


def require_drawn(human: HumanSet, drawn: Drawn) -> None:
    """The set has these photos, and of each these masks, in any order."""
    assert sorted(human.keys) == sorted(drawn)
    for index, key in enumerate(human.keys):
        sample = human.load(index)
        found = sorted(mask.tobytes() for mask in sample.masks)
        assert sample.image.shape[:2] == drawn[key][0].shape
        assert found == sorted(mask.tobytes() for mask in drawn[key]), key
    if human.mask_count is not None:
        assert human.mask_count == sum(map(len, drawn.values()))


@pytest.mark.parametrize("case", CASES)
def test_set_is_read_from_its_published_layout(case: str, tmp_path: Path) -> None:
    name, build = CASES[case]
    drawn = build(tmp_path)
    add_files_of_macos(tmp_path)
    settings = PublicSettings(name, tmp_path)
    opened = open_set(settings)
    require_drawn(opened, drawn)
    assert opened.task == {"salient": 1, "entity": 2, "part": 3, "unspecified": 0}[public_sets()[name].task]


def test_height_beside_the_colours_of_a_photo_is_dropped(tmp_path: Path) -> None:
    CASES["IBD val"][1](tmp_path)
    image = open_set(PublicSettings("ibd-val", tmp_path)).load(0).image
    with Image.open(tmp_path / "IBD/val/r.png") as stored:
        assert np.array_equal(image, np.asarray(stored)[..., :3])


def test_every_set_has_a_miniature_and_a_name_of_its_own() -> None:
    assert {name for name, _ in CASES.values()} == set(public_sets())
    titles = [each.title for each in public_sets().values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("set_", "place"),
    [("hrsod", "HRSOD"), ("hrsod", "thin_object_detection"), ("hrsod", "."), ("hrsod", "..")],
)
def test_root_may_be_any_folder_that_leads_to_a_set(set_: str, place: str, tmp_path: Path) -> None:
    drawn = CASES["HRSOD"][1](tmp_path / "data")
    folders = {"HRSOD": "data/thin_object_detection/HRSOD", "thin_object_detection": "data/thin_object_detection"}
    root = tmp_path / folders.get(place, "data" if place == "." else ".")
    require_drawn(open_set(PublicSettings(set_, root)), drawn)


def test_folder_of_a_set_may_have_any_name_if_it_is_given(tmp_path: Path) -> None:
    drawn = CASES["EasyPortrait val"][1](tmp_path)
    (tmp_path / "EasyPortrait").rename(tmp_path / "faces")
    require_drawn(open_set(PublicSettings("easyportrait-val", tmp_path / "faces")), drawn)
    with pytest.raises(InputError, match="EasyPortrait is not there; expected images/val, annotations/val in EasyPort"):
        open_set(PublicSettings("easyportrait-val", tmp_path))


def test_set_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    for copy in ("one", "two"):
        CASES["COIFT"][1](tmp_path / copy)
    with pytest.raises(
        InputError, match=r"COIFT is there several times, in \S+one\S* and \S+two\S*; give one of these"
    ):
        open_set(PublicSettings("coift", tmp_path))
    open_set(PublicSettings("coift", tmp_path / "one"))


def test_what_is_missing_of_a_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; expected one that holds HRSOD"):
        open_set(PublicSettings("hrsod", tmp_path / "none"))
    save_photo(tmp_path / "thin_object_detection/HRSOD/images/a.jpg")
    with pytest.raises(InputError, match=r"has HRSOD/images, but not HRSOD/masks_max255; .*fetch-help hrsod"):
        open_set(PublicSettings("hrsod", tmp_path))


def test_overrides_choose_among_the_photos_of_a_set(tmp_path: Path) -> None:
    drawn = CASES["iShape"][1](tmp_path)
    chosen = open_set(PublicSettings("ishape-val", tmp_path, match="*n*", limit=2))
    require_drawn(chosen, {key: drawn[key] for key in ("antenna/0", "branch/0")})
    assert chosen.keys == ["antenna/0", "branch/0"]
    assert open_set(PublicSettings("ishape-val", tmp_path, limit=2)).mask_count is None
    CASES["VOC val"][1](tmp_path)
    (tmp_path / "mine.txt").write_text("a\n")
    with pytest.raises(InputError, match="voc2012-val: its photos are chosen by list already"):
        open_set(PublicSettings("voc2012-val", tmp_path, list=tmp_path / "mine.txt"))


def test_line_that_the_list_does_not_have_is_refused(tmp_path: Path) -> None:
    CASES["MHP v1 val"][1](tmp_path)
    (tmp_path / "LV-MHP-v1/train_list.txt").write_text("0001.jpg\n" * 3999)
    with pytest.raises(InputError, match="has 3999 lines; expected 4000"):
        open_set(PublicSettings("mhp-v1-val", tmp_path))


def test_damaged_matlab_file_is_named(tmp_path: Path) -> None:
    pascal_part(tmp_path)
    (tmp_path / "Annotations_Part/2008_000002.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 9)
    opened = open_set(PublicSettings("pascal-part", tmp_path))
    with pytest.raises(InputError, match=r"2008_000002\.mat: expected a MATLAB file of Pascal-Part"):
        opened.load(1)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"image": {}, "annotations": {}}', '{"images": [], "annotations": []}']
)
def test_folder_of_other_json_files_is_refused(content: str, tmp_path: Path) -> None:
    sa_1b(["SA-1B"])(tmp_path)
    (tmp_path / "SA-1B/other.json").write_text(content)
    with pytest.raises(InputError, match=r"other\.json: expected the JSON of one photo, as in SA-1B"):
        open_set(PublicSettings("sa-1b", tmp_path))


# Recipes and suites

PLACES = ("HQSEG44K", "ENTITYSEG", "DATA")
"""The variables of recipes and suites that hold sets; all of them are one folder here."""
OF_VARIANTS = {"hq_sam": "hq", "sum_hq": "hq", "sam_adapter": "sam-adapter", "lora": "lora", "adapter": "adapter"}
"""Recipes of variants on HQSeg-44K, and the variant of each."""


def built(names: Sequence[str], root: Path) -> dict[str, Drawn]:
    """Build the first miniature of each set."""
    first = dict(reversed(CASES.values()))
    return {name: first[name](root) for name in names}


def named_in(recipe: str, root: Path) -> list[PublicSettings]:
    sets = sets_of(recipe, {place: str(root) for place in PLACES})
    return [settings for settings in sets if isinstance(settings, PublicSettings)]


@pytest.mark.parametrize("name", ["ft_medium", "paper14", "further8"])
def test_recipe_opens_all_its_sets_below_one_folder(name: str, tmp_path: Path) -> None:
    sets = named_in(name, tmp_path)
    assert len(sets) == {"ft_medium": 8, "paper14": 14, "further8": 8}[name]
    drawn = built([settings.set for settings in sets], tmp_path)
    for settings in sets:
        require_drawn(open_set(settings), drawn[settings.set])


@pytest.mark.parametrize("name", ["ft_small", "refiner_hqseg44k", *OF_VARIANTS])
def test_recipes_of_hqseg_are_of_the_same_sets(name: str, tmp_path: Path) -> None:
    parts = [settings for settings in named_in("ft_medium", tmp_path) if settings.task == "salient"]
    assert named_in(name, tmp_path) == parts
    assert sum(settings.published.photos or 0 for settings in parts) == 44_320, "as in the paper"


def test_ft_large_takes_the_three_kinds_of_layout(tmp_path: Path) -> None:
    pairs("salient/images", "salient/masks")(tmp_path)
    maps("part/images", "part/labels", {1: 0, 2: 4})(tmp_path)
    save_photo(tmp_path / "entity/images/e.jpg")
    coco(tmp_path / "entity/instances.json", {"e.jpg": [(0, 1), (1, 1)]})
    variables = {name: str(tmp_path / name.lower()) for name in ("SALIENT", "ENTITY", "PART")}
    found = {settings.name: open_set(settings) for settings in sets_of("ft_large", variables)}
    counts = {name: (len(human.keys), human.load(0).count) for name, human in found.items()}
    assert counts == {"salient": (3, 1), "entity": (1, 2), "part": (2, 2)}


@pytest.fixture(scope="module")
def training_sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HQSeg-44K and EntitySeg, which no test may change."""
    root = tmp_path_factory.mktemp("published")
    built([settings.set for settings in named_in("ft_medium", root)], root)
    return root


@pytest.mark.parametrize("name", [*OF_VARIANTS, "ft_small", "ft_medium"])
def test_recipe_trains_on_its_sets_as_they_are_published(
    name: str, training_sets: Path, tiny_weights: str, known_shards: Any, tmp_path: Path
) -> None:
    variables = {"SAM": tiny_weights, "SHARDS": known_shards.url, **{place: str(training_sets) for place in PLACES}}
    small = ["steps=1", "batch=2", "micro_batch=2", "masks=1", "data_threads=1", "device=cpu", "precision=fp32"]
    recipe = read_settings(name, Recipe, variables, small)
    assert recipe.variant == OF_VARIANTS.get(name, "full")
    fit(recipe, tmp_path, say=lambda _: None)
    (line,) = read_log(tmp_path)
    assert line["masks"] == 2 or (recipe.method == "sum" and line["masks"] == 1), "labelled photos may have no mask"
    assert len(line["iou"]) == recipe.rounds
