"""Files of a folder at any fsspec URL, written so that a reader sees all of a file or none of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from shared.errors import StorageError

TEMPORARY_PREFIX = ".partial-"
"""Names of files that are being written start with this; nobody reads them, anybody may delete old ones."""


@dataclass(frozen=True)
class Storage:
    """A folder at ``url``: a local path, or any URL that fsspec knows, such as ``s3://bucket/folder``."""

    url: str

    @cached_property
    def _filesystem(self) -> tuple[Any, str]:
        try:
            filesystem, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StorageError(f"{self.url}: {error}") from error
        return filesystem, root.rstrip("/")

    @property
    def is_local(self) -> bool:
        """Whether the folder is on a local file system."""
        return isinstance(self._filesystem[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """Return what to call ``name`` in a message: the folder's URL and the name."""
        return f"{self.url.rstrip('/')}/{name}"

    def _full(self, name: str) -> str:
        return f"{self._filesystem[1]}/{name}" if name else str(self._filesystem[1])

    def exists(self, name: str) -> bool:
        """Return whether a file or folder is there."""
        with self._explained(name, "look at"):
            return bool(self._filesystem[0].exists(self._full(name)))

    def size(self, name: str) -> int:
        """Return a file's size in bytes. Raises ``FileNotFoundError``."""
        with self._explained(name, "look at"):
            return int(self._filesystem[0].size(self._full(name)))

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

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a file, or its bytes ``start`` to ``end`` (exclusive). Raises ``FileNotFoundError``."""
        with self._explained(name, "read"):
            return bytes(self._filesystem[0].cat_file(self._full(name), start=start, end=end))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing one of that name; a crash leaves the old file or the new one.

        Raises ``StorageError`` if that is refused.
        """
        with self._explained(name, "write"):
            if self.is_local:
                self._write_local(name, data, replace=True)
            else:
                self._filesystem[0].pipe_file(self._full(name), data)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless one of that name exists; return whether this call wrote it.

        On a local disk the first of several writers wins. An object store may keep the last one's: there it is
        for the caller to write equal bytes.
        """
        with self._explained(name, "write"):
            if self.is_local:
                return self._write_local(name, data, replace=False)
            if self._filesystem[0].exists(self._full(name)):
                return False
            self._filesystem[0].pipe_file(self._full(name), data)
            return True

    def _write_local(self, name: str, data: bytes, *, replace: bool) -> bool:
        target = self._full(name)
        folder = os.path.dirname(target)
        os.makedirs(folder, exist_ok=True)
        aside = os.path.join(folder, f"{TEMPORARY_PREFIX}{os.path.basename(target)}-{secrets.token_hex(4)}")
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if replace:
                os.replace(aside, target)
                return True
            try:
                os.link(aside, target)
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
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb != "write":
                raise
            reason = error.strerror or str(error) or type(error).__name__
            raise StorageError(
                f"cannot {verb} {self.path(name)}: {reason}; check the path, its permissions and the free space"
            ) from error
