"""List the files below a folder of a store, in the order of their names: page by page where the store gives pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def listed_by_store(filesystem: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the files below ``root``, by their names relative to it, each with what the store tells of it.

    S3 is asked for a thousand at a time, already in order, and no more than these are held. Other stores give all at
    once, which takes about a kilobyte of memory a file while they are sorted.
    """
    if hasattr(filesystem, "call_s3") and hasattr(filesystem, "split_path"):
        yield from _pages_of_s3(filesystem, root)
        return
    filesystem.invalidate_cache()
    found = filesystem.find(root, detail=True)
    filesystem.invalidate_cache()  # a listing that is remembered would be held as long as the process lives
    for file in sorted(found):
        yield file.removeprefix(root).lstrip("/"), found.pop(file)


def _pages_of_s3(filesystem: Any, root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    bucket, folder, _ = filesystem.split_path(root)
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    more: dict[str, str] = {}
    while True:
        page = filesystem.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more, **filesystem.req_kw)
        for entry in page.get("Contents", ()):
            name = entry["Key"].removeprefix(prefix)
            if name and not name.endswith("/"):  # what stands for a folder
                yield name, {"size": entry["Size"], "ETag": entry["ETag"], "LastModified": entry["LastModified"]}
        if not page.get("IsTruncated"):
            return
        more = {"ContinuationToken": page["NextContinuationToken"]}
