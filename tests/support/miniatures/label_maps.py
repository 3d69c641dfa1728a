"""Miniatures of sets with label maps, and of Pascal-Part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from miniatures.annotations import masks_of
from miniatures.pictures import (
    HEIGHT,
    WIDTH,
    Build,
    Drawn,
    Mask,
    Values,
    mask_of,
    save_palette,
    save_photo,
    save_values,
)


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
