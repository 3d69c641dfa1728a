"""Recorded places are mapped to new ones: by whole components, the longest old place first."""

from __future__ import annotations

from pathlib import Path

import pytest

from sum_factory.shared.errors import SettingsError
from sum_factory.shared.relocation import UNMOVED, Relocation


@pytest.mark.parametrize(
    ("pair", "recorded", "now"),
    [
        (("/a/b", "/new"), "/a/b/c/d.jpg", "/new/c/d.jpg"),
        (("/a/b/", "/new/"), "/a/b/c.jpg", "/new/c.jpg"),
        (("/a/b", "/new"), "/a/bc/d.jpg", "/a/bc/d.jpg"),
        (("/a/b", "/new"), "/x/a/b/c.jpg", "/x/a/b/c.jpg"),
        (("/a/b.tar", "/new.tar"), "/a/b.tar", "/new.tar"),
        (("/", "/new"), "/a.jpg", "/new/a.jpg"),
        (("/a", "/"), "/a/b.jpg", "/b.jpg"),
        (("/a", "s3://bucket/x"), "/a/b.jpg", "s3://bucket/x/b.jpg"),
        (("s3://bucket/x", "/new"), "s3://bucket/x/b.jpg", "/new/b.jpg"),
        (("s3://bucket", "/new"), "s3://bucket2/b.jpg", "s3://bucket2/b.jpg"),
        (("s3://", "/new"), "s3://bucket/b.jpg", "/new/bucket/b.jpg"),
        (("memory://x", "/new"), "memory:///x/b.jpg", "/new/b.jpg"),
        (("/a", "/new"), "zip://b.jpg::/a/p.zip", "zip://b.jpg::/new/p.zip"),
        (("s3://bucket", "/new"), "simplecache::s3://bucket/b.jpg", "simplecache::/new/b.jpg"),
        (("simplecache::s3://bucket", "/new"), "simplecache::s3://bucket/b.jpg", "/new/b.jpg"),
        (("/a", "zip://in::/p.zip"), "/a/b/c.jpg", "zip://in/b/c.jpg::/p.zip"),
        (("photos", "/new"), "photos/a.jpg", "/new/a.jpg"),
        (("photos", "/new"), "./photos/a.jpg", "/new/a.jpg"),
        (("photos", "/new"), "/photos/a.jpg", "/photos/a.jpg"),
        (("/photos", "/new"), "photos/a.jpg", "photos/a.jpg"),
        ((".", "/new"), "./a.jpg", "/new/a.jpg"),
        (("..", "/new"), "../a.jpg", "/new/a.jpg"),
        ((".", "/new"), "/a.jpg", "/a.jpg"),
        (("/a", "/new"), "file:///a/b.jpg", "/new/b.jpg"),
        (("file:///a", "/new"), "/a/b.jpg", "/new/b.jpg"),
    ],
)
def test_what_is_recorded_in_or_below_an_old_place_moves(pair: tuple[str, str], recorded: str, now: str) -> None:
    relocation = Relocation.of([pair])
    assert relocation.moved(recorded) == now
    assert relocation.olds_of(recorded) == ({pair[0]} if now != recorded else set())
    assert UNMOVED.moved(recorded) == recorded


@pytest.mark.parametrize("turn", [1, -1])
def test_longest_old_place_counts(turn: int) -> None:
    pairs = [("/a", "/one"), ("/a/b/c", "/three"), ("/a/b", "/two")]
    relocation = Relocation.of(pairs[::turn])
    moved = [relocation.moved(f"/a/{name}.jpg") for name in ("x", "b/x", "b/c/x", "b/cd/x", "b/c/d/x")]
    assert moved == ["/one/x.jpg", "/two/x.jpg", "/three/x.jpg", "/two/cd/x.jpg", "/three/d/x.jpg"]
    assert relocation.olds_of("/a/b/x.jpg") == {"/a", "/a/b"}


def test_new_place_is_where_it_is_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relocation = Relocation.parse(["/old=new/../newer"])
    monkeypatch.chdir("/")
    assert relocation.moved("/old/a.jpg") == f"{tmp_path}/newer/a.jpg"


def test_text_is_cut_where_an_absolute_place_begins() -> None:
    texts = ["/a=/b", "/day=1/x=/new/day=2", "p=q", "s3://b/k=1=s3://c/k=2", "/c=zip://x::/p.zip"]
    assert Relocation.parse(texts[:2]).pairs == (("/a", "/b"), ("/day=1/x", "/new/day=2"))
    assert Relocation.parse(texts[2:3]).pairs == (("p", str(Path.cwd() / "q")),)
    assert Relocation.parse(texts[3:]).pairs == (("s3://b/k=1", "s3://c/k=2"), ("/c", "zip://x::/p.zip"))


@pytest.mark.parametrize("text", ["", "=", "/a", "/a=", "=/b"])
def test_text_that_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="--photos-from: expected OLD=NEW"):
        Relocation.parse([text])


def test_old_place_with_two_new_ones_is_refused() -> None:
    assert len(Relocation.parse(["/a=/b", "/a/=/b/"]).pairs) == 1
    with pytest.raises(SettingsError, match=r"/a/? has two new places, /b and /c"):
        Relocation.parse(["/a=/b", "/a/=/c"])
