"""A plan is made of a listing alone, and what was planned stays."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from plans import Finished, Label, Problems, Snapshot, keys_in, planned, units_in, write_photos
from sum_factory.labelgen import plan
from sum_factory.labelgen.growing_plan import Plan
from sum_factory.shared.errors import SettingsDifferError, ShardError
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.store.storage import Storage

# From a listing alone


def test_plan_is_that_of_a_naive_walk(tmp_path: Path) -> None:
    names = ["b.jpg", "a/z.png", "a/y/é.jpg", "a.b/c.JPG", "a-b/d.tif", "写真.webp", "a/y.jpg", "a0.jpg"]
    write_photos(tmp_path / "photos", *names, ".hidden.jpg", "a/.cache/x.jpg", "notes.txt")
    planned(tmp_path / "set", tmp_path / "photos", unit_size=3)
    paths = sorted(
        str(path) for path in (tmp_path / "photos").rglob("*") if path.suffix in (*".x", ".txt") or path.is_file()
    )
    photos = [path for path in paths if "/." not in path and not path.endswith(".txt")]
    images = [image for unit in units_in(tmp_path / "set") for image in unit]
    assert [image["url"] for image in images] == photos
    assert [image["size"] for image in images] == [os.stat(path).st_size for path in photos]
    assert [image["stamp"] for image in images] == [f"{os.stat(p).st_size}:{os.stat(p).st_mtime}" for p in photos]
    assert [image["key"] for image in images] == [
        os.path.splitext(os.path.relpath(path, tmp_path / "photos"))[0] for path in photos
    ]
    assert [len(unit) for unit in units_in(tmp_path / "set")] == [3, 3, 2]


def test_no_photo_is_read_to_plan_and_each_once_to_be_labelled(
    photos: Path, tmp_path: Path, label: Label, finished: Finished, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    cat_file = LocalFileSystem.cat_file

    def counted(self: LocalFileSystem, path: str, *args: Any, **options: Any) -> bytes:
        read.append(path)
        return bytes(cat_file(self, path, *args, **options))

    monkeypatch.setattr(LocalFileSystem, "cat_file", counted)
    planned(tmp_path / "planned", photos)
    assert [path for path in read if path.startswith(f"{photos}/")] == []
    label(photos, tmp_path / "shards")
    of_photos = [path for path in read if path.startswith(f"{photos}/")]
    assert sorted(of_photos) == sorted(str(path) for path in photos.rglob("*.*"))
    assert snapshot(tmp_path / "shards") == snapshot(finished[0])


def test_of_a_tar_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = tmp_path / "large.tar"
    with tarfile.open(large, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", f"{'x' * 150}/é.jpg", "notes.json", "b.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3_000_000
            with open("/dev/zero", "rb") as zeros:
                tar.addfile(member, zeros)
    read = [0]
    original = LocalFileSystem.open

    def counted(self: LocalFileSystem, *args: Any, **options: Any) -> Any:
        file = original(self, *args, **options)
        inner = file.f.read

        class Counting:
            def __getattr__(self, name: str) -> Any:
                return getattr(file, name)

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *exception: object) -> None:
                file.close()

            def read(self, size: int = -1) -> bytes:
                data = inner(size)
                read[0] += len(data)
                return bytes(data)

        return Counting()

    monkeypatch.setattr(LocalFileSystem, "open", counted)
    planned(tmp_path / "set", large)
    with tarfile.open(large) as tar:
        members = [member for member in tar if member.name.endswith(".jpg")]
    told = [(image["member"], image["offset"], image["size"]) for unit in units_in(tmp_path / "set") for image in unit]
    assert told == [(member.name, member.offset_data, member.size) for member in members]
    assert 0 < read[0] < 20_000


# Digests are in the manifest


def test_manifest_names_the_bytes_that_were_labelled(own_photos: Path, tmp_path: Path, label: Label) -> None:
    (own_photos / "bad.jpg").write_bytes(b"no photo")
    shutil.copyfile(own_photos / "photo0.jpg", own_photos / "photo0 again.jpg")
    label(own_photos, tmp_path / "shards")
    urls = {image["key"]: image["url"] for unit in units_in(tmp_path / "shards") for image in unit}
    assert len(urls) == 8
    told = {
        row["image"]: row["digest"]
        for path in (tmp_path / "shards/manifest/masks").iterdir()
        for row in pq.read_table(path).to_pylist()
    }
    assert told == {key: hashlib.sha256(Path(url).read_bytes()).hexdigest() for key, url in urls.items()}
    for path in (tmp_path / "shards/masks").iterdir():
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    described = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                    assert described["digest"] == told[described["key"]]


def test_photo_that_is_gone_before_its_turn_has_no_digest_and_is_named(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch, problems: Problems
) -> None:
    prepare = plan.prepare

    def prepare_and_lose(*args: Any, **options: Any) -> Plan:
        planned = prepare(*args, **options)
        (three_photos / "photo2.jpg").unlink()
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_lose)
    (error,) = label(three_photos, tmp_path / "shards").errors
    assert "photo2.jpg: cannot be read" in error
    (image,) = [i for _, i in ShardSet.open(str(tmp_path / "shards")).walk() if i.key == "photo2"]
    assert (image.digest, image.masks) == (None, ())
    assert problems(tmp_path / "shards") == []


def test_member_that_is_another_now_is_noticed_where_it_is_read(
    three_photos: Path, tmp_path: Path, label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = (three_photos / "photo4.png").read_bytes()

    def write(*names: str) -> None:
        with tarfile.open(tmp_path / "photos.tar", "w") as tar:
            for name in names:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                (tmp_path / "one").write_bytes(data)
                with open(tmp_path / "one", "rb") as file:
                    tar.addfile(member, file)

    write("a.png", "b.png", "c.png")
    prepare = plan.prepare

    def prepare_and_change(*args: Any, **options: Any) -> Plan:
        planned = prepare(*args, **options)
        write("a.png", "c.png", "b.png")  # of the same size, at the same bytes: only the names tell
        return planned

    monkeypatch.setattr("sum_factory.labelgen.run.prepare", prepare_and_change)
    errors = label(tmp_path / "photos.tar", tmp_path / "shards").errors
    assert len(errors) == 2
    assert all(
        f"photos.tar::{n}.png: changed since the run was planned" in e for n, e in zip("bc", errors, strict=True)
    )


# Run again


def test_photo_of_another_size_is_refused_and_one_of_another_time_is_told_of(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    os.utime(tmp_path / "photos/b.jpg", (1, 1))
    (note,) = planned(tmp_path / "set", tmp_path / "photos").notes()
    assert f"1 images have another time stamp than when they were planned, such as {tmp_path}/photos/b.jpg;" in note
    (tmp_path / "photos/c.jpg").write_bytes(b"other")
    with pytest.raises(SettingsDifferError, match=r"photos/c\.jpg: changed since .*'c': \d+ bytes then, 5 now"):
        planned(tmp_path / "set", tmp_path / "photos")
    with pytest.raises(SettingsDifferError, match=r"c\.jpg: changed"):
        planned(tmp_path / "set", tmp_path / "photos", extend=True)


def test_photos_that_moved_are_found_by_their_keys(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "a.png", "b/c.jpg", "d.jpg", "a~2.gif")
    planned(tmp_path / "set", tmp_path / "photos")
    before = units_in(tmp_path / "set")
    (tmp_path / "photos").rename(tmp_path / "elsewhere")
    again = planned(tmp_path / "set", tmp_path / "elsewhere")
    assert units_in(tmp_path / "set") == before
    assert (again.gone, sorted(again.moved)) == ([], [0, 1, 2])
    moved = [image for number in range(3) for image in again.moved[number].images]
    assert [image.key for image in moved] == [image["key"] for unit in before for image in unit]
    assert [image.url for image in moved] == [
        image["url"].replace("/photos/", "/elsewhere/") for unit in before for image in unit
    ]


def test_photo_in_front_of_one_of_the_same_name_takes_a_key_of_its_own(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.bmp", "b.gif")
    extended = planned(tmp_path / "set", tmp_path / "photos", extend=True)
    assert keys_in(tmp_path / "set") == [["a", "b"], ["a~2", "b~2"]]
    assert (extended.gone, extended.moved) == ([], {})
    assert [image["url"].rpartition("/")[2] for image in units_in(tmp_path / "set")[1]] == ["a.bmp", "b.gif"]


def test_same_folder_twice_is_found_twice(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    sources = (tmp_path / "photos", tmp_path / "photos")
    planned(tmp_path / "set", *sources)
    assert keys_in(tmp_path / "set") == [["a", "b"], ["c", "a~2"], ["b~2", "c~2"]]
    again = planned(tmp_path / "set", *sources)
    assert (again.gone, again.moved, list(again.numbers())) == ([], {}, [0, 1, 2])
    assert planned(tmp_path / "set", tmp_path / "photos").gone == ["a~2", "b~2", "c~2"]


def test_lost_dataset_of_an_extended_set_is_written_as_it_was(tmp_path: Path, snapshot: Snapshot) -> None:
    write_photos(tmp_path / "photos", "b.jpg", "d.jpg", "f.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.jpg", "c.jpg", "e.jpg")
    planned(tmp_path / "set", tmp_path / "photos", extend=True)
    before = snapshot(tmp_path / "set")
    (tmp_path / "set/dataset.json").unlink()
    planned(tmp_path / "set", tmp_path / "photos")
    assert snapshot(tmp_path / "set") == before
    (tmp_path / "set/dataset.json").unlink()
    with pytest.raises(SettingsDifferError, match="unit_size: there 2, asked for 3"):
        planned(tmp_path / "set", tmp_path / "photos", unit_size=3)
    (tmp_path / "set/units/000001.json").unlink()
    with pytest.raises(ShardError, match=r"dataset\.json: missing, and so is .*units/000001\.json"):
        planned(tmp_path / "set", tmp_path / "photos")


@pytest.mark.parametrize("number", range(4))
def test_lost_plan_of_an_extended_set_is_written_as_it_was(tmp_path: Path, snapshot: Snapshot, number: int) -> None:
    write_photos(tmp_path / "photos", "b.jpg", "d.jpg", "f.jpg")
    planned(tmp_path / "set", tmp_path / "photos")
    write_photos(tmp_path / "photos", "a.jpg", "c.jpg", "e.jpg")
    planned(tmp_path / "set", tmp_path / "photos", extend=True)
    before = snapshot(tmp_path / "set")
    (tmp_path / f"set/units/{number:06d}.json").unlink()
    planned(tmp_path / "set", tmp_path / "photos")
    assert snapshot(tmp_path / "set") == before


# Whatever comes and goes

NAMES = [f"{a}{b}.{c}" for a in ("", "x/", "y/") for b in ("a", "b", "a~2") for c in ("jpg", "png", "bmp")]
names = st.lists(st.sampled_from(NAMES), unique=True, max_size=8)


@settings(max_examples=25, deadline=None)
@given(folders=st.lists(names, min_size=1, max_size=4), unit_size=st.integers(1, 3))
def test_every_photo_that_was_ever_listed_is_in_one_unit_and_stays_there(
    tmp_path_factory: pytest.TempPathFactory, folders: list[list[str]], unit_size: int
) -> None:
    home = tmp_path_factory.mktemp("grown")
    shown, before = home / "photos", dict[str, bytes]()
    everything = dict[str, int]()
    for step, listed in enumerate(folders):
        shutil.rmtree(shown, ignore_errors=True)
        write_photos(shown, "first.jpg", *listed)
        everything |= {str(path): path.stat().st_size for path in shown.rglob("*.*")}
        with planned(home / "set", shown, extend=step > 0, unit_size=unit_size) as plan_now:
            assert [n for n in plan_now.numbers() if n is not None] == list(range(len(units_in(home / "set"))))
        files = {str(path): path.read_bytes() for path in (home / "set/units").iterdir()}
        assert {name: files[name] for name in before} == before  # what is planned stays as it is
        before = files
        images = [image for unit in units_in(home / "set") for image in unit]
        assert sorted((image["url"], image["size"]) for image in images) == sorted(everything.items())
        assert len({image["key"] for image in images}) == len(images)
        assert all(1 <= len(unit) <= unit_size for unit in units_in(home / "set"))
        assert {image["key"] for image in images if image["url"] not in map(str, shown.rglob("*.*"))} == {
            *plan_now.gone
        }
        opened = ShardSet.open(str(home / "set"))
        assert [opened.size_of(number) for number in range(opened.unit_count)] == list(map(len, units_in(home / "set")))
        again = planned(home / "set", shown, unit_size=unit_size)
        assert (again.gone, again.moved) == (plan_now.gone, {})


def test_dataset_that_another_run_writes_while_its_plans_are_looked_for_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plans are listed twice, and between the two it has written one more."""
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    list(planned(tmp_path / "set", tmp_path / "photos").numbers())
    keys, files = keys_in(tmp_path / "set"), ("dataset.json", "units/000001.json")
    written = {name: (tmp_path / "set" / name).read_bytes() for name in files}
    for name in files:
        (tmp_path / "set" / name).unlink()
    names = Storage.names

    def names_and_then_more(self: Storage, folder: str) -> Any:
        found = [*names(self, folder)]
        for name, data in written.items():
            (tmp_path / "set" / name).write_bytes(data)
        return found

    monkeypatch.setattr(Storage, "names", names_and_then_more)
    with planned(tmp_path / "set", tmp_path / "photos") as going_on:
        assert [*going_on.numbers()] == [0, 1]
    assert keys_in(tmp_path / "set") == keys
