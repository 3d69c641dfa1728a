"""Every kind of source lists the same images, with the keys that a reader expects, and in a fixed order."""

from __future__ import annotations

import io
import json
import os
import tarfile
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
import webdataset
from PIL import Image

from sum_factory.labelgen.keys import Keys
from sum_factory.labelgen.listing import list_photos
from sum_factory.shared.errors import InputError
from sum_factory.shared.photo_files import PhotoFile, read_bytes


def picture(seed: int) -> bytes:
    """Return the bytes of a small JPEG that differs from those of other seeds."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def lay_out(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def list_images(sources: list[str]) -> list[PhotoFile]:
    """List the photos of all sources with the keys that they get."""
    keys = Keys()
    return [replace(photo, key=keys.take(photo.key)) for photo in list_photos(sources, keys.reserve)]


def contents(refs: list[PhotoFile]) -> dict[str, bytes]:
    """Return the bytes of every image by its key."""
    assert len({ref.key for ref in refs}) == len(refs)
    return {ref.key: read_bytes(ref) for ref in refs}


SA1B = {"sa_1.jpg": picture(1), "sa_1.json": b"{}", "sa_2.jpg": picture(2), "sa_2.json": b"{}"}


def test_folder_is_searched_to_any_depth_in_a_fixed_order(tmp_path: Path) -> None:
    files = {"b.png": picture(1), "a/deep/er.JPG": picture(2), "a.jpeg": picture(3), "a/z.tif": picture(4)}
    lay_out(tmp_path, {**files, "readme.md": b"no image", "a/notes": b"no image"})
    refs = list_images([str(tmp_path)])
    assert [ref.key for ref in refs] == ["a", "a/deep/er", "a/z", "b"]
    assert contents(refs) == {os.path.splitext(name)[0]: data for name, data in files.items()}
    assert list_images([str(tmp_path)]) == refs
    assert [ref.key for ref in list_images([f"{tmp_path}/"])] == [ref.key for ref in refs]


def test_order_does_not_depend_on_when_files_were_made(tmp_path: Path) -> None:
    names = [f"{i}.jpg" for i in (3, 1, 2, 11)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            lay_out(tmp_path / folder, {name: picture(0)})
    one, two = ([ref.key for ref in list_images([str(tmp_path / folder)])] for folder in ("one", "two"))
    assert one == two == ["1", "11", "2", "3"]


def test_sources_are_listed_in_the_order_given(tmp_path: Path) -> None:
    lay_out(tmp_path, {"one/x.jpg": picture(1), "two/a.jpg": picture(2)})
    assert [ref.key for ref in list_images([f"{tmp_path}/one", f"{tmp_path}/two"])] == ["x", "a"]
    assert [ref.key for ref in list_images([f"{tmp_path}/two", f"{tmp_path}/one"])] == ["a", "x"]


def test_relative_folder_is_read_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"photos/a/b.jpg": picture(1)})
    monkeypatch.chdir(tmp_path)
    for source in ("photos", "./photos/", "."):
        (data,) = contents(list_images([source])).values()
        assert data == picture(1)


def test_places_are_absolute_however_a_source_is_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"photos/a.jpg\nphotos/../photos/a.jpg\nsa.tar\nzip://photos/a.jpg::p.zip\n"
    lay_out(tmp_path, {"photos/a.jpg": picture(1), "list.txt": lines, "cwd/x": b""})
    write_tar(tmp_path / "sa.tar", {"m.jpg": picture(2)})
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        archive.writestr("photos/a.jpg", picture(1))
    photo, tar, zipped = f"{tmp_path}/photos/a.jpg", f"{tmp_path}/sa.tar", f"zip://photos/a.jpg::{tmp_path}/p.zip"
    expected = {
        "photos": {"a": photo},
        "./photos/": {"a": photo},
        "cwd/../photos": {"a": photo},
        f"{tmp_path}/cwd/../photos/.": {"a": photo},
        "photos/*.jpg": {"a": photo},
        "photos/a.jpg": {"a": photo},
        "file://photos": {"a": photo},
        f"file://{tmp_path}/photos": {"a": photo},
        "sa.tar": {"m": tar},
        ".": {"photos/a": photo, "m": tar},
        "zip://photos::p.zip": {"a": zipped},
        "zip://::p.zip": {"photos/a": zipped},
        "zip://photos/*.jpg::p.zip": {"a": zipped},
        "p.zip": {"photos/a": zipped},
        "zip://photos/a.jpg::p.zip": {"a": zipped},
        "simplecache::photos": {"a": f"simplecache::{photo}"},
    }
    monkeypatch.chdir(tmp_path)
    for source, places in expected.items():
        refs = list_images([source])
        assert {ref.key: ref.url for ref in refs} == places, source
        assert set(contents(refs).values()) <= {picture(1), picture(2)}
    monkeypatch.chdir(tmp_path / "cwd")
    assert list_images([".."])[0].url == photo
    (tmp_path / "p.zip").rename(tmp_path / "cwd" / "p.zip")  # the rest of a list is relative to its own folder
    zipped = f"zip://photos/a.jpg::{tmp_path}/cwd/p.zip"
    found = [(ref.key, ref.url) for ref in list_images(["../list.txt"])]
    assert found == [("photos/a", photo), ("photos/a~2", photo), ("m", tar), ("a", zipped)]


def test_symbolic_links_stay_as_the_user_knows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"disk/deep/a.jpg": picture(1), "disk/b.jpg": picture(2), "b.jpg": picture(3)})
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "deep")
    monkeypatch.chdir(tmp_path)
    assert [ref.url for ref in list_images(["link"])] == [f"{tmp_path}/link/a.jpg"]
    (ref,) = list_images(["link/../b.jpg"])
    assert read_bytes(ref) == picture(2)


def test_hidden_files_are_skipped(tmp_path: Path) -> None:
    visible = {"a.jpg": picture(1), "b/c.jpg": picture(2)}
    hidden = {".a.jpg": b"", "b/._c.jpg": b"", ".cache/d.jpg": b"", "b/.old/e.jpg": b"", "._photos.tar": b""}
    lay_out(tmp_path / "photos", {**visible, **hidden})
    assert [ref.key for ref in list_images([f"{tmp_path}/photos"])] == ["a", "b/c"]
    write_tar(tmp_path / "photos.tar", {f"./{name}": data for name, data in {**visible, **hidden}.items()})
    assert [ref.key for ref in list_images([f"{tmp_path}/photos.tar"])] == ["a", "b/c"]


def test_folder_whose_own_name_starts_with_a_dot_is_read(tmp_path: Path) -> None:
    lay_out(tmp_path, {".photos/a.jpg": picture(1)})
    assert [ref.key for ref in list_images([f"{tmp_path}/.photos"])] == ["a"]


def test_list_file_names_relative_and_absolute_paths(tmp_path: Path) -> None:
    lay_out(tmp_path, {"set/a/one.jpg": picture(1), "elsewhere/two.jpg": picture(2), "set/three.png": picture(3)})
    lines = ["# what to label", "", "three.png", "  a/one.jpg  ", f"{tmp_path}/elsewhere/two.jpg"]
    lay_out(tmp_path, {"set/photos.txt": "\r\n".join(lines).encode()})
    refs = list_images([f"{tmp_path}/set/photos.txt"])
    assert [ref.key for ref in refs] == ["three", "a/one", "two"]
    assert contents(refs) == {"three": picture(3), "a/one": picture(1), "two": picture(2)}


def test_list_file_may_name_tars_and_urls(tmp_path: Path) -> None:
    lay_out(tmp_path, {"two.jpg": picture(5), "photos.lst": f"sa.tar\nfile://{tmp_path}/two.jpg\n".encode()})
    write_tar(tmp_path / "sa.tar", SA1B)
    found = contents(list_images([f"{tmp_path}/photos.lst"]))
    assert found == {"sa_1": picture(1), "sa_2": picture(2), "two": picture(5)}


def test_relative_list_file_is_read_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, {"a.jpg": picture(1), "photos.list": b"a.jpg"})
    monkeypatch.chdir(tmp_path)
    assert contents(list_images(["photos.list"])) == {"a": picture(1)}


def test_missing_line_of_a_list_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": picture(1), "photos.txt": b"# two\na.jpg\ngone.jpg\n"})
    with pytest.raises(InputError, match=r"photos\.txt, line 3: gone\.jpg: no such file"):
        list_images([f"{tmp_path}/photos.txt"])


def test_sa1b_tar_lists_its_photos(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_000000.tar", {f"./{name}": data for name, data in SA1B.items()})
    refs = list_images([f"{tmp_path}/sa_000000.tar"])
    assert contents(refs) == {"sa_1": picture(1), "sa_2": picture(2)}
    assert refs[0].name == f"{tmp_path}/sa_000000.tar::./sa_1.jpg"


def test_webdataset_tar_lists_what_webdataset_wrote(tmp_path: Path) -> None:
    with webdataset.TarWriter(str(tmp_path / "shard.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"part/{i:06d}", "jpg": picture(i), "json": {"caption": "none"}, "cls": i})
    found = contents(list_images([f"{tmp_path}/shard.tar"]))
    assert found == {f"part/{i:06d}": picture(i) for i in range(3)}


def test_folder_of_tars_lists_every_tar(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa_1.tar", {"sa_1.jpg": picture(1)})
    write_tar(tmp_path / "sa_0.tar", {"sa_9.jpg": picture(9)})
    refs = list_images([str(tmp_path)])
    assert [ref.key for ref in refs] == ["sa_9", "sa_1"]
    assert contents(refs) == {"sa_9": picture(9), "sa_1": picture(1)}


def test_long_and_foreign_member_names_are_read(tmp_path: Path) -> None:
    names = ["a" * 150 + ".jpg", "ünï/cödé 写真.jpg", "dots.in.the.name.jpg"]
    write_tar(tmp_path / "photos.tar", {name: picture(i) for i, name in enumerate(names)})
    found = contents(list_images([f"{tmp_path}/photos.tar"]))
    assert found == {name.removesuffix(".jpg"): picture(i) for i, name in enumerate(names)}


def test_every_cut_of_a_tar_is_refused_by_name(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa.tar", SA1B)
    whole = (tmp_path / "sa.tar").read_bytes()
    with tarfile.open(tmp_path / "sa.tar") as tar:
        end = max(member.offset_data + -(-member.size // 512) * 512 for member in tar)
    for length in (*range(0, end, 100), *range(0, end + 1, 512)):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.tar: not a whole"):
            list_images([f"{tmp_path}/cut.tar"])


def test_tar_with_garbage_between_members_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa.tar", SA1B)
    with tarfile.open(tmp_path / "sa.tar") as tar:
        second = tar.getmembers()[1].offset
    data = bytearray((tmp_path / "sa.tar").read_bytes())
    data[second : second + 512] = b"\xaa" * 512
    (tmp_path / "sa.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"sa\.tar: not a whole"):
        list_images([f"{tmp_path}/sa.tar"])


def test_compressed_tar_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "sa.tar", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a.jpg"), io.BytesIO())
    with pytest.raises(InputError, match=r"sa\.tar: not a whole, uncompressed tar"):
        list_images([f"{tmp_path}/sa.tar"])


def test_pattern_lists_what_it_matches(tmp_path: Path) -> None:
    lay_out(tmp_path, {"x/2.jpg": picture(2), "x/1.jpg": picture(1), "y/3.jpg": picture(3)})
    write_tar(tmp_path / "sa_1.tar", {"sa_1.jpg": picture(8)})
    write_tar(tmp_path / "sa_0.tar", {"sa_0.jpg": picture(9)})
    assert [ref.key for ref in list_images([f"{tmp_path}/x/*.jpg"])] == ["1", "2"]
    assert [ref.key for ref in list_images([f"{tmp_path}/sa_?.tar"])] == ["sa_0", "sa_1"]
    assert [ref.key for ref in list_images([f"file://{tmp_path}/[xy]/*.jpg"])] == ["1", "2", "3"]


def test_brackets_in_an_existing_name_are_no_pattern(tmp_path: Path) -> None:
    lay_out(tmp_path, {"set [1]/a[2].jpg": picture(1)})
    assert contents(list_images([f"{tmp_path}/set [1]"])) == {"a[2]": picture(1)}
    assert contents(list_images([f"{tmp_path}/set [1]/a[2].jpg"])) == {"a[2]": picture(1)}


def test_single_image_is_a_source(tmp_path: Path) -> None:
    lay_out(tmp_path, {"deep/a.b.jpg": picture(1)})
    assert contents(list_images([f"{tmp_path}/deep/a.b.jpg"])) == {"a.b": picture(1)}


def test_equal_keys_are_told_apart_by_their_order(tmp_path: Path) -> None:
    files = {"x/a.jpg": picture(1), "x/a.png": picture(2), "y/a.jpg": picture(3), "x/a~2.jpg": picture(4)}
    lay_out(tmp_path, files)
    found = contents(list_images([f"{tmp_path}/x", f"{tmp_path}/y", f"{tmp_path}/y"]))
    assert found == {"a": picture(1), "a~3": picture(2), "a~2": picture(4), "a~4": picture(3), "a~5": picture(3)}


def test_source_without_images_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"full/a.jpg": picture(1), "notes/readme.md": b"", "list.txt": b"# none\n"})
    (tmp_path / "empty").mkdir()
    write_tar(tmp_path / "none.tar", {"readme.md": b""})
    for name in ("empty", "notes", "list.txt", "none.tar"):
        with pytest.raises(InputError, match=rf"{name}: no images there"):
            list_images([f"{tmp_path}/full", f"{tmp_path}/{name}"])


def test_missing_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: no such file or folder"):
        list_images([f"{tmp_path}/gone"])
    with pytest.raises(InputError, match=r"gone_\*\.tar: no file matches"):
        list_images([f"{tmp_path}/gone_*.tar"])


def test_other_file_is_refused(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.mp4": b"film"})
    with pytest.raises(InputError, match=r"a\.mp4: expected a folder"):
        list_images([f"{tmp_path}/a.mp4"])


def test_image_that_vanished_is_named(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": picture(1)})
    (ref,) = list_images([str(tmp_path)])
    (tmp_path / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"a\.jpg: cannot be read"):
        read_bytes(ref)


def test_empty_image_is_listed_and_has_no_bytes(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": b""})
    write_tar(tmp_path / "b.tar", {"b.jpg": b"", "c.jpg": picture(1)})
    assert contents(list_images([str(tmp_path)])) == {"a": b"", "b": b"", "c": picture(1)}


def test_name_that_is_not_utf8_becomes_a_printable_key(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture(1))
    (ref,) = list_images([str(tmp_path)])
    assert ref.key == "caf\\xe9"
    assert ref.name.encode("utf-8").endswith(b"/caf\\xe9.jpg")
    assert read_bytes(ref) == picture(1)


def test_stamp_changes_with_the_file_only(tmp_path: Path) -> None:
    lay_out(tmp_path, {"a.jpg": picture(1), "b.jpg": picture(2)})
    before = {ref.key: ref for ref in list_images([str(tmp_path)])}
    os.utime(tmp_path / "a.jpg", (1, 1))
    after = {ref.key: ref for ref in list_images([str(tmp_path)])}
    assert after["a"].stamp != before["a"].stamp
    assert after["b"] == before["b"]


@pytest.fixture
def bucket() -> Iterator[str]:
    """An empty folder on a file system that is not local."""
    name = uuid.uuid4().hex
    fsspec.filesystem("memory").makedirs(f"/{name}")
    yield f"memory://{name}"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


def test_remote_sources_are_read_like_local_ones(bucket: str, tmp_path: Path) -> None:
    write_tar(tmp_path / "sa.tar", SA1B)
    files = {"p/a/1.jpg": picture(1), "p/0.png": picture(2), "sa.tar": (tmp_path / "sa.tar").read_bytes()}
    files["list.txt"] = b"p/0.png\nsa.tar\n"
    for name, data in files.items():
        fsspec.filesystem("memory").pipe_file(f"{bucket}/{name}", data)
    assert contents(list_images([f"{bucket}/p"])) == {"0": picture(2), "a/1": picture(1)}
    assert contents(list_images([f"{bucket}/*.tar"])) == {"sa_1": picture(1), "sa_2": picture(2)}
    assert contents(list_images([f"{bucket}/list.txt"])) == {"p/0": picture(2), "sa_1": picture(1), "sa_2": picture(2)}
    assert contents(list_images([f"{bucket}/p/0.png"])) == {"0": picture(2)}
    with pytest.raises(InputError, match=f"{bucket}/gone: no such file"):
        list_images([f"{bucket}/gone"])


def test_listing_survives_json(tmp_path: Path) -> None:
    write_tar(tmp_path / "sa.tar", SA1B)
    for ref in list_images([f"{tmp_path}/sa.tar"]):
        assert PhotoFile(**json.loads(json.dumps(asdict(ref)))) == ref
