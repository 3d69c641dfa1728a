"""labelme's files, one per photo, brought to the form of COCO's annotations."""

from __future__ import annotations

import base64
import binascii
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sum_factory.shared.annotations.shapes import are_points, is_size, united
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.images import MAX_PIXELS

Record = dict[str, Any]
CORNERS_A_PIXEL = 0.5
"""Of the polygon that a circle becomes: corners for each pixel of its circumference."""


def of_labelme(content: Any) -> Record | None:
    """Return ``image`` and ``annotations`` of one photo, as SA-1B has them; None if this is no file of labelme's.

    Polygons, rectangles, circles and masks are areas. A line or a point is none, and has no segmentation. Shapes of one
    label and ``group_id`` are one mask.
    """
    if not isinstance(content, dict) or not isinstance(content.get("imagePath"), str):
        return None
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(type(shape) is dict for shape in shapes):
        return None
    size = (content.get("imageHeight"), content.get("imageWidth"))
    groups: dict[Any, list[int]] = {}
    for number, shape in enumerate(shapes):
        group = shape.get("group_id")
        groups.setdefault((str(shape.get("label")), number if group is None else f"group {group}"), []).append(number)
    annotations = [
        {
            "id": f"shape {numbers[0]}",
            "category_id": label,
            "segmentation": united([_segmentation(shapes[number], size) for number in numbers], size),
        }
        for (label, _), numbers in groups.items()
    ]
    name = content["imagePath"].replace("\\", "/")
    return {"image": {"file_name": name, "height": size[0], "width": size[1]}, "annotations": annotations}


def _segmentation(shape: Record, size: tuple[Any, Any]) -> Any:
    """Return polygons or an RLE, whose numbers are yet to be checked; None for what is no area."""
    make, points = _AREAS.get(str(shape.get("shape_type") or "polygon")), shape.get("points")
    return make(shape, points, size) if make is not None and points is not None and are_points(points) else None


def _polygon(shape: Record, points: Sequence[Sequence[float]], size: tuple[Any, Any]) -> Any:
    return [[value for point in points for value in point]]


def _rectangle(shape: Record, points: Sequence[Sequence[float]], size: tuple[Any, Any]) -> Any:
    if len(points) != 2:
        return _polygon(shape, points, size)  # newer versions turn them, and tell four corners
    (x0, y0), (x1, y1) = points
    return [[x0, y0, x1, y0, x1, y1, x0, y1]]


def _circle(shape: Record, points: Sequence[Sequence[float]], size: tuple[Any, Any]) -> Any:
    if len(points) != 2:
        return None
    (x, y), edge = points
    radius = math.dist((x, y), edge)
    if not radius < MAX_PIXELS:
        return None
    turns = np.linspace(0, 2 * np.pi, max(32, math.ceil(CORNERS_A_PIXEL * 2 * math.pi * radius)), endpoint=False)
    return [np.stack([x + radius * np.cos(turns), y + radius * np.sin(turns)], 1).ravel().tolist()]


def _bitmap(shape: Record, points: Sequence[Sequence[float]], size: tuple[Any, Any]) -> Any:
    """Return the RLE of a PNG in the box of the points, the last of which are included; None if that is damaged."""
    if len(points) != 2 or not is_size(size) or not isinstance(shape.get("mask"), str):
        return None
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"], validate=True)), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            part = np.asarray(image.convert("L")) > 0
    except (OSError, ValueError, binascii.Error, SyntaxError):
        return None
    x, y = (math.floor(value) if math.isfinite(value) else -1 for value in points[0])
    whole = np.zeros(size, bool)
    if x < 0 or y < 0 or x + part.shape[1] > size[1] or y + part.shape[0] > size[0]:
        return None
    whole[y : y + part.shape[0], x : x + part.shape[1]] = part
    return encode_rle(whole)


_AREAS: Mapping[str, Callable[[Record, Sequence[Sequence[float]], tuple[Any, Any]], Any]] = {
    "polygon": _polygon,
    "rectangle": _rectangle,
    "circle": _circle,
    "mask": _bitmap,
}
