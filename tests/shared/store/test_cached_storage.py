"""A storage with a cache reads what is there now, and nothing that others have planted."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import fsspec
import pytest

from cached import Remote, content, copies, version_of
from sum_factory.shared.errors import ShardError, StorageError
from sum_factory.shared.store.cache import BLOCK, PARTIAL, Cache, default_folder
from sum_factory.shared.store.storage import Storage

# A storage with a cache


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of what is read from the object store from now on."""
    store = fsspec.filesystem("s3")
    cat_file, reads = store.cat_file, []

    def counted(path: str, *args: object, **kwargs: object) -> bytes:
        reads.append(path.split("/", 1)[1])
        data: bytes = cat_file(path, *args, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", counted)
    return reads


def test_remote_file_is_read_once_until_it_changes(cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(bucket, cache)
    Storage(bucket).write("a/x", content(0))
    reads = count_reads(monkeypatch)
    for start, end in ((0, 10), (BLOCK, None), (None, 3 * BLOCK), (None, None), (10**6, 10**7), (5, 5)):
        assert storage.read("a/x", start, end) == content(0)[start:end]
    assert reads == ["a/x"]
    Storage(bucket).write("a/x", content(1))
    assert storage.read("a/x", 0, 10) == content(1)[:10]
    assert reads == ["a/x", "a/x"]
    assert Storage(bucket, cache).read("a/x") == content(1)
    assert reads == ["a/x", "a/x"]


def test_expected_content_is_not_asked_for_and_is_held_to_its_hash(
    cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, whole = Storage(bucket, cache), version_of(content(0))
    storage.expect("x", whole.size, whole.sha256)
    storage.write("x", content(1))
    with pytest.raises(ShardError, match=rf"{bucket}/x: its bytes do not have the SHA-256"):
        storage.read("x", 0, 10)
    storage.write("x", content(0))
    assert storage.read("x", 0, 10) == content(0)[:10]
    monkeypatch.setattr(fsspec.filesystem("s3"), "info", lambda *args, **kwargs: pytest.fail("asked the store"))
    reads = count_reads(monkeypatch)
    assert storage.read("x", BLOCK, BLOCK + 5) == content(0)[BLOCK : BLOCK + 5]
    assert reads == []


def test_file_that_changes_while_it_is_fetched_is_not_kept(
    cache: Cache, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(bucket, cache)
    storage.write("x", content(0))
    store = fsspec.filesystem("s3")
    cat_file = store.cat_file

    def overtaken(path: str, **kwargs: object) -> bytes:
        monkeypatch.setattr(store, "cat_file", cat_file)
        storage.write("x", content(1))
        data: bytes = cat_file(path, **kwargs)
        return data

    monkeypatch.setattr(store, "cat_file", overtaken)
    assert storage.read("x") == content(1)
    assert copies(cache.folder) == []


def test_file_above_the_limit_is_read_in_ranges(tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage(bucket, Cache(tmp_path / "cache", 1000))
    storage.write("x", content(0))
    assert storage.read("x", 10, 20) == content(0)[10:20]
    assert storage.read("x") == content(0)
    assert copies(tmp_path / "cache") == []


def test_missing_file_and_bucket_read_as_without_a_cache(cache: Cache, bucket: str) -> None:
    with pytest.raises(FileNotFoundError):
        Storage(bucket, cache).read("absent")
    Storage(bucket).write("x", content(0))
    Storage(bucket, cache).read("x")
    fsspec.filesystem("s3").rm(f"{bucket}/x")
    with pytest.raises(FileNotFoundError):
        Storage(bucket, cache).read("x")
    with pytest.raises(StorageError):
        Storage("s3://no-such-bucket", cache).write("x", b"")


def test_local_folder_is_not_cached(cache: Cache, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path / "set"), cache)
    storage.write("x", content(0))
    storage.expect("x", 3, "another's")
    assert storage.read("x", 3, 9) == content(0)[3:9]
    assert not cache.folder.exists()


def test_default_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "sum-factory" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "sum-factory" / "shards"


# What others plant


def copy_of(data: bytes) -> bytes:
    """Return a copy as the cache lays it out, checksums and all."""
    blocks = [data[start : start + BLOCK] for start in range(0, len(data), BLOCK)]
    return data + b"".join(zlib.crc32(block).to_bytes(4, "little") for block in blocks)


def test_planted_copy_with_sound_checksums_is_never_served(cache: Cache) -> None:
    remote, planted = Remote(a=content(0)), copy_of(content(1))
    assert remote.read(Cache(cache.folder, 1 << 20), "a") == content(0)
    (copy,) = copies(cache.folder)
    assert copy.read_bytes() == copy_of(content(0))
    copy.write_bytes(planted)
    assert remote.read(cache, "a", 5, 9) == content(0)[5:9]
    assert remote.fetched == ["a", "a"]
    assert copy.read_bytes() == copy_of(content(0))


def test_links_in_the_folder_are_not_followed(cache: Cache, tmp_path: Path) -> None:
    remote = Remote(a=content(0))
    remote.read(cache, "a")
    (copy,) = copies(cache.folder)
    precious = tmp_path / "precious"
    precious.write_bytes(copy.read_bytes())
    for planted in (copy, copy.with_suffix(PARTIAL), cache.folder / "lock"):
        for path in cache.folder.iterdir():
            path.unlink()
        planted.symlink_to(precious)
        with pytest.warns(UserWarning, match="cannot be used as a cache"):
            assert remote.read(cache, "a") in (content(0), None)
        assert precious.read_bytes() == copy_of(content(0))


def test_folder_that_others_may_write_to_is_not_used(cache: Cache) -> None:
    cache.folder.mkdir()
    cache.folder.chmod(0o777)
    with pytest.warns(UserWarning, match="others may write to it; make it yours alone"):
        assert Remote(a=content(0)).read(cache, "a") is None
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_folder_of_another_user_is_not_used(cache: Cache) -> None:
    cache.folder.mkdir(mode=0o755)
    os.chown(cache.folder, 1, 1)
    with pytest.warns(UserWarning, match="others may write to it"):
        assert Remote(a=content(0)).read(cache, "a") is None


def test_folder_and_copies_are_this_users_alone(cache: Cache) -> None:
    Remote(a=content(0)).read(cache, "a")
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in cache.folder.iterdir()} == {0o600}
