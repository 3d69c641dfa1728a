"""Walk a folder of a local disk, and the folders that are linked into it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

from sum_factory.labelgen.keys import Reserve, key_of, looks_numbered
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.store_listing import IRREGULAR, Told, look_at_files
from sum_factory.shared.deadlines import LIST_SECONDS, within
from sum_factory.shared.errors import InputError
from sum_factory.shared.places import store_of
from sum_factory.shared.store.refusals import reason_of

IRREGULAR_FILES = "are no regular files but pipes, devices, sockets or links in circles"

Walk = Iterator[Any]
"""Yields files and further walks."""


class DiskWalk:
    """Yields the files below a folder that ``is_wanted`` by their names, in the order of their names.

    A linked folder is entered as if it were there, unless it is listed anyway, or leads back to where the walk is.
    """

    def __init__(self, root: str, is_wanted: Callable[[str], bool], reserve: Reserve, passed_over: PassedOver) -> None:
        self.root = root or "/"
        self.is_wanted, self.reserve, self.passed_over = is_wanted, reserve, passed_over
        self._entered = [os.path.realpath(self.root)]

    def files(self) -> Iterator[tuple[str, Told]]:
        """Yield each file by its name relative to the root, with what the disk tells of it.

        Raises ``InputError``, naming it, for a folder that cannot be read.
        """
        walks = [self._walk(self.root, "", (self._entered[0],))]
        while walks:  # a folder may lie deeper than calls may be nested
            found = next(walks[-1], None)
            if found is None:
                walks.pop()
            elif isinstance(found, tuple):
                yield found
            else:
                walks.append(found)

    def _walk(self, folder: str, relative: str, within: tuple[str, ...]) -> Iterator[tuple[str, Told] | Walk]:
        """Walk a folder, yield its files, and the walk of each folder in it where that is in turn.

        ``within`` are the real places of the root, and of the links that were followed from there.
        """
        names = self._names(folder)
        for name in names:
            if self.is_wanted(name) and looks_numbered(own := key_of(f"{relative}{name}")):
                self.reserve(own)
        told_of = look_at_files([f"{folder.rstrip('/')}/{name}" for name in names if self._is_file(name)])
        for name in names:
            path = f"{folder.rstrip('/')}/{name}"
            if name.endswith("/"):
                inner = self._around(path[:-1], within)
                if inner is not None:
                    yield self._walk(path[:-1], f"{relative}{name}", inner)
            elif not self.is_wanted(name):
                self.passed_over.file(name)
            elif (told := next(told_of)) is not None:  # else it was taken away since the folder was read
                if told["type"] == IRREGULAR:
                    self.passed_over.one(IRREGULAR_FILES, path)
                else:
                    yield f"{relative}{name}", told

    def _is_file(self, name: str) -> bool:
        return not name.endswith("/") and self.is_wanted(name)

    def _names(self, folder: str) -> list[str]:
        """Return the names in a folder, in their order, those of folders with a slash; hidden ones are left out."""

        def read() -> list[str]:
            with os.scandir(folder) as entries:
                return sorted(
                    f"{entry.name}/" if _is_folder(entry) else entry.name
                    for entry in entries
                    if not entry.name.startswith(".")
                )

        try:
            return within(LIST_SECONDS, store_of(folder), read)
        except OSError as error:
            raise InputError(f"{folder}: cannot be read ({reason_of(error)}); check its permissions") from error

    def _around(self, path: str, within: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return what the folder at a path lies within, as ``_walk`` takes it; None if it is not to be entered."""
        if not os.path.islink(path):
            return within
        real = os.path.realpath(path)
        if any(_is_listed_below(real, entered) for entered in self._entered):
            self.passed_over.one("are links to folders that are listed anyway", path)
            return None
        if any(_is_listed_below(passed, real) for passed in within):
            self.passed_over.one("are links to folders that they lie in", path)
            return None
        self._entered.append(real)
        return (*within, real)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_listed_below(path: str, folder: str) -> bool:
    """Whether a walk of a folder comes to this path: hidden folders are not entered."""
    folder = folder.rstrip("/")
    return path == folder or (path.startswith(f"{folder}/") and "/." not in path[len(folder) :])
