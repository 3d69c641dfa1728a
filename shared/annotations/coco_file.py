"""Annotations of other software, read and brought to one form: COCO's images and annotations."""

from __future__ import annotations

import gc
import json
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from sum_factory.shared.annotations.label_studio import of_label_studio
from sum_factory.shared.annotations.labelme import of_labelme
from sum_factory.shared.errors import InputError
from sum_factory.shared.store.local_files import read_whole
from sum_factory.shared.store.refusals import reason_of

Record = dict[str, Any]
_TRUTHS: dict[Any, bool] = {
    None: False,
    0: False,
    1: True,
    "": False,
    "0": False,
    "1": True,
    "false": False,
    "true": True,
    "no": False,
    "yes": True,
}
"""What tools write for the truth that COCO writes as 0 and 1."""
OUTLINES = ("polygon", "polyline")
"""Shapes of VIA that are outlines; what is closed is the mask."""


@dataclass(frozen=True)
class CocoFile:
    """The images, annotations and categories of a file, each a list of records."""

    images: list[Record]
    annotations: list[Record]
    categories: list[Record]


def read_annotations(path: Path) -> CocoFile:
    """Read COCO instances, VIA's regions, Label Studio's tasks, or a folder of files of one photo each, as SA-1B and
    labelme have them.

    Raises ``InputError`` if it is none of these.
    """
    collects = gc.isenabled()
    gc.disable()  # going through millions of new objects again and again takes longer than reading them
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    finally:
        if collects:
            gc.enable()


def read_label_studio(path: Path) -> CocoFile:
    """Read Label Studio's tasks. Raises ``InputError`` for anything else."""
    told = of_label_studio(read_json(path, "Label Studio's tasks as JSON"), str(path))
    if told is None:
        raise InputError(
            f"{path}: expected a list of Label Studio's tasks; export the project as JSON, not as JSON-MIN"
        )
    return CocoFile(told["images"], told["annotations"], told["categories"])


def read_json(path: Path, what: str = "COCO instances JSON") -> Any:
    """Return what a JSON file holds. Raises ``InputError``, which says that it should hold ``what``."""
    try:
        return json.loads(read_whole(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({reason_of(error)}); expected {what}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: expected {what} ({error})") from error


def _of_folder(folder: Path) -> CocoFile:
    """Read the files of a folder, each of one photo, which lies beside it.

    Raises ``InputError`` if there are none, or for one of another form.
    """
    images: list[Record] = []
    annotations: list[Record] = []
    for path in sorted(folder.rglob("*.json")):
        if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts):
            continue
        of_photo = one_photo(read_json(path))
        if of_photo is None:
            raise InputError(f"{path}: {EXPECTED_OF_ONE}; for a file of all photos, give the file and not its folder")
        image, found = of_photo
        number, name = len(images), name_of(image)
        below = path.parent.relative_to(folder).as_posix()
        images.append({**image, "id": number, "file_name": name and _beside(below, name)})
        annotations += [{**each, "image_id": number} for each in found]
    if not images:
        raise InputError(f"{folder}: no JSON files there; expected one per photo, as in SA-1B, or a file of COCO")
    labels = dict.fromkeys(each["category_id"] for each in annotations if isinstance(each.get("category_id"), str))
    return CocoFile(images, annotations, [{"id": label, "name": label} for label in labels])


EXPECTED_OF_ONE = (
    "expected the JSON of one photo: as in SA-1B, with a record as 'image' and a list of records as 'annotations', or "
    "labelme's"
)


def one_photo(content: Any) -> tuple[Record, list[Record]] | None:
    """Return the image and the annotations that the file of one photo has, None if it is none of SA-1B or labelme."""
    told = of_labelme(content) or content
    image, found = (told.get("image"), told.get("annotations")) if isinstance(told, dict) else (None, None)
    if type(image) is not dict or not isinstance(found, list) or not all(type(each) is dict for each in found):
        return None
    return image, found


def _beside(folder: str, name: str) -> str:
    """Return the path of a photo whose file of annotations lies in ``folder``, below which its set lies; its name alone
    if it lies elsewhere."""
    path = posixpath.normpath(posixpath.join(folder, name))
    return path.rpartition("/")[2] if path.startswith(("../", "/")) else path


def _of_file(path: Path) -> CocoFile:
    content = read_json(path)
    content = _of_via(content) or of_label_studio(content, str(path)) or content
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected COCO instances JSON, found a {type(content).__name__} and not keys and values"
        )
    lists = {}
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if records is None and key == "categories":
            records = []
        if not isinstance(records, list) or not all(type(record) is dict for record in records):
            known = ", ".join(map(str, list(content)[:6])) or "none"
            raise InputError(
                f"{path}: expected COCO instances JSON with a list of records as {key!r}; its keys are {known}"
            )
        lists[key] = records
    return CocoFile(lists["images"], lists["annotations"], lists["categories"])


def found_categories(file: CocoFile, wanted: Sequence[int | str], path: Path) -> set[Any]:
    """Return the ids of the categories that are named, by id, name or supercategory; names may hold ``*``.

    Raises ``InputError`` for one that the file does not have.
    """
    chosen: set[Any] = set()
    for want in wanted:
        found = [
            number
            for category in file.categories
            if (number := id_of(category.get("id"))) is not None
            and (number == want if isinstance(want, int) else _is_called(category, want))
        ]
        if not found:
            names = {name for category in file.categories for name in _names_of(category)}
            close = get_close_matches(str(want), names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(names)[:12]) or 'none'}"
            raise InputError(f"{path}: has no category {want!r}; {hint}")
        chosen.update(found)
    return chosen


def id_of(value: Any) -> int | str | None:
    """Return an id, None if it is none: 1, 1.0 and "1" are the same, as some tools write numbers as texts or floats."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdigit() and (value[0] != "0" or value == "0") else value
    return None


def is_crowd(annotation: Mapping[str, Any]) -> bool | None:
    """Return whether an annotation is of a crowd, as numbers, truth values, texts or null tell; None if they do not."""
    told = annotation.get("iscrowd")
    return _TRUTHS.get(told.strip().lower() if isinstance(told, str) else told) if _is_plain(told) else None


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, int | float | str)


def name_of(image: Mapping[str, Any]) -> str | None:
    """Return the path of an image's photo: ``file_name``, or what ``coco_url`` ends with; None if it has neither."""
    name, url = image.get("file_name"), image.get("coco_url")
    if isinstance(name, str) and name:
        return name
    if isinstance(url, str) and url.count("/") > 1:
        return "/".join(url.split("/")[-2:])
    return None


def with_slashes(name: str) -> str:
    """Return a path as written on Windows with the slashes of other systems, and without ``./`` before it."""
    return name.replace("\\", "/").removeprefix("./")


def _is_called(category: Mapping[str, Any], want: str) -> bool:
    return any(name == want or fnmatchcase(name, want) for name in _names_of(category))


def _names_of(category: Mapping[str, Any]) -> list[str]:
    return [str(name) for key in ("name", "supercategory") if (name := category.get(key)) not in (None, "")]


def _of_via(content: Any) -> Record | None:
    """Return VIA's regions in COCO's form, or None if these are none. A project holds them beside its settings."""
    if isinstance(content, dict) and isinstance(content.get("_via_img_metadata"), dict):
        content = content["_via_img_metadata"]
    records = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(records, list) or not records:
        return None
    if not all(isinstance(record, dict) and "filename" in record and "regions" in record for record in records):
        return None
    images = [{"id": number, "file_name": record["filename"]} for number, record in enumerate(records)]
    annotations = [
        {"id": f"{record['filename']}, region {place}", "image_id": number, "segmentation": _outline(region)}
        for number, record in enumerate(records)
        for place, region in _regions(record["regions"])
    ]
    return {"images": images, "annotations": annotations}


def _regions(regions: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(regions, dict):
        yield from regions.items()
    elif isinstance(regions, list):
        yield from enumerate(regions)


def _outline(region: Any) -> list[list[float]] | None:
    """Return the outline of a region as a polygon of COCO's, None if it has none."""
    shape = region.get("shape_attributes") if isinstance(region, dict) else None
    if not isinstance(shape, dict) or shape.get("name") not in OUTLINES:
        return None
    xs, ys = shape.get("all_points_x"), shape.get("all_points_y")
    if not isinstance(xs, list) or not isinstance(ys, list) or len(xs) != len(ys):
        return None
    return [[value for point in zip(xs, ys, strict=True) for value in point]]
