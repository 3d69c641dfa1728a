"""Paths and URLs, as text: made absolute, joined, taken apart. Nothing is read.

A URL may be a chain of fsspec's, ``zip://a.jpg::/data/photos.zip`` or ``simplecache::s3://bucket/a.jpg``: what is named
lies in its first link that is more than a protocol, and its last link is the file or store that all of it lies in.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sum_factory.shared.store.refusals import is_remote

CHAIN = "::"
AROUND_OTHERS = (
    "blockcache",
    "cached",
    "dir",
    "filecache",
    "libarchive",
    "reference",
    "simplecache",
    "tar",
    "zip",
)
"""Protocols of fsspec whose files lie in another place, so that they begin a chain."""
ZIPS_OPEN = 8
"""Zips that are held open at once."""
NEVER_READ_FROM_SETS = ("reference", "lindi", "dask", "generic", "jupyter", "jlab")
"""Protocols whose files tell what else to read, to run, or to ask of other machines: a shard set names none such."""
LONGEST_PLACE = 1 << 13
"""Characters of a path or URL."""


def absolute(place: str) -> str:
    """Return a path or URL that means the same in every working directory.

    A local path, also as a ``file://`` URL or as the last link of a chain, becomes a plain absolute one without ``.``
    and ``..``, in which symbolic links stay as they are: ``..`` stays too where it leads out of a linked folder. Any
    other URL is returned as it is.
    """
    *links, last = links_of(place)
    if last.startswith(("http://", "https://")):
        last = last.partition("#")[0]  # which the server does not get, and names would be put behind
    return CHAIN.join([*links, last if is_remote(last) else _absolute_path(last)])


def require_recorded(place: str) -> None:
    """Raise ``ValueError`` for a path or URL that no shard set records: it is too long, or of a kind never read."""
    if not place or len(place) > LONGEST_PLACE or "\0" in place:
        raise ValueError(f"expected a path or URL, found {place[:60]!a}")
    for link in links_of(place) if CHAIN in place or "://" in place else ():
        if (protocol := link.partition("://")[0]) in NEVER_READ_FROM_SETS:
            raise ValueError(f"{protocol}:// URLs are never read from a shard set")


def links_of(place: str) -> list[str]:
    """Return the links of a chained URL, or the place alone if it is no chain: names, too, may have ``::`` in them."""
    first, separator, _ = place.partition(CHAIN)
    is_chain = separator and first.partition("://")[0] in AROUND_OTHERS
    return place.split(CHAIN) if is_chain else [place]


def is_local(place: str) -> bool:
    """Return whether a place is a path, or the ``file://`` URL of one, and no chain."""
    return len(links_of(place)) == 1 and not is_remote(place)


def opened(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a place, and what that calls the place.

    fsspec itself takes any ``::`` for the link of a chain. Raises what fsspec does for a place that it cannot open.
    """
    if is_local(place):
        return LocalFileSystem(), str(LocalFileSystem._strip_protocol(place))
    links = links_of(place)
    if len(links) == 2 and links[0].startswith("zip://"):
        return _opened_zip(links[1], _stamp_of(links[1])), links[0].removeprefix("zip://").lstrip("/")
    if CHAIN in place and len(links) == 1:
        kind = fsspec.get_filesystem_class(place.partition("://")[0])
        return kind(**kind._get_kwargs_from_urls(place)), str(kind._strip_protocol(place))
    filesystem, path = fsspec.core.url_to_fs(place)
    return filesystem, str(path)


@lru_cache(ZIPS_OPEN)
def _opened_zip(place: str, stamp: object) -> Any:
    """Open a zip, whose table of contents is read once for all its photos."""
    return fsspec.core.url_to_fs(f"zip://{CHAIN}{place}")[0]


def _stamp_of(place: str) -> object:
    """Return what tells a file on a disk from another that takes its place."""
    if is_remote(place):
        return None
    found = os.stat(str(LocalFileSystem._strip_protocol(place)))
    return found.st_mtime_ns, found.st_size, found.st_ino


def store_of(place: str) -> str:
    """Return what to call the store or disk that a place lies in: ``s3://bucket`` of ``s3://bucket/a/b.jpg``."""
    last = links_of(place)[-1]
    protocol, separator, path = last.partition("://")
    if not is_remote(last):
        return f"the disk of {last}"
    return f"the store {protocol}{separator}{path.partition('/')[0].rpartition('@')[2]}"


def joined(folder: str, name: str) -> str:
    """Return the place of what is called ``name``, which may have slashes, in a folder."""
    before, place, after = _around_names(folder)
    place, query = _apart(place)
    between = "" if place.endswith("/") else "/"
    return CHAIN.join([*before, f"{place}{between}{name}{'' if '?' in name else query}", *after])


def parent_of(place: str) -> str:
    """Return the folder that a place lies in; "" is that of ``/a``, and of the relative path ``a``."""
    before, named, after = _around_names(place)
    named, query = _apart(named)
    protocol, separator, path = named.rpartition("://")
    return CHAIN.join([*before, f"{protocol}{separator}{path.rpartition('/')[0]}{query}", *after])


def without_query(path: str) -> str:
    """Return a path, or the URL of a web server without what is asked of it, in which names have their end."""
    return _apart(path)[0]


def _apart(link: str) -> tuple[str, str]:
    """Take the URL of a web server apart into its path and what is asked of it, such as ``?token=...``."""
    end = link.find("?") if link.startswith(("http://", "https://")) else -1
    return (link, "") if end < 0 else (link[:end], link[end:])


def name_in(place: str) -> str:
    """Return the last name in a place, without what a URL asks of a web server."""
    named = _around_names(place)[1]
    if named.startswith(("http://", "https://")):
        named = named.partition("?")[0].partition("#")[0]
    return named.rpartition("://")[2].rstrip("/").rpartition("/")[2]


def renamed(place: str, own: str, other: str) -> str:
    """Return the place of what its file system calls ``other``, as it calls this place ``own``.

    What the file system leaves out of names (protocol, host, the rest of a chain) is that of this place.
    """
    before, named, after = _around_names(place)
    return CHAIN.join([*before, f"{named.rstrip('/').removesuffix(own)}{other}", *after])


def _around_names(place: str) -> tuple[list[str], str, list[str]]:
    """Return the links before the one in which names are, that link, and those after it."""
    links = links_of(place)
    number = next((k for k, link in enumerate(links) if "://" in link), len(links) - 1)
    return links[:number], links[number], links[number + 1 :]


def _absolute_path(path: str) -> str:
    # which is what will be opened: "~" is the home folder, and "~x" a name where there is no user x
    full = os.path.join(os.getcwd(), str(LocalFileSystem._strip_protocol(path)))
    plain = os.path.normpath(full)
    if ".." in full.split("/") and os.path.realpath(plain) != os.path.realpath(full):
        return full
    return plain
