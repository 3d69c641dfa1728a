"""A cache in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.shared.store.cache import Cache


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 20)
