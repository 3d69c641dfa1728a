"""Where photos lie now that have moved since a shard set was made: old places, as recorded, and new ones."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.places import CHAIN, absolute, joined, links_of
from sum_factory.shared.store.refusals import is_remote

_BEFORE_ABSOLUTE = re.compile(r"(.+?)=(/.*|~.*|[a-z][a-z0-9+.-]*(?:://|::).*)", re.DOTALL)


@dataclass(frozen=True)
class Relocation:
    """Pairs of an old place and the new one of all that was recorded in or below it.

    An old place is a folder, a file, or the start of a URL, spelled as it is recorded: a path or URL lies below it if
    the rest begins with a slash. Of a chained URL the whole or the last link may. The longest old place counts.
    """

    pairs: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Relocation:
        """Return the relocation of ``pairs``, of which new places that are relative are so to the working directory.

        Raises ``SettingsError`` if a place is empty, or an old one has two new ones.
        """
        found: dict[tuple[str, str], tuple[str, str]] = {}
        for given, new in pairs:
            old = without_credentials(given)  # as it is recorded
            if not (old and new):
                raise SettingsError(f"photos_from: expected an old and a new place, found {old!r} and {new!r}")
            pair = old, absolute(new)
            if found.setdefault(_parts(old), pair)[1] != pair[1]:
                raise SettingsError(f"photos_from: {old} has two new places, {found[_parts(old)][1]} and {pair[1]}")
        return cls(tuple(found.values()))

    @classmethod
    def parse(cls, options: Iterable[str]) -> Relocation:
        """Return the relocation of texts ``OLD=NEW``.

        Each is cut at the first ``=`` that an absolute path or a URL follows, else at the first. Raises
        ``SettingsError``.
        """
        pairs = []
        for option in options:
            match = _BEFORE_ABSOLUTE.fullmatch(option)
            old, equals, new = (match[1], "=", match[2]) if match else option.partition("=")
            if not (old and equals and new):
                raise SettingsError(
                    f"--photos-from: expected OLD=NEW, such as /old/photos=/new/photos, found {option!r}"
                )
            pairs.append((old, new))
        return cls.of(pairs)

    def __bool__(self) -> bool:
        """Whether anything has moved."""
        return bool(self.pairs)

    def moved(self, recorded: str) -> str:
        """Return where a photo or a tar lies now, by where it is recorded: there itself, if no pair is of it."""
        *links, last = links_of(recorded)
        new = self._replaced(recorded)
        if new is None and links and (new := self._replaced(last)) is not None:
            new = CHAIN.join([*links, new])
        return recorded if new is None else new

    def olds_of(self, recorded: str) -> set[str]:
        """Return the old places that a recorded one lies in."""
        names = {recorded, links_of(recorded)[-1]}
        return {old for old, _ in self.pairs if any(_below(last, old) is not None for last in names)}

    def _replaced(self, recorded: str) -> str | None:
        fitting = [(old, new, rest) for old, new in self.pairs if (rest := _below(recorded, old)) is not None]
        if not fitting:
            return None
        _, new, rest = max(fitting, key=lambda found: len(_parts(found[0])[1]))
        return joined(new, rest) if rest else new


UNMOVED = Relocation()
"""Photos lie where they are recorded."""


def _below(recorded: str, old: str) -> str | None:
    """Return the name that a recorded place has in an old one, "" if it is that very place; None if it is elsewhere."""
    (root, path), (old_root, old_path) = _parts(recorded), _parts(old)
    if root != old_root:
        return None
    if path == old_path or not old_path:
        return path.removeprefix(old_path)
    return path.removeprefix(f"{old_path}/") if path.startswith(f"{old_path}/") else None


def _parts(place: str) -> tuple[str, str]:
    """Take a place apart into what it starts from (``/``, nothing, the protocol of a URL) and the path from there.

    Sets of earlier versions have relative paths and ``file://`` URLs recorded as they were typed.
    """
    if len(links_of(place)) > 1:
        return CHAIN, place.rstrip("/")
    protocol, separator, path = place.partition("://")
    if is_remote(place):
        return protocol + separator, path.strip("/")
    plain = posixpath.normpath(path if separator else place)
    root = "/" if plain.startswith("/") else ""
    return root, "" if plain == "." else plain.lstrip("/")
