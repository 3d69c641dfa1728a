"""Remote files, and the copies that a cache keeps of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from sum_factory.shared.store.cache import BLOCK, COPY, Cache, Version

URL = "s3://bucket/set/masks/000000.tar"


def content(seed: int, size: int = 3 * BLOCK + 100) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def version_of(data: bytes) -> Version:
    return Version(len(data), sha256=hashlib.sha256(data).hexdigest())


def stored(size: int) -> int:
    """Bytes that a copy takes: the file, and four for each block."""
    return size + 4 * -(-size // BLOCK)


class Remote:
    """Files by URL, and a list of what was fetched."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.fetched = dict(files), []

    def read(self, cache: Cache, url: str, start: int = 0, end: int | None = None) -> bytes | None:
        def fetch() -> bytes:
            self.fetched.append(url)
            return self.files[url]

        return cache.read(url, version_of(self.files[url]), fetch, start, end)


def copies(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix == COPY)


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
