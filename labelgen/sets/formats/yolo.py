"""YOLO's segments: a text file per photo, a line per mask, and ``data.yaml``, as ultralytics trains on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sum_factory.labelgen.sets.formats.format import (
    LABEL,
    NO_PIXEL,
    ExportedImage,
    ExportedMask,
    Format,
    Head,
    write_new,
)
from sum_factory.labelgen.sets.formats.polygons import joined

JOINED = "masks of several parts or with holes are one outline each, in which lines of no width join the parts"


class YoloWriter:
    """Writes ``images/NAME.jpg``, if photos are asked for, and ``labels/NAME.txt``.

    ultralytics looks for the text file where the last folder ``images`` of the path is called ``labels``: so there must
    be no other.
    """

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head

    def add(self, image: ExportedImage) -> None:
        """Write a photo and its text file, which is empty if it has no masks."""
        stem = "/".join(f"{part}_" if part == "images" else part for part in image.stem.split("/"))
        if image.copy is not None:
            photo = image.copy()
            write_new(self.folder, f"images/{stem}{photo.suffix}", photo.data)
        lines = [self._line(mask, image) for mask in image.masks]
        write_new(self.folder, f"labels/{stem}.txt", "".join(lines).encode())

    def close(self) -> None:
        """Write which folder has the photos, and the name of the one class."""
        text = "# all photos are for training: divide them before a model is judged\ntrain: images\nval: images\n"
        write_new(self.folder, "data.yaml", f"{text}names:\n  0: {LABEL}\n".encode())

    def _line(self, mask: ExportedMask, image: ExportedImage) -> str:
        if not mask.parts:
            self.head.lost[NO_PIXEL] += 1
            return ""
        rings = [ring for part in mask.parts for ring in (part.outline, *part.holes)]
        if len(rings) > 1:
            self.head.lost[JOINED] += 1
        shares = joined(rings) / np.array([image.width, image.height])
        return f"0 {' '.join(f'{value:.6f}' for value in shares.ravel())}\n"


FORMAT = Format(("polygons",), folder=YoloWriter, photos="copy")
