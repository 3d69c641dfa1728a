"""Where a public set lies below a folder, and in which of its layouts."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human.pairing import HIDDEN_FOLDERS
from sum_factory.trainer.data.public.declarations import PublicSet, members_of

PATHS = ("images", "masks", "labels", "annotations", "list", "segments")
"""Keys of a layout that are paths."""
DEEPEST = 2
"""Folders below the root in which a set is looked for."""
SHOWN = 4


def locate(public: PublicSet, root: Path) -> dict[str, Any]:
    """Return the layout in which a set lies below ``root``, with its paths in full and without ``needs``.

    It is looked for at the root, then in the folders below it. Raises ``InputError`` if it is not there, or in several
    folders of one depth.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected one that holds {public.title}")
    for bases in _levels(public, root):
        found = {base.resolve(): (layout, base) for layout, base in _fitting(public, bases)}
        if len(found) > 1:
            places = " and ".join(str(base) for _, base in found.values())
            raise InputError(f"{root}: {public.title} is there several times, in {places}; give one of these")
        for layout, base in found.values():
            return _in_full(layout, base)
    raise InputError(f"{root}: {public.title} is not there; {_missing(public, root)}")


def _fitting(public: PublicSet, bases: list[Path]) -> Iterator[tuple[Mapping[str, Any], Path]]:
    for base in bases:
        for layout in public.layouts:
            if all((base / path).exists() for path in _paths(layout)):
                yield layout, base
                break


def _levels(public: PublicSet, root: Path) -> Iterator[list[Path]]:
    """Yield the folders in which the paths of the layouts may begin, those of a level together, the nearest first."""
    if not public.folder:
        yield [root]
        whole = root.absolute()
        yield [whole.parents[len(tail) - 1] for tail in _tails(public) if whole.parts[-len(tail) :] == tail]
    level = [root]
    for depth in range(DEEPEST + 1):
        level = [inner for folder in level for inner in _folders_in(folder)]
        if not public.folder:
            if depth < DEEPEST:
                yield level
            continue
        yield [folder for folder in level if folder.name.casefold() == public.folder.casefold()]
        if depth == 0:
            yield [root]


def _tails(public: PublicSet) -> set[tuple[str, ...]]:
    """Return the beginnings of the paths of all layouts: a root may end with one of these."""
    parts = {PurePosixPath(path).parts for layout in public.layouts for path in _paths(layout)}
    return {each[:length] for each in parts for length in range(1, len(each)) if each[0] != ".."}


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            found = [entry.name for entry in entries if entry.is_dir()]
    except OSError:  # what may not be read holds nothing
        return []
    return [folder / name for name in sorted(found) if not name.startswith(".") and name not in HIDDEN_FOLDERS]


def _paths(layout: Mapping[str, Any]) -> list[str]:
    """Return the paths that have to be there for a layout."""
    paths = [member[key] for member in (*members_of(layout), layout) for key in PATHS if key in member]
    return [path for path in dict.fromkeys([*paths, *layout.get("needs", ())]) if path != "."]


def _in_full(layout: Mapping[str, Any], base: Path) -> dict[str, Any]:
    full = copy.deepcopy(dict(layout))
    full.pop("needs", None)
    for member in (*full.get("sets", ()), full):
        member.update({key: _innermost(base / member[key]) for key in PATHS if key in member})
    return full


def _innermost(path: Path) -> Path:
    """Return a folder, or the one in it of the same name, as archives within archives are unpacked."""
    while (path / path.name).is_dir():
        path = path / path.name
    return path


def _missing(public: PublicSet, root: Path) -> str:
    """Say what was looked for, and what is there instead."""
    help_ = f"`trainer data fetch-help {public.name}` says what to unpack where"
    there = {
        (base, tuple(paths)): [path for path in paths if (base / path).exists()]
        for bases in _levels(public, root)
        for base in bases
        for paths in map(_paths, public.layouts)
    }
    (base, paths), found = max(
        there.items(), key=lambda each: len(each[1]) / max(1, len(each[0][1])), default=((root, ()), [])
    )
    if found:
        return f"{base} has {_some(found)}, but not {_some([path for path in paths if path not in found])}; {help_}"
    expected = " or ".join(dict.fromkeys(_some(_paths(layout)) for layout in public.layouts))
    where = f"{public.folder}/" if public.folder else "it"
    inside = _some([path.name for path in _folders_in(root)]) or "no folder"
    return f"expected {expected} in {where} or up to {DEEPEST} folders below; there is {inside}; {help_}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
