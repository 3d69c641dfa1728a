"""What ``labelgen export`` can be asked to do. Nothing here needs NumPy: the command line shows it as options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ExportFormat = Literal["coco", "yolo", "voc", "labelme", "label-studio", "cvat", "png", "hf"]
Shapes = Literal["polygons", "bitmaps"]
"""What masks are written as: outlines, which people can edit, or every pixel."""
Photos = Literal["copy", "none"]
"""Whether the photos go into the folder that is written, too."""
TOLERANCE = 0.5
"""Pixels of the photo."""


@dataclass(frozen=True)
class ExportSettings:
    """What ``labelgen export`` was asked to do."""

    format: ExportFormat = "coco"
    """Which software is to read it."""
    shapes: Shapes | None = None
    """Of formats that can hold either: outlines, or every pixel. By default coco has pixels, others outlines."""
    tolerance: float = TOLERANCE
    """Pixels that an outline may run beside that of the mask, at most. 0 leaves out corners of straight lines alone."""
    photos: Photos | None = None
    """Whether a folder gets the photos, too. By default where its software wants them there: all folders but png."""
    max_images_per_file: int | None = None
    """Begin another file after so many photos. By default there is one, and with hf one for 500."""
