"""Ask a store or a disk what is there, and wait no longer for it than is told.

The files below a folder come in the order of their names: page by page where the store gives pages.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from sum_factory.shared.deadlines import LIST_SECONDS, LOOK_SECONDS, within
from sum_factory.shared.errors import InputError
from sum_factory.shared.names import printable
from sum_factory.shared.places import is_local, opened, store_of
from sum_factory.shared.store.refusals import explained, reason_of

Told = Mapping[str, Any]
"""What a file system tells of a file: its ``type``, its ``size`` in bytes, and when it changed."""
Result = TypeVar("Result")
DIRECTORY, FILE, IRREGULAR = "directory", "file", "other"
LOOKED_AT_ONCE = 500
"""Files that a disk is asked about in one go."""
NOT_THERE = (404, 410)
"""What an HTTP server answers of a file that it does not have."""


def ask(place: str, question: Callable[[], Result], seconds: float = LOOK_SECONDS) -> Result:
    """Return a store's or disk's answer about a place. Raises ``InputError``, naming both, if there is none in time."""
    with explained(place, printable(place), InputError):
        return within(seconds, store_of(place), question)


def open_place(place: str) -> tuple[Any, str]:
    """Return fsspec's file system of a place, and what that calls it. Raises ``InputError`` as ``ask`` does."""
    return opened(place) if is_local(place) else ask(place, lambda: opened(place))


def look_at(place: str) -> Told | None:
    """Return what there is at a place, or None if there is nothing.

    Raises ``InputError``, naming the place, if its store or disk does not say: that is not to be taken for nothing.
    """
    filesystem, path = open_place(place)
    return ask(place, lambda: told_by_disk(path) if is_local(place) else _told_by_store(filesystem, path))


def look_at_files(paths: Sequence[str]) -> Iterator[Told | None]:
    """Yield what a disk tells of each path, or None if there is nothing. It is asked about many at once, as asking may
    take a thread that is given up.

    Raises ``InputError``, naming the path.
    """
    at = ""

    def look(some: Sequence[str]) -> list[Told | None]:
        nonlocal at
        found: list[Told | None] = []
        for at in some:
            found.append(told_by_disk(at))
        return found

    for start in range(0, len(paths), LOOKED_AT_ONCE):
        try:
            some = paths[start : start + LOOKED_AT_ONCE]
            yield from within(LOOK_SECONDS, lambda: store_of(at), partial(look, some))
        except OSError as error:
            raise InputError(f"{printable(at)}: cannot be looked at ({reason_of(error)}); check permissions") from error


def told_by_disk(path: str) -> dict[str, Any] | None:
    """Return type, size and time of a file, None if there is none.

    Of a link, type and size are those of what it points to; one whose target is gone is a file of 0 bytes. What is
    neither a file nor a folder, such as a pipe, a device or a link that leads round in circles, is ``IRREGULAR``.
    """
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    size, mode = found.st_size, found.st_mode
    if stat.S_ISLNK(mode):
        try:
            found = os.stat(path)
            size, mode = found.st_size, found.st_mode
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            size, mode = 0, stat.S_IFREG
        except OSError:
            size, mode = 0, stat.S_IFLNK
    kind = DIRECTORY if stat.S_ISDIR(mode) else FILE if stat.S_ISREG(mode) else IRREGULAR
    return {"type": kind, "size": size, "mtime": found.st_mtime}


def _told_by_store(filesystem: Any, path: str) -> Told | None:
    """Return what a store says of a file. A library may say of a store that fails that the file is not there."""
    try:
        told: Told = filesystem.info(path)
    except FileNotFoundError as error:
        cause = error.__cause__
        if cause is None or isinstance(cause, FileNotFoundError) or getattr(cause, "status", None) in NOT_THERE:
            return None
        if isinstance(cause, OSError) or hasattr(cause, "status") or "Disconnected" in type(cause).__name__:
            raise cause from None
        return None
    return told


def listed_by_store(place: str, filesystem: Any, root: str) -> Iterator[tuple[str, Told]]:
    """Yield the files below ``root``, by their names relative to it, each with what the store tells of it.

    S3 is asked for a thousand at a time, already in order, and no more than these are held. Other stores give all at
    once, which takes about a kilobyte of memory a file while they are sorted. Raises ``InputError`` if there is no
    answer about ``place`` in time.
    """
    if hasattr(filesystem, "call_s3") and hasattr(filesystem, "split_path"):
        yield from _pages_of_s3(place, filesystem, root)
        return
    filesystem.invalidate_cache()
    found = ask(place, lambda: filesystem.find(root, detail=True), LIST_SECONDS)
    filesystem.invalidate_cache()  # a listing that is remembered would be held as long as the process lives
    for file in sorted(found):
        yield file.removeprefix(root).lstrip("/"), found.pop(file)


def _pages_of_s3(place: str, filesystem: Any, root: str) -> Iterator[tuple[str, Told]]:
    bucket, folder, _ = filesystem.split_path(root)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    more: dict[str, str] = {}
    while True:
        page = ask(place, lambda: _page_of_s3(filesystem, bucket, prefix, more))  # noqa: B023
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix(prefix)
            if name and not name.endswith("/"):  # what stands for a folder
                yield name, {"size": entry["Size"], "ETag": entry["ETag"], "LastModified": entry["LastModified"]}
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}


def _page_of_s3(filesystem: Any, bucket: str, prefix: str, more: Mapping[str, str]) -> Any:
    return filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more, **filesystem.req_kw)
