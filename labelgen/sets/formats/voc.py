"""Pascal VOC: boxes as XML, and two label maps per photo, of objects and of classes."""

from __future__ import annotations

import io
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sum_factory.labelgen.sets.formats.format import LABEL, NO_PIXEL, ExportedImage, Format, Head, write_new
from sum_factory.shared.masks import box_of

MOST = 254
"""Masks of a photo that a label map of 8 bits tells apart, beside the background and VOC's own void, 255."""
BEYOND = f"masks beyond the {MOST}th of their photo have a box and no place in the label maps"
COVERED = "masks have no place in the label maps: smaller ones cover every pixel"
CUT = "masks lack pixels in the label maps, which smaller ones have"
LISTS = ("ImageSets/Segmentation/train.txt", "ImageSets/Main/train.txt")


class VocWriter:
    """Writes the folders of a VOC set. A pixel is of the smallest of its masks: label maps have one value per pixel."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head
        for name in LISTS:
            write_new(folder, name, b"")

    def add(self, image: ExportedImage) -> None:
        """Write a photo, its boxes and its label maps."""
        name = f"{image.stem}.jpg"
        if image.copy is not None:
            write_new(self.folder, f"JPEGImages/{name}", image.copy().data)
        boxes, objects = self._drawn(image)
        write_new(self.folder, f"Annotations/{image.stem}.xml", _xml(name, image, boxes))
        write_new(self.folder, f"SegmentationObject/{image.stem}.png", _png(objects))
        write_new(self.folder, f"SegmentationClass/{image.stem}.png", _png((objects > 0).astype(np.uint8)))
        for path in LISTS:
            with (self.folder / path).open("a", encoding="utf-8") as file:
                file.write(f"{image.stem}\n")

    def close(self) -> None:
        """Write nothing more."""

    def _drawn(self, image: ExportedImage) -> tuple[list[tuple[int, int, int, int]], np.ndarray]:
        """Return the boxes of the masks, and the label map of the objects, uint8 (H, W), numbered as these."""
        boxes: list[tuple[int, int, int, int]] = []
        areas = [0]
        objects = np.zeros((image.height, image.width), np.uint8)
        smallest = np.full(objects.shape, np.iinfo(np.int32).max, np.int32)
        for mask in image.masks:
            area = int(np.count_nonzero(mask.pixels))
            if not area:
                self.head.lost[NO_PIXEL] += 1
                continue
            boxes.append(box_of(mask.pixels))
            if len(boxes) > MOST:
                self.head.lost[BEYOND] += 1
                continue
            areas.append(area)
            on_top = mask.pixels & (smallest > area)
            objects[on_top], smallest[on_top] = len(boxes), area
        left = np.bincount(objects.ravel(), minlength=len(areas))
        self.head.lost[COVERED] += int(np.count_nonzero(left[1:] == 0))
        self.head.lost[CUT] += int(np.count_nonzero((left[1:] > 0) & (left[1:] < np.array(areas[1:], np.int64))))
        return boxes, objects


def _xml(name: str, image: ExportedImage, boxes: list[tuple[int, int, int, int]]) -> bytes:
    """Return what is told of a photo; boxes count pixels from 1, as VOC does, the last one included."""
    root = ElementTree.Element("annotation")
    _add(root, "folder", "JPEGImages")
    _add(root, "filename", name)
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", image.width), ("height", image.height), ("depth", 3)):
        _add(size, key, value)
    _add(root, "segmented", 1)
    for x0, y0, x1, y1 in boxes:
        found = ElementTree.SubElement(root, "object")
        for key, told in (("name", LABEL), ("pose", "Unspecified"), ("truncated", "0"), ("difficult", "0")):
            _add(found, key, told)
        box = ElementTree.SubElement(found, "bndbox")
        for key, value in (("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1 + 1), ("ymax", y1 + 1)):
            _add(box, key, value)
    return bytes(ElementTree.tostring(root, "utf-8"))


def _add(parent: ElementTree.Element, key: str, value: object) -> None:
    ElementTree.SubElement(parent, key).text = str(value)


def _png(values: np.ndarray) -> bytes:
    picture = Image.fromarray(values)
    picture.putpalette(_PALETTE)  # which makes it one of mode P
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def _palette() -> bytes:
    """Return VOC's colours: the bits of a value go to red, green and blue in turn, the lowest to the highest place."""
    value = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((value >> (3 * place + channel) & 1) << (7 - place)).astype(np.uint8)
    return colours.tobytes()


_PALETTE = _palette()
FORMAT = Format(("bitmaps",), folder=VocWriter, photos="copy")
