"""CVAT for images 1.1: one XML of polygons or of bitmaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

import numpy as np

from sum_factory.labelgen.sets.formats.format import LABEL, NO_PIXEL, ExportedImage, ExportedMask, Format, Head
from sum_factory.shared.masks import box_of

Attributes = dict[str, str]


class CvatWriter:
    """Writes an ``image`` after the other. The parts of a mask have the same ``group_id``."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self.head = head
        self.xml = XMLGenerator(file, "utf-8", short_empty_elements=True)
        self.xml.startDocument()
        self._begin("annotations")
        self._element("version", {}, "1.1")
        self._begin("meta")
        for name in ("task", "labels", "label"):
            self._begin(name)
        self._element("name", {}, LABEL)
        self._element("attributes", {})
        for name in ("label", "labels", "task", "meta"):
            self.xml.endElement(name)

    def add(self, image: ExportedImage) -> None:
        """Write a photo and its masks."""
        size = {"width": str(image.width), "height": str(image.height)}
        self.xml.ignorableWhitespace("\n")
        self._begin("image", {"id": str(image.number - 1), "name": image.name, **size})
        for mask in image.masks:
            for name, attributes in self._shapes(mask):
                self.xml.ignorableWhitespace("\n ")
                shared = {"label": LABEL, "source": "auto", "occluded": "0", "z_order": "0"}
                self._element(name, shared | attributes)
        self.xml.endElement("image")

    def close(self) -> None:
        """End the file."""
        self.xml.ignorableWhitespace("\n")
        self.xml.endElement("annotations")
        self.xml.endDocument()

    def _begin(self, name: str, attributes: Attributes | None = None) -> None:
        self.xml.startElement(name, AttributesImpl(attributes or {}))

    def _element(self, name: str, attributes: Attributes, text: str = "") -> None:
        self._begin(name, attributes)
        self.xml.characters(text)
        self.xml.endElement(name)

    def _shapes(self, mask: ExportedMask) -> Iterator[tuple[str, Attributes]]:
        if not mask.pixels.any():
            self.head.lost[NO_PIXEL] += 1
        elif self.head.shapes == "bitmaps":
            yield "mask", _bitmap(mask)
        else:
            group = {"group_id": str(mask.index + 1)} if len(mask.parts) > 1 else {}
            for part in mask.parts:
                yield "polygon", {"points": ";".join(f"{x:.2f},{y:.2f}" for x, y in part.cut_open), **group}


def _bitmap(mask: ExportedMask) -> Attributes:
    """Return the runs in a mask's box, row by row, beginning with those that are not of it."""
    x0, y0, x1, y1 = box_of(mask.pixels)
    flat = mask.pixels[y0 : y1 + 1, x0 : x1 + 1].ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(starts, prepend=0, append=len(flat)).tolist()
    box = {"left": x0, "top": y0, "width": x1 - x0 + 1, "height": y1 - y0 + 1}
    return {"rle": ", ".join(map(str, runs)), **{name: str(value) for name, value in box.items()}}


FORMAT = Format(("polygons", "bitmaps"), file=CvatWriter, suffix=".xml")
