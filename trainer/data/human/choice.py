"""Which photos of a set are taken: those that a text file lists, whose paths match, and the first so many of these."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from sum_factory.shared.errors import InputError
from sum_factory.shared.images import IMAGE_SUFFIXES
from sum_factory.shared.store.local_files import read_whole
from sum_factory.shared.store.refusals import reason_of


@dataclass(frozen=True)
class Choice:
    """By default all photos are taken."""

    list: Path | None = None
    match: str | None = None
    limit: int | None = None
    list_lines: tuple[int, int] | None = None

    def of(self, keys: Sequence[str], paths: Sequence[str]) -> Sequence[int]:
        """Return the places of the photos that are taken, in order; ``paths`` are those in their folder.

        Raises ``InputError`` if the list names others.
        """
        taken: Sequence[int] = range(len(keys))
        if self.match is not None:
            taken = [place for place in taken if fnmatchcase(paths[place], self.match)]
        if self.list is not None:
            listed = listed_places(self.list, keys, self.list_lines)
            taken = [place for place in taken if place in listed]
        if self.limit is not None:
            taken = taken[: self.limit]
        return taken


def listed_places(path: Path, keys: Sequence[str], between: tuple[int, int] | None = None) -> set[int]:
    """Return the places of the keys that a text file lists, one per line; ``between`` two of its lines, from 1 on.

    A line is a key, the name of its last part, or a path that ends with it, with or without suffix; a second path on
    the line and comments after ``#`` are passed over. A line may also name a folder, for all photos below it. Raises
    ``InputError``.
    """
    try:
        lines = read_whole(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = reason_of(error) if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path}: cannot be read ({reason}); expected a text file with a name a line") from error
    begin, last = between or (1, len(lines))
    if last > len(lines):
        raise InputError(f"{path}: has {len(lines)} lines; expected {last}, as list_lines says")
    known = _Known(keys)
    found: set[int] = set()
    missing: list[str] = []
    for number, line in enumerate(lines[begin - 1 : last], begin):
        text = unicodedata.normalize("NFC", line.strip()).replace("\\", "/")
        if not text or (text.startswith("#") and not known.places(text)):
            continue
        places = known.places(text) or known.places(_first_word(text, path, number))
        if len({keys[place] for place in places}) > 1:
            raise InputError(f"{path}: line {number}, {text!r}, is the name of {len(places)} photos; give their paths")
        places = places or known.below(text)
        found.update(places)
        if not places:
            missing.append(text)
    if missing:
        first = min(missing)
        raise InputError(f"{path}: {len(missing)} of its stems are not in the set, the first is {first!r}")
    return found


class _Known:
    """The keys of a set, found by what lists call them."""

    def __init__(self, keys: Sequence[str]) -> None:
        self.keys: dict[str, list[int]] = {}
        self.names: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            self.keys.setdefault(key, []).append(place)
            self.names.setdefault(key.rpartition("/")[2], []).append(place)

    def places(self, text: str) -> list[int]:
        """Return the places of the keys that a text may mean: of one key, if it is plain."""
        for name in dict.fromkeys((text, without_suffix(text))):
            parts = PurePosixPath(name.strip("/")).parts
            for first in range(len(parts)):
                places = self.keys.get("/".join(parts[first:]))
                if places is not None:
                    return places
            if len(parts) == 1 and parts[0] in self.names:
                return self.names[parts[0]]
        return []

    def below(self, folder: str) -> list[int]:
        """Return the places of the keys below a folder."""
        inside = f"{folder.strip('/')}/"
        return [place for key, places in self.keys.items() if key.startswith(inside) for place in places]


def _first_word(text: str, path: Path, number: int) -> str:
    """Return what stands on a line before a comment or a second path."""
    words = text.partition(" #")[0].split()
    if len(words) > 1 and words[1].lstrip("+-").isdigit():
        raise InputError(
            f"{path}: line {number}, {text!r}: expected a name alone, found one with a number; leave the numbers "
            "out, and the names that they rule out"
        )
    return words[0] if words else text


def without_suffix(path: str) -> str:
    """Return a path without the suffix of an image, if it has one."""
    folder, slash, name = path.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    return f"{folder}{slash}{stem}" if dot and stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else path


def require_some(keys: Iterable[str], where: str) -> None:
    """Raise ``InputError`` if a set has no samples."""
    if not any(True for _ in keys):
        raise InputError(f"{where}: no samples; check list, match, limit and categories")
