"""COCO instances: one JSON of compressed RLE, exact, or of polygons."""

from __future__ import annotations

import json
import shutil
import tempfile
from typing import Any, BinaryIO

from pycocotools import mask as coco_mask

from sum_factory.labelgen.sets.formats.format import LABEL, NO_PIXEL, ExportedImage, ExportedMask, Format, Head
from sum_factory.shared.automask.rle import encode_rle

IN_MEMORY = 8 << 20
"""Bytes of what is told of photos that are kept in memory; more wait on this machine's disk."""


class CocoWriter:
    """Writes annotations as they come, and what is told of their photos behind them.

    A ``file_name`` is relative to the folder that ``info`` calls ``root``, as ``trainer`` reads it.
    """

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self.file, self.head, self.annotations = file, head, 0
        self.images = head.stack.enter_context(tempfile.SpooledTemporaryFile(IN_MEMORY))  # noqa: SIM115
        file.write(f'{{"categories": [{{"id": 1, "name": "{LABEL}"}}],\n"annotations": ['.encode())

    def add(self, image: ExportedImage) -> None:
        """Write the masks of a photo."""
        told = {"file_name": image.name, "key": image.key, "source": image.source}
        record = {"id": image.number, **told, "height": image.height, "width": image.width}
        self.images.write((b",\n" if self.images.tell() else b"\n") + json.dumps(record).encode())
        for mask in image.masks:
            segmentation = encode_rle(mask.pixels) if self.head.shapes == "bitmaps" else _polygons(mask)
            if not segmentation:
                self.head.lost[NO_PIXEL] += 1
                continue
            self.annotations += 1
            record = self._annotation(mask, segmentation, image.number)
            self.file.write((b",\n" if self.annotations > 1 else b"\n") + json.dumps(record).encode())

    def close(self) -> None:
        """Write what is told of the photos, and where they lie."""
        self.file.write(b'],\n"images": [')
        self.images.seek(0)
        shutil.copyfileobj(self.images, self.file)
        self.images.close()
        info: dict[str, Any] = {"description": f"masks in {self.head.made_by}, by labelgen", "root": self.head.root}
        if self.head.shapes == "polygons":
            info["polygon_tolerance"] = self.head.settings.tolerance
        self.file.write(f'],\n"info": {json.dumps(info)}}}\n'.encode())

    def _annotation(self, mask: ExportedMask, segmentation: Any, image: int) -> dict[str, Any]:
        """Return an annotation; box and area are those of the mask as it is, in COCO's own convention."""
        rle = segmentation if self.head.shapes == "bitmaps" else encode_rle(mask.pixels)
        return {
            "id": self.annotations,
            "image_id": image,
            "category_id": 1,
            "iscrowd": 0,
            "segmentation": segmentation,
            "area": int(coco_mask.area(rle)),
            "bbox": [float(value) for value in coco_mask.toBbox(rle)],
            **mask.scores,
            "point_coords": [[mask.row["point_x"], mask.row["point_y"]]],
            "crop_box": mask.crop,
        }


def _polygons(mask: ExportedMask) -> list[list[float]]:
    return [part.cut_open.round(2).ravel().tolist() for part in mask.parts]


FORMAT = Format(("bitmaps", "polygons"), file=CocoWriter, suffix=".json")
