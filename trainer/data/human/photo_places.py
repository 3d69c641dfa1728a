"""Where the photos lie that a file of annotations lists: below a folder, also where an archive has moved them."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath

from sum_factory.shared.annotations.coco_file import with_slashes
from sum_factory.shared.errors import InputError
from sum_factory.shared.names import printable
from sum_factory.trainer.data.human.pairing import find_files


class PhotoPlaces:
    """The photos below a folder, found by the names that a file lists."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.moved = 0
        """How many were found in another folder than their name says."""
        self._names: dict[str, set[str]] = {}
        if not folder.is_dir():
            find_files(folder)  # which says what is there instead

    def find(self, name: str) -> Path | None:
        """Return the file of a name, None if there is none; a link out of the folder counts as in it.

        It is looked for where the name says, then anywhere below the folder: where the only path lies that has all
        folders of the name, in their order, or that has no others. Archives are unpacked a folder deeper, or less
        deep. A name may be escaped, as in ``shared.names``, or have backslashes for slashes. Raises ``InputError`` for
        one that leads out of the folder.
        """
        if "\\" in name and not self._is_there(PurePosixPath(name)):
            if name in self._escaped:
                return self.folder / self._escaped[name]
            name = with_slashes(name)
        path = PurePosixPath(name)
        if path.is_absolute() and path.is_relative_to(self.folder):
            path = path.relative_to(self.folder)
        if path.is_absolute() or ".." in path.parts:
            raise InputError(f"{name!r} leads out of {self.folder}; expected names relative to it")
        if self._is_there(path):
            return self.folder / path
        found = self._anywhere.get(unicodedata.normalize("NFC", path.name), ())
        best = _only_below_the_same_folders(found, path)
        if best is None:
            return None
        self.moved += unicodedata.normalize("NFC", best) != unicodedata.normalize("NFC", str(path))
        return self.folder / best

    def _is_there(self, path: PurePosixPath) -> bool:
        return path.name in self._in_folder(str(path.parent))

    def _in_folder(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                with os.scandir(self.folder / folder) as entries:
                    self._names[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):  # of a name that no system has
                self._names[folder] = set()
        return self._names[folder]

    @cached_property
    def _escaped(self) -> dict[str, str]:
        """The photos below the folder whose paths are escaped where they are written, by what is written."""
        paths = (path for found in self._anywhere.values() for path in found)
        written = [(text, path) for path in paths if (text := printable(path)) != path]
        counts = Counter(text for text, _ in written)
        return {text: path for text, path in written if counts[text] == 1}

    @cached_property
    def _anywhere(self) -> dict[str, list[str]]:
        """The photos below the folder by the last parts of their paths."""
        try:
            paths = find_files(self.folder)
        except InputError:  # none at all
            paths = []
        found: dict[str, list[str]] = {}
        for path in paths:
            found.setdefault(unicodedata.normalize("NFC", path.rpartition("/")[2]), []).append(path)
        return found


def _only_below_the_same_folders(paths: Sequence[str], wanted: PurePosixPath) -> str | None:
    """Return the only path whose parts are all in what is wanted, in this order, or the other way round."""
    parts = _parts(str(wanted))
    found = [path for path in paths if _is_in(_parts(path), parts) or _is_in(parts, _parts(path))]
    return found[0] if len(found) == 1 else None


def _is_in(parts: Sequence[str], others: Sequence[str]) -> bool:
    """Whether the parts are among others, in the same order."""
    left = iter(others)
    return all(part in left for part in parts)


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(unicodedata.normalize("NFC", path)).parts
