"""Which photo belongs to which masks: files below two folders, or of one, matched by their names."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.names import printable
from sum_factory.trainer.data.human.choice import Choice, require_some, without_suffix
from sum_factory.trainer.data.human.problems import Problems, Skip

HIDDEN_FOLDERS = ("__MACOSX",)
LOOSE = "*"
"""In a pattern of names: any text that is no part of the key."""


@dataclass(frozen=True)
class Pair:
    """A photo and its mask files; ``key`` is what both are called by."""

    key: str
    photo: Path
    masks: tuple[Path, ...]


@dataclass(frozen=True)
class Names:
    """How photos and masks are named; None is any image, whose key is its path without the suffix.

    In a pattern such as ``{}_im.jpg``, relative to its folder, ``{}`` stands for the key, or for a part of it if there
    are several, and ``*`` for any text. Neither is longer than one name of a path. Several masks may have one key only
    if the pattern of the masks has a ``*``.
    """

    photos: str | None = None
    masks: str | None = None

    def key_of(self, path: str, pattern: str | None) -> str | None:
        """Return the printable key of a path, in Unicode's composed form; None if the pattern is of other files."""
        text = printable(unicodedata.normalize("NFC", path))
        if pattern is None:
            return without_suffix(text)
        matched = _compiled(pattern).fullmatch(text)
        return None if matched is None else "/".join(matched.groups()) or without_suffix(text)


def pair_files(images: Path, masks: Path, names: Names, choice: Choice, skip: Skip) -> tuple[list[Pair], list[str]]:
    """Return the pairs of photos and masks, sorted by key, and what to say of them.

    Each photo that is taken has to have a mask and, if all are taken, each mask a photo. Raises ``InputError``.
    """
    names = _told_apart(images, masks, names)
    photos = _by_key(images, names, names.photos, nested=None if images == masks else masks)
    others = _by_key(masks, names, names.masks, nested=None if images == masks else images)
    _require_one_each(images, photos)
    if LOOSE not in (names.masks or ""):
        _require_one_each(masks, others)
    keys = sorted(photos)
    taken = [keys[place] for place in choice.of(keys, [photos[key][0] for key in keys])]
    problems = Problems(str(images), "files", skip)
    alone = [key for key in taken if key not in others]
    if alone:
        first = images / photos[alone[0]][0]
        problems.add(f"photos have no partner in {masks}", str(first), len(alone))
    if choice == Choice():
        alone = sorted(set(others) - set(photos))
        if alone:
            problems.add(f"masks have no partner in {images}", str(masks / others[alone[0]][0]), len(alone))
    said = problems.settle(len({*taken, *others}) if choice == Choice() else len(taken))
    pairs = [
        Pair(key, images / photos[key][0], tuple(masks / other for other in others[key]))
        for key in taken
        if key in others
    ]
    require_some((pair.key for pair in pairs), str(images))
    return pairs, said


def find_files(folder: Path, nested: Path | None = None) -> list[str]:
    """Return the paths of all images below a folder, relative to it and sorted, but those below ``nested``.

    Hidden files and folders are passed over, as are those that macOS adds to archives; links are followed, to no folder
    twice. Raises ``InputError`` if there is no such folder, or none in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder{_nearby(folder)}")
    left_out = None if nested is None or not nested.is_dir() else nested.resolve()
    found = sorted(_walk(folder, "", set(), left_out))
    if not found:
        raise InputError(f"{folder}: no images there; expected {', '.join(IMAGE_SUFFIXES)}")
    return found


def _walk(folder: Path, prefix: str, seen: set[Path], left_out: Path | None) -> Iterator[str]:
    real = folder.resolve()
    if real in seen or (prefix and real == left_out):
        return
    seen.add(real)
    folders = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name in HIDDEN_FOLDERS:
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and _may_be_read(entry):
                    yield prefix + entry.name
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror})") from error
    for name in folders:
        yield from _walk(folder / name, f"{prefix}{name}/", seen, left_out)


def _may_be_read(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link that leads nowhere, which reading then names; pipes and devices are not."""
    return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))


def _nearby(folder: Path) -> str:
    """Say where the same folder lies instead, if an archive brought one folder more, or is not unpacked at all."""
    there = next((parent for parent in folder.parents if parent.is_dir()), None)
    if there is None or there == Path("/"):
        return ""
    missing = folder.relative_to(there)
    candidates = [place / missing for place in sorted(there.iterdir()) if place.is_dir() and not place.is_symlink()]
    candidates += [place / Path(*missing.parts[1:]) for place in sorted(there.iterdir()) if len(missing.parts) > 1]
    found = next((place for place in candidates if place.is_dir()), None)
    if found is not None:
        return f"; there is {found}"
    inside = sorted(place.name for place in there.iterdir() if not place.name.startswith("."))
    return f"; in {there} there is {', '.join(inside[:8]) or 'nothing'}{', ...' if len(inside) > 8 else ''}"


def _told_apart(images: Path, masks: Path, names: Names) -> Names:
    """Return names that tell photos and masks of one folder apart: JPEGs are photos, PNGs are masks."""
    if names != Names() or images.resolve() != masks.resolve():
        return names
    suffixes = {os.path.splitext(path)[1].lower() for path in find_files(images)}
    if suffixes == {".jpg", ".png"} or suffixes == {".jpeg", ".png"}:
        (photo,) = suffixes - {".png"}
        return Names(f"**{photo}", "**.png")
    raise InputError(
        f"{images}: holds photos and masks in one; say which are which with photo_names and mask_names, such as "
        '"{}.jpg" and "{}_mask.png"'
    )


def _by_key(folder: Path, names: Names, pattern: str | None, nested: Path | None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in find_files(folder, nested):
        key = names.key_of(path, pattern)
        if key is not None:
            found.setdefault(key, []).append(path)
    if not found:
        raise InputError(f"{folder}: none of its images has a name like {pattern!r}")
    return found


def _require_one_each(folder: Path, found: dict[str, list[str]]) -> None:
    for paths in found.values():
        if len(paths) > 1:
            raise InputError(
                f"{folder / paths[1]}: has the stem of {paths[0]}; one of them has to go, or photo_names and "
                "mask_names have to tell them apart"
            )


def _compiled(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of names; ``**`` at its beginning is a key of any depth."""
    regex = ""
    for part in re.split(r"(^\*\*|\{\}|\*)", unicodedata.normalize("NFC", pattern)):
        match part:
            case "**":
                regex += "(.+)"
            case "{}":
                regex += "([^/]+)"
            case "*":
                regex += "[^/]*"
            case _:
                regex += re.escape(part)
    return re.compile(regex, re.IGNORECASE)
