"""Which set of human masks a folder may hold: a guess by names alone, which opening the set then checks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sum_factory.shared.annotations.coco_file import name_of, one_photo, read_annotations, read_json, with_slashes
from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human.choice import without_suffix
from sum_factory.trainer.data.human.pairing import Names, find_files
from sum_factory.trainer.data.sets import CocoSettings, FolderPairsSettings, SetSettings

PHOTO_FOLDERS = ("images", "image", "imgs", "img", "im", "photos", "jpegimages")
JPEGS = (".jpg", ".jpeg")
NAMES = (
    ("{}.jpg", "{}.png"),
    ("{}_im.*", "{}_gt.*"),
    ("{}_sat.*", "{}_mask.*"),
    ("{}.jpg", "{}_mask.*"),
    ("{}.jpg", "{}_gt.*"),
    ("{}.png", "{}_mask.png"),
    ("{}.png", "{}_gt.png"),
    ("{}/{}.jpg", "{}/{}.png"),
)
"""How photos and masks of one folder are named in sets that are about."""
LEAST_PAIRED = 0.5
"""Share of the files of a guess that have a partner, at least."""


def guess_sets(folder: Path) -> list[SetSettings]:
    """Return the sets that a folder seems to hold. Raises ``InputError`` if it seems to hold none."""
    found: list[SetSettings] = list(_coco_sets(folder))
    if not found:
        found = list(_pairs_in_two_folders(folder)) or list(_pairs_in_one_folder(folder))
    if not found:
        raise InputError(
            f"{folder}: no photos with masks found; expected folders of photos and of masks with equal names, both "
            "in one folder as x.jpg and x.png, or a JSON file of COCO instances. Describe another layout in a recipe"
        )
    return found


def _coco_sets(folder: Path) -> Iterator[SetSettings]:
    first = next((path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")), None)
    if first is not None and _is_of_one_photo(first):
        yield CocoSettings("coco", folder, folder, "unspecified", name=folder.name)
        return
    for path in sorted([*folder.glob("*.json"), *folder.glob("annotations/*.json")]):
        try:
            names = [with_slashes(name_of(image) or "") for image in read_annotations(path).images[:20]]
        except InputError:  # some other JSON
            continue
        for place in (folder, *_folders_below(folder)):
            if any(name and not Path(name).is_absolute() and (place / name).is_file() for name in names):
                yield CocoSettings("coco", path, place, "unspecified", name=path.stem)
                break


def _is_of_one_photo(path: Path) -> bool:
    """Whether a file is that of one photo, as in SA-1B or as labelme's: then all are."""
    try:
        return one_photo(read_json(path)) is not None
    except InputError:
        return False


def _folders_below(folder: Path) -> list[Path]:
    below = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    return below + [inner for path in below for inner in sorted(path.iterdir()) if inner.is_dir()]


def _images_in(folder: Path) -> list[str]:
    try:
        return find_files(folder)
    except InputError:  # none
        return []


def _pairs_in_two_folders(folder: Path) -> Iterator[SetSettings]:
    """Yield each folder of photos with each of masks that has mostly the same names."""
    holding = {path: found for path in _folders_below(folder) if (found := _images_in(path))}
    stems = {path: {without_suffix(name) for name in names} for path, names in holding.items()}
    for photos in holding:
        if not _are_photos(photos, holding[photos]):
            continue
        for masks in holding:
            nested = masks == photos or masks in photos.parents or photos in masks.parents
            if nested or _are_photos(masks, holding[masks]):
                continue
            if len(stems[photos] & stems[masks]) >= LEAST_PAIRED * len(stems[photos] | stems[masks]):
                name = f"{photos.relative_to(folder)} + {masks.relative_to(folder)}"
                yield FolderPairsSettings("folder-pairs", photos, masks, "unspecified", name=name)


def _are_photos(folder: Path, names: list[str]) -> bool:
    return folder.name.lower() in PHOTO_FOLDERS or sum(name.lower().endswith(JPEGS) for name in names) > len(names) / 2


def _pairs_in_one_folder(folder: Path) -> Iterator[SetSettings]:
    """Yield the naming that pairs most of the files, if it pairs the better part of them."""
    names = _images_in(folder)
    counts = []
    for photo_names, mask_names in NAMES:
        naming = Names(photo_names, mask_names)
        photos, masks = (
            {key for name in names if (key := naming.key_of(name, pattern)) is not None}
            for pattern in (photo_names, mask_names)
        )
        counts.append((len(photos & masks), photo_names, mask_names))
    pairs, photo_names, mask_names = max(counts, key=lambda each: each[0])
    if pairs and 2 * pairs >= LEAST_PAIRED * len(names):
        yield FolderPairsSettings(
            "folder-pairs",
            folder,
            folder,
            "unspecified",
            name=folder.name,
            photo_names=photo_names,
            mask_names=mask_names,
        )
