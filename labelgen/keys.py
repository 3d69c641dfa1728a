"""The keys of photos: what names each in the shard set, and its files in tars."""

from __future__ import annotations

import re
from collections.abc import Callable

from sum_factory.shared.names import printable

Reserve = Callable[[str], object]
_LOOKS_NUMBERED = re.compile(r".*~\d+", re.DOTALL)


class Keys:
    """Gives each photo a key that no other has: its own, or with ``~2``, ``~3``, ... behind it.

    ``known``, if given, says of which keys others have been told of before. Only hashes are kept.
    """

    def __init__(self, known: Callable[[str], bool] = lambda key: False) -> None:
        self._known = known
        self._taken: set[int] = set()
        self._reserved: set[int] = set()
        self._last: dict[int, int] = {}

    def reserve(self, key: str) -> None:
        """Leave a key to the photo whose name gives it, which comes later."""
        self._reserved.add(hash(key))

    def is_free(self, key: str) -> bool:
        """Whether no photo has this key, by its own name or by a number."""
        return hash(key) not in self._taken and not self._known(key)

    def take(self, own: str) -> str:
        """Return the key of a photo whose name gives the key ``own``: that one, or one with a number if it is taken."""
        key, ordinal = own, self._last.get(hash(own), 1)
        while not self.is_free(key) or (ordinal > 1 and hash(key) in self._reserved):
            ordinal += 1
            key = f"{own}~{ordinal}"
        if ordinal > 1:
            self._last[hash(own)] = ordinal
        self._taken.add(hash(key))
        return key


def looks_numbered(own: str) -> bool:
    """Whether a key looks as if ``Keys`` had put a number to it."""
    return "~" in own and _LOOKS_NUMBERED.fullmatch(own) is not None


def key_of(name: str) -> str:
    """Return the key of a photo of this name, which may have folders before it: the name without its suffix."""
    folders, slash, last = safe_path(name).rpartition("/")
    stem, dot, _ = last.rpartition(".")
    return f"{folders}{slash}{stem if dot and stem else last}"


def safe_path(name: str) -> str:
    """Return a name, with folders before it, that is safe in a tar wherever that is unpacked.

    It is never absolute, has no ``.`` and ``..`` in it, and whatever is no plain character is escaped.
    """
    folders: list[str] = []
    for folder in name.split("/"):
        if folder == "..":
            del folders[-1:]
        elif folder not in ("", "."):
            folders.append(folder)
    return printable("/".join(folders))


def is_hidden(path: str) -> bool:
    """Whether a name in a path starts with a dot."""
    has_dot = path.startswith(".") or "/." in path
    return has_dot and any(name.startswith(".") and name not in (".", "..") for name in path.split("/"))
