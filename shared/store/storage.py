"""Files of a folder at any fsspec URL, written so that a reader sees all of a file or none of it."""

from __future__ import annotations

import hashlib
import inspect
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.errors import ShardError, StorageError
from sum_factory.shared.store.cache import Cache, Version
from sum_factory.shared.store.local_files import TEMPORARY_PREFIX as TEMPORARY_PREFIX
from sum_factory.shared.store.local_files import read_regular, require_no_links, require_replaceable
from sum_factory.shared.store.locks import writer_of
from sum_factory.shared.store.patience import put
from sum_factory.shared.store.refusals import is_refusal, reason_of, remedy_of

LOCK = f"{TEMPORARY_PREFIX}lock"
"""What stands for a folder that is locked; a run that was killed leaves it as a temporary file."""
CREATE_ATTEMPTS = 5
"""Attempts at a conditional write: a store may refuse one because another is going on."""


@dataclass(frozen=True)
class Storage:
    """A folder at ``address``: a local path, or any URL that fsspec knows, such as ``s3://bucket/folder``.

    Files of a remote folder are read through ``cache``, if there is one; of a local folder they never are.
    """

    address: str
    cache: Cache | None = field(default=None, compare=False)

    @property
    def url(self) -> str:
        """What the folder is called where that is told or recorded: its address without credentials."""
        return without_credentials(self.address)

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self.address)
        except ImportError as error:
            raise StorageError(f"{self.url}: {error}; {remedy_of(error, self.url)}") from error
        except ValueError as error:
            raise StorageError(f"{self.url}: {error}") from error
        return filesystem, root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        return isinstance(self._filesystem[0], LocalFileSystem)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep all others out who lock this folder: threads, and processes of this machine.

        A folder that is not there, that cannot be written to, or that is not on a local disk is not locked.
        """
        folder = Path(self._full(""))
        with ExitStack() as stack:
            if self.is_local and folder.is_dir():
                with suppress(OSError):  # where nothing can be written nobody writes over anybody
                    stack.enter_context(writer_of(folder / LOCK))
            yield

    def make(self) -> None:
        """Make the folder, if it is on a local disk: elsewhere there are none. Raises ``StorageError`` if refused."""
        if self.is_local:
            with self._explained("", "write"):
                os.makedirs(self._full(""), exist_ok=True)

    def path(self, name: str) -> str:
        """Return what to call ``name`` in a message: the folder's URL and the name."""
        return f"{self.url.rstrip('/')}/{name}"

    def _full(self, name: str) -> str:
        return f"{self._filesystem[1]}/{name}" if name else str(self._filesystem[1])

    def exists(self, name: str) -> bool:
        """Return whether a file or folder is there."""
        with self._explained(name, "look at"):
            return bool(self._fresh(name).exists(self._full(name)))

    def size(self, name: str) -> int:
        """Return a file's size in bytes. Raises ``FileNotFoundError``."""
        with self._explained(name, "look at"):
            return int(self._fresh(name).size(self._full(name)))

    def _fresh(self, name: str) -> Any:
        """Return the file system, without the listings it may remember of the folders above ``name``."""
        self._filesystem[0].invalidate_cache(self._full(name))
        return self._filesystem[0]

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files in ``folder``, without temporary ones; none if there is no folder."""
        filesystem, _ = self._filesystem
        with self._explained(folder, "list"):
            try:
                entries = filesystem.ls(self._full(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return []
        names = (PurePosixPath(str(entry["name"])).name for entry in entries if entry["type"] != "directory")
        return sorted(name for name in names if not name.startswith(TEMPORARY_PREFIX))

    def times(self, folder: str) -> dict[str, datetime]:
        """Return when each file in ``folder`` was last written, by name, without temporary ones.

        By one listing, so files of which it does not tell this are left out.
        """
        filesystem, _ = self._filesystem
        with self._explained(folder, "list"):
            try:
                entries = filesystem.ls(self._full(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return {}
        named = {PurePosixPath(str(entry["name"])).name: _time_of(entry) for entry in entries}
        return {name: time for name, time in named.items() if time and not name.startswith(TEMPORARY_PREFIX)}

    def files(self) -> dict[str, int]:
        """Return the names of all files, in this folder and those below, temporary ones too, with their sizes."""
        filesystem, root = self._filesystem
        with self._explained("", "list"):
            filesystem.invalidate_cache()
            found = filesystem.find(root, detail=True)
        return {path.removeprefix(f"{root}/"): int(info["size"] or 0) for path, info in sorted(found.items())}

    def modified(self, name: str) -> datetime:
        """Return when a file was last written, as its file system says. Raises ``FileNotFoundError``."""
        with self._explained(name, "look at"):
            try:
                moment: datetime = self._filesystem[0].modified(self._full(name))
            except NotImplementedError:
                raise StorageError(f"{self.path(name)}: its file system does not say when it was written") from None
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there: an object store does not tell whether it was."""
        with self._explained(name, "delete"), suppress(FileNotFoundError):
            self._require_within(name)
            self._filesystem[0].rm_file(self._full(name))

    def _require_within(self, name: str) -> None:
        """Raise ``OSError`` if a link in the folder leads somewhere else on the way to ``name``."""
        if self.is_local:
            require_no_links(self._full(""), name)

    def move(self, name: str, new_name: str) -> None:
        """Give a file another name, which nothing has. Raises ``FileNotFoundError``.

        On a local disk that is one step; elsewhere the file is copied, then deleted.
        """
        filesystem, _ = self._filesystem
        with self._explained(name, "move"):
            if self.is_local:
                self._require_within(name)
                self._require_within(new_name)
                os.makedirs(os.path.dirname(self._full(new_name)), exist_ok=True)
                os.rename(self._full(name), self._full(new_name))
            else:
                filesystem.cp_file(self._full(name), self._full(new_name))
                filesystem.rm_file(self._full(name))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or its bytes ``start`` to ``end`` (exclusive), fewer if it ends before.

        Raises ``FileNotFoundError``.
        """
        with self._explained(name, "read"):
            if self.cache is not None and not self.is_local:
                cached = self._read_cached(self.cache, name, start or 0, end)
                if cached is not None:
                    return cached
            if start is None and end is None:
                return self._read_whole(name)
            return self._read_range(name, start or 0, end)

    def fetch(self, name: str) -> None:
        """Have the cache hold a copy of a remote file, without reading it; a local file is left alone.

        Raises as ``read`` does.
        """
        if self.cache is not None and not self.is_local:
            with self._explained(name, "read"):
                self._read_cached(self.cache, name, 0, 0)

    def expect(self, name: str, size: int, sha256: str) -> None:
        """Say what a file must hold, so that the cache need not ask the store for the version of the file.

        Reading it through the cache raises ``ShardError`` if it holds something else.
        """
        if self.cache is not None:
            self.cache.expect(self.path(name), Version(size, sha256=sha256))

    def _read_cached(self, cache: Cache, name: str, start: int, end: int | None) -> bytes | None:
        """Read part of a file through the cache; None if it cannot be cached."""
        known = cache.expected(self.path(name))
        version = known or self._version(name)

        def fetch() -> bytes | None:
            data = self._read_whole(name)
            if known is None:
                return data if self._version(name) == version else None
            if hashlib.sha256(data).hexdigest() != known.sha256:
                raise ShardError(
                    f"{self.path(name)}: its bytes do not have the SHA-256 of the manifest; run `labelgen verify`"
                )
            return data

        return cache.read(self.path(name), version, fetch, start, end)

    def _version(self, name: str) -> Version:
        """Return the version of a file's content, as the store tells it: its ETag, or else all that is listed of it."""
        info = self._fresh(name).info(self._full(name))
        tag = info.get("ETag") or info.get("etag") or sorted((key, str(value)) for key, value in info.items())
        return Version(int(info["size"]), str(tag))

    def _read_whole(self, name: str) -> bytes:
        if self.is_local:
            return read_regular(self._full(name))
        return bytes(self._fresh(name).cat_file(self._full(name)))  # in parts, of the size that is remembered

    def _read_range(self, name: str, start: int, end: int | None) -> bytes:
        """Read part of a file as a disk does: object stores refuse a range past the end, and ignore an empty one."""
        filesystem, full = self._filesystem[0], self._full(name)
        if self.is_local:
            return read_regular(full, start, end)
        if end is None or start < end:
            try:
                return bytes(filesystem.cat_file(full, start=start, end=end))
            except FileNotFoundError:
                raise
            except Exception as error:
                if not is_refusal(error, self.url) or start < int(self._fresh(name).size(full)):
                    raise
        else:
            self._fresh(name).size(full)  # a file that is missing is missing here too
        return b""

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name; a crash leaves the old file or the new one.

        Raises ``StorageError`` if that is refused.
        """
        with self._explained(name, "write"):
            if self.is_local:
                self._write_local(name, data, replace=True)
            else:
                put(self._filesystem[0], self._full(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless one of that name exists; return whether this call wrote it. The first writer wins.

        On a local disk by a hard link, on an object store by a conditional put (S3: ``If-None-Match: *``). A store or
        a library without conditional puts is asked whether the file exists, and then written to: there the last of two
        writers at one moment may win, so it is for the caller to write equal bytes. They should be equal anyway: a put
        that was done, but whose answer was lost on the way, is repeated and then reported as another's.

        Raises ``StorageError`` if writing is refused.
        """
        with self._explained(name, "write"):
            if self.is_local:
                return self._write_local(name, data, replace=False)
            if (created := self._create_conditionally(name, data)) is not None:
                return created
            if self._fresh(name).exists(self._full(name)):
                return False
            put(self._filesystem[0], self._full(name), data)
            return True

    def _create_conditionally(self, name: str, data: bytes) -> bool | None:
        """Put a file on condition that there is none; return whether that was done, or None if it is not offered."""
        filesystem, full = self._filesystem[0], self._full(name)
        # a put that does not name its mode may take the argument and ignore it
        method = getattr(filesystem, "_pipe_file", filesystem.pipe_file)
        if "mode" not in inspect.signature(method).parameters:
            return None
        for attempt in range(1, CREATE_ATTEMPTS + 1):
            try:
                put(filesystem, full, data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                code = _code_of(error)
                if code in ("NotImplemented", "501"):
                    return None
                if code != "ConditionalRequestConflict" or attempt == CREATE_ATTEMPTS:
                    raise
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def _write_local(self, name: str, data: bytes, *, replace: bool) -> bool:
        path = self._full(name)
        folder = os.path.dirname(path)
        self._require_within(name)
        require_replaceable(path)
        os.makedirs(folder, exist_ok=True)
        aside = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.path.basename(path)}-{secrets.token_hex(4)}")
        try:
            with open(aside, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(aside, path)
                return True
            try:
                os.link(aside, path)
            except FileExistsError:
                return False
            return True
        finally:
            if os.path.exists(aside):
                os.unlink(aside)

    @contextmanager
    def _explained(self, name: str, verb: str) -> Iterator[None]:
        """Turn a refusal of the file system into a ``StorageError`` that says which file and why.

        What is missing is the caller's to judge, unless it is the place to write to: then it is a refusal too.
        """
        try:
            yield
        except Exception as error:
            missing = isinstance(error, FileNotFoundError) and verb != "write"
            if missing or not is_refusal(error, self.url):
                raise
            raise StorageError(
                f"cannot {verb} {self.path(name)}: {reason_of(error)}; {remedy_of(error, self.url)}"
            ) from error


def _time_of(entry: Mapping[str, Any]) -> datetime | None:
    """Return when a file was written, as the listing of some kind of file system says."""
    moment = entry.get("mtime") or entry.get("LastModified") or entry.get("created")
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC)
    return moment if isinstance(moment, datetime) else None


def _code_of(error: Exception) -> str:
    """Return the code of S3's answer that ``error`` was made from, or nothing."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    described = response.get("Error", {}) if isinstance(response, dict) else {}
    return str(described.get("Code", ""))
