"""labelme: a JSON beside each photo, of polygons that people move the corners of, or of bitmaps."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from sum_factory.labelgen.sets.formats.format import (
    LABEL,
    NO_PIXEL,
    ExportedImage,
    ExportedMask,
    Format,
    Head,
    write_new,
)
from sum_factory.shared.masks import box_of

VERSION = "5.4.1"
"""Of labelme's files as they are written here; it reads those of others, too."""


class LabelmeWriter:
    """Writes ``NAME.json``, and the photo beside it. The parts of a mask have the same ``group_id``."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head

    def add(self, image: ExportedImage) -> None:
        """Write a photo and its JSON."""
        name = image.name.rpartition("/")[2]
        if image.copy is not None:
            photo = image.copy()
            write_new(self.folder, f"{image.stem}{photo.suffix}", photo.data)
            name = f"{image.stem.rpartition('/')[2]}{photo.suffix}"
        told: dict[str, Any] = {
            "version": VERSION,
            "flags": {},
            "shapes": [shape for mask in image.masks for shape in self._shapes(mask)],
            "imagePath": name,
            "imageData": None,
            "imageHeight": image.height,
            "imageWidth": image.width,
        }
        write_new(self.folder, f"{image.stem}.json", json.dumps(told, indent=1).encode())

    def close(self) -> None:
        """Write nothing more."""

    def _shapes(self, mask: ExportedMask) -> Iterator[dict[str, Any]]:
        if not mask.pixels.any():
            self.head.lost[NO_PIXEL] += 1
        elif self.head.shapes == "bitmaps":
            yield _bitmap(mask)
        else:
            group = mask.index if len(mask.parts) > 1 else None
            for part in mask.parts:
                yield _shape(mask, "polygon", part.cut_open.round(2).tolist(), group)


def _shape(mask: ExportedMask, kind: str, points: list[list[float]], group: int | None) -> dict[str, Any]:
    told = "".join(f"{name} {score:.3f} " for name, score in mask.scores.items()).rstrip()
    return {
        "label": LABEL,
        "points": points,
        "group_id": group,
        "description": told,
        "shape_type": kind,
        "flags": {},
        "mask": None,
    }


def _bitmap(mask: ExportedMask) -> dict[str, Any]:
    """Return a shape of the mask's box, the last pixels included, with what is in it as PNG."""
    x0, y0, x1, y1 = box_of(mask.pixels)
    buffer = io.BytesIO()
    Image.fromarray(mask.pixels[y0 : y1 + 1, x0 : x1 + 1]).save(buffer, "png")
    shape = _shape(mask, "mask", [[float(x0), float(y0)], [float(x1), float(y1)]], None)
    return shape | {"mask": base64.b64encode(buffer.getvalue()).decode("ascii")}


FORMAT = Format(("polygons", "bitmaps"), folder=LabelmeWriter, photos="copy")
