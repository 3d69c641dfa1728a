"""A PNG per mask and a table per photo, as the script of `segment_anything` writes them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
from PIL import Image

from sum_factory.labelgen.sets.formats.format import ExportedImage, ExportedMask, Format, Head, Mask, write_new
from sum_factory.shared.masks import box_of

COLUMNS = (
    *("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y", "predicted_iou"),
    *("stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h"),
)
"""Those of upstream's ``metadata.csv``."""


class PngWriter:
    """Writes ``masks/NAME/0.png`` and so on, 255 in the mask and 0 elsewhere, and ``masks/NAME/metadata.csv``."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder = folder

    def add(self, image: ExportedImage) -> None:
        """Write the masks of a photo, and the photo if it is asked for."""
        if image.copy is not None:
            photo = image.copy()
            write_new(self.folder, f"images/{image.stem}{photo.suffix}", photo.data)
        text = io.StringIO(newline="")
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        for mask in image.masks:
            write_new(self.folder, f"masks/{image.stem}/{mask.index}.png", png_of(mask.pixels))
            table.writerow(_row(mask))
        write_new(self.folder, f"masks/{image.stem}/metadata.csv", text.getvalue().encode())

    def close(self) -> None:
        """Write nothing more."""


def png_of(mask: Mask) -> bytes:
    """Return a mask, bool (H, W), as a PNG of 8 bits: 255 in the mask and 0 elsewhere."""
    buffer = io.BytesIO()
    Image.fromarray(mask.view(np.uint8) * np.uint8(255)).save(buffer, "png")
    return buffer.getvalue()


def _row(mask: ExportedMask) -> list[object]:
    x0, y0, x1, y1 = box_of(mask.pixels)
    scores = (mask.scores.get(name, "") for name in ("predicted_iou", "stability_score"))
    point = (mask.row["point_x"], mask.row["point_y"])
    box = (x0, y0, x1 - x0, y1 - y0)
    return [mask.index, int(np.count_nonzero(mask.pixels)), *box, *point, *scores, *mask.crop]


FORMAT = Format(("bitmaps",), folder=PngWriter)
