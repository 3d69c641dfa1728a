"""List the photos of a tar by its headers; what lies between them is passed over."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from sum_factory.labelgen.keys import is_hidden, key_of
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.labelgen.store_listing import Told, ask, look_at, open_place
from sum_factory.shared.deadlines import PatientFile
from sum_factory.shared.errors import InputError
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile, is_told_in_full
from sum_factory.shared.places import is_local, store_of
from sum_factory.shared.store.refusals import explained
from sum_factory.shared.tar_headers import (
    FILE,
    HARD_LINK,
    OTHER,
    SPARSE,
    SYMBOLIC_LINK,
    Readable,
    Remainder,
    TarFault,
    TarMember,
    read_members,
)

TAR_BLOCK = 16_384
"""Bytes of a remote tar that are read for a header, and for what small members follow."""
LINKS_FOLLOWED = 40
"""Links that are followed from one member to the next, at most; Linux follows as many."""


class Tar(NamedTuple):
    """A tar whose members are to be listed: its place, and what its file system says of it if that is known."""

    url: str
    told: Told | None = None


def list_tar(
    tar: Tar, is_photo: Callable[[str], bool], stamp_of: Callable[[Told], str], passed_over: PassedOver
) -> Iterator[PhotoFile]:
    """Yield the photos of a tar, those that are links last, each at the place of what it is a link to.

    Raises ``InputError`` for what is not a whole, uncompressed tar.
    """
    told = look_at(tar.url) if tar.told is None or tar.told.get("size") is None else tar.told
    if told is None:
        raise InputError(f"{printable(tar.url)}: no such file; check --images")
    if told.get("size") is None:
        raise InputError(f"{printable(tar.url)}: its server does not say how large it is; fetch it, and give the copy")
    size, stamp = int(told["size"]), stamp_of(told)
    links: dict[str, TarMember] = {}
    with _read(tar.url) as file:
        for member in read_members(file, size):
            if isinstance(member, Remainder):
                passed_over.one("tars are followed by bytes that are no tar", f"{tar.url}, byte {member.at}")
            elif not is_photo(member.name):
                if member.kind != OTHER and not is_hidden(member.name):
                    passed_over.file(member.name)
            elif is_hidden(member.name):
                continue
            elif member.kind == FILE:
                _require_told(member)
                yield PhotoFile(key_of(member.name), tar.url, member.name, member.offset, member.size, stamp)
            elif member.kind in (HARD_LINK, SYMBOLIC_LINK):
                links[_plain(member.name)] = member
            elif member.kind == SPARSE:
                passed_over.one("are stored with holes in a tar", f"{tar.url}::{member.name}")
        if links:
            yield from _linked(tar.url, links, read_members(file, size), stamp, passed_over)


def _linked(
    url: str,
    links: Mapping[str, TarMember],
    members: Iterator[TarMember | Remainder],
    stamp: str,
    passed_over: PassedOver,
) -> Iterator[PhotoFile]:
    """Yield the photos that are links. What they name is looked for among ``members``, since nobody kept these."""
    named = {name: _named_by(name, links) for name in links}
    wanted = {name for name in named.values() if name is not None}
    found: dict[str, TarMember] = {}
    for member in members:
        if isinstance(member, TarMember) and member.kind == FILE and (name := _plain(member.name)) in wanted:
            found[name] = member
    for name, link in links.items():
        file = found.get(named[name] or "")
        if file is None:
            passed_over.one("are links in a tar to what is not in it", f"{url}::{link.name}")
        else:
            _require_told(file)
            yield PhotoFile(key_of(link.name), url, file.name, file.offset, file.size, stamp)


def _named_by(name: str, links: Mapping[str, TarMember]) -> str | None:
    """Return the name of the file that a link leads to at last, None if it leads round in circles."""
    for _ in range(LINKS_FOLLOWED):
        if name not in links:
            return name
        link = links[name]
        folder = posixpath.dirname(name) if link.kind == SYMBOLIC_LINK else ""
        name = _plain(posixpath.join(folder, link.link))
    return None


def _plain(name: str) -> str:
    return posixpath.normpath(name).lstrip("/")


def _require_told(member: TarMember) -> None:
    """Raise ``TarFault`` if a member's own header has another name: whoever reads it later could not know it again."""
    if is_told_in_full(member.name) and member.name_in_header != member.name:
        raise TarFault(
            f"two headers tell of {member.name_in_header!r} and of {member.name!r}, before byte {member.offset}"
        )


@contextmanager
def _read(url: str) -> Iterator[Readable]:
    """Open a tar to be read. Turns whatever is wrong with it into ``InputError``."""
    with explained(url, printable(url), InputError):
        filesystem, path = open_place(url)
        try:
            with _open(url, filesystem, path) as file:
                yield file if is_local(url) else PatientFile(file, store_of(url))
        except TarFault as error:
            raise InputError(
                f"{printable(url)}: not a whole, uncompressed tar ({error}); fetch it again, or pack it anew"
            ) from error


def _open(url: str, filesystem: Any, path: str) -> Any:
    if is_local(url):
        return filesystem.open(path, "rb")
    return ask(url, lambda: filesystem.open(path, "rb", block_size=TAR_BLOCK, cache_type="readahead"))
