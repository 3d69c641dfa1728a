"""A store of photos that is made up: it lists a given number of them, page by page as S3 does, and has their bytes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar

from fsspec import AbstractFileSystem, register_implementation

PROTOCOL = "photostore"
PAGE = 1000
"""Objects that S3 lists at once."""
A_FOLDER = 1000
"""Photos in a folder, as in SA-1B's tars about ten times as many are."""
WRITTEN = datetime(2023, 4, 5, tzinfo=UTC)


def name_of(number: int) -> str:
    """Return the name of a photo in the store: the order of the names is that of the numbers."""
    return f"sa_{number // A_FOLDER:06d}/photo_{number:09d}.jpg"


def size_of(number: int, size: int) -> int:
    """Return how many bytes a photo has, where they have ``size`` on average."""
    return size // 2 + number * 7919 % size


def bytes_of(number: int, size: int) -> bytes:
    """Return the bytes of a photo: no two have the same."""
    return number.to_bytes(8, "little").ljust(size_of(number, size), b"\0")


class PhotoStore(AbstractFileSystem):  # type: ignore[misc]
    """The store at ``photostore://COUNT/SIZE``: so many photos, of so many bytes on average."""

    protocol: ClassVar[str] = PROTOCOL
    cachable = False
    req_kw: ClassVar[dict[str, Any]] = {}

    def split_path(self, path: str) -> tuple[str, str, None]:
        """Return the bucket and the key of a path, and no version."""
        bucket, _, key = self._strip_protocol(path).partition("/")
        return bucket, key, None

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        """Tell of the folder of all photos, or of a photo: whatever is asked for is there."""
        _, key, _ = self.split_path(path)
        size, _, name = key.partition("/")
        if not name:
            return {"name": path, "type": "directory", "size": 0}
        return {"name": path, "type": "file", "size": size_of(_number_in(name), int(size)), "LastModified": WRITTEN}

    def call_s3(self, method: str, Bucket: str, Prefix: str, ContinuationToken: str = "0") -> dict[str, Any]:
        """List a page, as S3's ``list_objects_v2``."""
        assert method == "list_objects_v2", "nothing else is asked for"
        count, size, first = int(Bucket), int(Prefix.strip("/")), int(ContinuationToken)
        end = min(count, first + PAGE)
        contents = [
            {"Key": f"{Prefix}{name_of(k)}", "Size": size_of(k, size), "ETag": f'"{k:032x}"', "LastModified": WRITTEN}
            for k in range(first, end)
        ]
        return {"Contents": contents, "IsTruncated": end < count, "NextContinuationToken": str(end)}

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """Return the bytes of a photo."""
        size, _, name = self.split_path(path)[1].partition("/")
        return bytes_of(_number_in(name), int(size))[start:end]


def _number_in(name: str) -> int:
    return int(name.rpartition("_")[2].removesuffix(".jpg"))


def open_store(count: int, size: int) -> str:
    """Have fsspec know the store; return the URL of one with so many photos of so many bytes on average."""
    register_implementation(PROTOCOL, PhotoStore, clobber=True)
    return f"{PROTOCOL}://{count}/{size}"


def photos_of(count: int, size: int) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of each photo, without asking the store."""
    for number in range(count):
        yield name_of(number).removesuffix(".jpg"), bytes_of(number, size)
