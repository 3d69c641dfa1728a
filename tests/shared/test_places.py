"""Places are text: they are made absolute, joined and taken apart without anything being read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.shared.places import absolute, joined, links_of, name_in, opened, parent_of, renamed, store_of


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a/../b.jpg",
        "https://host/a.jpg",
        "memory://x",
        "simplecache::s3://bucket/a.jpg",
        "zip://a.jpg::simplecache::s3://bucket/p.zip",
        "/a/b.jpg",
        "zip://a.jpg::/data/p.zip",
    ],
)
def test_what_is_absolute_stays_as_it_is(url: str) -> None:
    assert absolute(url) == url


def test_local_paths_become_absolute_and_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    for path, expected in {
        ".": f"{tmp_path}",
        "a/./b/": f"{tmp_path}/a/b",
        "a/../b": f"{tmp_path}/b",
        "..": f"{tmp_path.parent}",
        "a::b.jpg": f"{tmp_path}/a::b.jpg",
        "file:///x//y/": "/x/y",
        "file://x": f"{tmp_path}/x",
        "~/x": "/home/me/x",
        "zip://a/../b.jpg::p.zip": f"zip://a/../b.jpg::{tmp_path}/p.zip",
        "simplecache::photos": f"simplecache::{tmp_path}/photos",
    }.items():
        assert absolute(path) == expected


def test_names_of_a_chain_are_those_of_its_first_place() -> None:
    assert links_of("/a::b.jpg") == ["/a::b.jpg"]
    assert joined("zip://::/p.zip", "a.jpg") == "zip://a.jpg::/p.zip"
    assert joined("zip://a::/p.zip", "b/c.jpg") == "zip://a/b/c.jpg::/p.zip"
    assert joined("simplecache::s3://bucket", "a.jpg") == "simplecache::s3://bucket/a.jpg"
    assert joined("/", "a.jpg") == "/a.jpg"
    assert parent_of("zip://a/b.txt::/p.zip") == "zip://a::/p.zip"
    assert parent_of("s3://bucket/a.txt") == "s3://bucket"
    assert parent_of("/a.txt") == ""
    assert joined(parent_of("zip://b.txt::/p.zip"), "c.jpg") == "zip://c.jpg::/p.zip"


def test_what_a_file_system_leaves_out_of_names_is_kept() -> None:
    assert renamed("s3://bucket/*.jpg", "bucket/*.jpg", "bucket/a.jpg") == "s3://bucket/a.jpg"
    assert renamed("sftp://host/x/*.jpg", "/x/*.jpg", "/x/a.jpg") == "sftp://host/x/a.jpg"
    assert renamed("https://host/*.jpg", "https://host/*.jpg", "https://host/a.jpg") == "https://host/a.jpg"
    assert renamed("zip://*.jpg::/p.zip", "*.jpg", "a.jpg") == "zip://a.jpg::/p.zip"
    assert renamed("/x/*/", "/x/*", "/x/a") == "/x/a"


def test_colons_in_the_name_of_an_object_are_no_chain() -> None:
    for place, path in {
        "s3://bucket/a::b.jpg": "bucket/a::b.jpg",
        "/x/zip::b.jpg": "/x/zip::b.jpg",
        "file:///x/a::b.jpg": "/x/a::b.jpg",
        "https://host/a::b.jpg": "https://host/a::b.jpg",
    }.items():
        assert links_of(place) == [place]
        assert opened(place)[1] == path


def test_what_a_place_is_called() -> None:
    for place, name, store in [
        ("https://me:secret@host/x/a.jpg?X-Sig=a/b.txt#c", "a.jpg", "the store https://host"),
        ("s3://bucket/x/a?.jpg", "a?.jpg", "the store s3://bucket"),
        ("zip://x/a.jpg::s3://bucket/p.zip", "a.jpg", "the store s3://bucket"),
        ("/x/y/", "y", "the disk of /x/y/"),
    ]:
        assert (name_in(place), store_of(place)) == (name, store)
