"""Label Studio's tasks, brought to the form of COCO: what people drew or accepted, and not what a model predicted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sum_factory.shared.annotations.brush import decode_brush
from sum_factory.shared.annotations.shapes import are_points, is_size, united
from sum_factory.shared.automask.rle import encode_rle
from sum_factory.shared.errors import InputError

Record = dict[str, Any]
_UPLOADED = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-(.+)")
"""What Label Studio calls a file that was uploaded: with a number of its own before the name."""
_LABELS = {"polygonlabels": "points", "polygon": "points", "brushlabels": "rle", "brush": "rle"}
"""Regions that are areas, by type, and what their ``value`` has them in."""


def of_label_studio(content: Any, where: str) -> Record | None:
    """Return ``images``, ``annotations`` and ``categories``; None if this is no list of Label Studio's tasks.

    An image has those of the one annotation of its task that was not skipped; of several, of the one that is marked as
    the truth. A task without annotations, or with a model's predictions alone, is left out. Regions below another are
    of its mask. Raises ``InputError`` for a task of several annotations, for a picture that was turned, for a task
    without picture, and if nobody has annotated any.
    """
    if not isinstance(content, list) or not content or not all(_is_task(task) for task in content):
        return None
    images: list[Record] = []
    annotations: list[Record] = []
    for task in content:
        told = _annotation_of(task, where)
        if told is None:
            continue
        results: list[Record] = told["result"]
        regions = _regions(results)
        number = len(images)
        images.append({"id": number, "file_name": _name_of(task, where), **_size_of(regions, task, where)})
        annotations += [{**each, "image_id": number} for each in _masks(regions, results, task)]
    if not images:
        raise InputError(
            f"{where}: no task has an annotation that people made, only predictions; export the project when they "
            "have been accepted or corrected"
        )
    labels = dict.fromkeys(each["category_id"] for each in annotations)
    categories = [{"id": label, "name": label} for label in labels]
    return {"images": images, "annotations": annotations, "categories": categories}


def _is_task(task: Any) -> bool:
    known = isinstance(task, dict) and isinstance(task.get("data"), dict)
    return known and ("annotations" in task or "predictions" in task)


def _told(task: Record) -> str:
    return f"task {task.get('id', task['data'].get('file_name'))!r:.200}"


def _annotation_of(task: Record, where: str) -> Record | None:
    """Return the annotation of a task that counts. Raises ``InputError`` if several may."""
    found = task.get("annotations") or []
    if not isinstance(found, list) or not all(isinstance(each, dict) and _has_results(each) for each in found):
        raise InputError(f"{where}: {_told(task)} has no annotations with results: export the project as JSON")
    made = [each for each in found if not each.get("was_cancelled")]
    true = [each for each in made if each.get("ground_truth")]
    if len(true or made) > 1:
        raise InputError(
            f"{where}: {_told(task)} has {len(true or made)} annotations; mark one of them as ground truth, or delete "
            "the others"
        )
    return next(iter(true or made), None)


def _has_results(annotation: Record) -> bool:
    found = annotation.get("result")
    return isinstance(found, list) and all(isinstance(each, dict) for each in found)


def _name_of(task: Record, where: str) -> str:
    """Return the path of a task's picture: as ``labelgen export`` told it, or as the picture's URL tells it."""
    data = task["data"]
    if isinstance(data.get("file_name"), str):
        return str(data["file_name"])
    texts = (value for value in (data.get("image"), *data.values()) if isinstance(value, str))
    for text in texts:
        if (uploaded := _UPLOADED.search(text)) is not None:
            return unquote(uploaded[1])
        url = urlsplit(text)
        served = parse_qs(url.query).get("d")
        if served:
            return served[0].lstrip("/")
        if url.path.rpartition(".")[2].lower() in _SUFFIXES:
            return unquote(url.path).lstrip("/") if url.scheme else text
    raise InputError(f"{where}: {_told(task)} names no picture in its data")


_SUFFIXES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "heic", "avif")


def _size_of(regions: list[Record], task: Record, where: str) -> Record:
    """Return the size of a task's picture as its regions tell it; nothing if it has none."""
    sizes = [_size(each) for each in regions]
    if any(each.get("image_rotation") for each in regions):
        raise InputError(f"{where}: {_told(task)}: its picture was turned in Label Studio; turn it back, or save it so")
    if not all(map(is_size, sizes)):
        raise InputError(f"{where}: {_told(task)}: a region does not tell the size of its picture; export it again")
    if len({*sizes}) > 1:
        raise InputError(f"{where}: {_told(task)}: its regions are of pictures of several sizes; give one of each task")
    return {"height": sizes[0][0], "width": sizes[0][1]} if sizes else {}


def _regions(results: list[Record]) -> list[Record]:
    """Return the results that are areas, and those that are other shapes; not what is told of either, as its class."""
    areas = [each for each in results if _is_area(each)]
    known = {_id(each) for each in areas}
    others = [each for each in results if _id(each) not in known and _SHAPE.intersection(_names_in(each))]
    return [*areas, *others]


def _names_in(result: Record) -> list[str]:
    value = result.get("value")
    return list(value) if isinstance(value, dict) else []


_SHAPE = {"x", "points", "vertices"}
"""What ``value`` has of a shape."""


def _masks(regions: list[Record], results: list[Record], task: Record) -> list[Record]:
    """Return the annotations of a task: a mask each, of a region and those below it."""
    by_id = {_id(each): each for each in regions}
    groups: dict[str, list[Record]] = {}
    for number, region in enumerate(regions):
        above, own = str(region.get("parentID")), _id(region) if "id" in region else f"number {number}"
        groups.setdefault(above if above in by_id and _is_area(by_id[above]) else own, []).append(region)
    return [
        {
            "id": f"{_told(task)}, region {own}",
            "category_id": _label_of(own, results),
            "segmentation": united([_segmentation(region) for region in of_mask], _size(of_mask[0])),
        }
        for own, of_mask in groups.items()
    ]


def _id(region: Record) -> str:
    return str(region.get("id"))


def _is_area(region: Record) -> bool:
    return str(region.get("type")) in _LABELS


def _label_of(region: str, results: list[Record]) -> str:
    """Return the first label of the region of this id; some projects tell it apart from the shape."""
    values = (each.get("value") for each in results if _id(each) == region)
    lists = (value[name] for value in values if isinstance(value, dict) for name in value if name.endswith("labels"))
    return next((str(found[0]) for found in lists if isinstance(found, list) and found), "unlabelled")


def _size(region: Record) -> tuple[Any, Any]:
    return region.get("original_height"), region.get("original_width")


def _segmentation(region: Record) -> Any:
    """Return polygons or an RLE, whose numbers are yet to be checked; None for what is no area, or is damaged."""
    value, size = region.get("value"), _size(region)
    if not _is_area(region) or not isinstance(value, Mapping) or not is_size(size):
        return None
    told = value.get(_LABELS[region["type"]])
    if "rle" in value:
        try:
            return encode_rle(decode_brush(value["rle"], *size))
        except InputError:
            return None
    if told is None or not are_points(told):
        return None
    return [[part * side / 100 for x, y in told for part, side in ((x, size[1]), (y, size[0]))]]
