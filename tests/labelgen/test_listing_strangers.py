"""Folders, lists and archives as strangers have them: nothing hangs, nothing is lost without a word."""

from __future__ import annotations

import os
import socket
import tarfile
import warnings
import zipfile
from pathlib import Path

import pytest

from strangers import lay_out, listed, picture, write_tar
from sum_factory.labelgen.keys import key_of
from sum_factory.labelgen.listing import NAMED_AGAIN, list_photos
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.shared import photo_files
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.photo_files import read_bytes, read_listed

# Only regular files


def test_only_regular_files_are_photos(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "tape.tar").symlink_to("/dev/zero")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.jpg"))
    passed_over = PassedOver()
    found = list(list_photos([str(tmp_path)], passed_over=passed_over))
    assert [photo.key for photo in found] == ["a", "gone"]  # a photo that is gone is its own error, by its name
    (note,) = passed_over.notes()
    assert note.startswith("passed over: 5 are no regular files")
    assert f"{tmp_path}/circle.jpg" in note


@pytest.mark.parametrize("name", ["fifo.jpg", "fifo.tar", "fifo.txt", "zero.jpg", "list.txt"])
def test_what_is_named_and_no_regular_file_is_refused(tmp_path: Path, name: str) -> None:
    for fifo in ("fifo.jpg", "fifo.tar", "fifo.txt"):
        os.mkfifo(tmp_path / fifo)
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "list.txt").write_text("zero.jpg\n")
    expected = r"list\.txt, line 1: zero\.jpg: expected" if name == "list.txt" else rf"{name}: not a regular file"
    with pytest.raises(InputError, match=expected):
        list(list_photos([f"{tmp_path}/{name}"]))


def test_photo_that_became_something_else_is_its_own_error(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    photos = list(list_photos([str(tmp_path)]))
    for photo in photos:
        os.unlink(photo.url)
    os.mkfifo(photos[0].url)
    os.symlink("/dev/zero", photos[1].url)
    os.symlink("c.jpg", photos[2].url)
    for photo, why in zip(photos, ("not a regular file", "not a regular file", "cannot be opened"), strict=True):
        with pytest.raises(ImageError, match=why):
            read_listed(photo)


def test_file_that_is_larger_than_any_photo_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(photo_files.MAX_BYTES + 1)
    (photo,) = list_photos([str(tmp_path)])
    with pytest.raises(ImageError, match=r"a\.jpg: 2147483649 bytes, and photos of more than"):
        read_bytes(photo)


# Names


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "heic", "heif", "jp2", "tga", "JPG", "Heic", "PNG", "pgm"])
def test_photos_are_known_by_every_suffix_they_have(tmp_path: Path, suffix: str) -> None:
    lay_out(tmp_path, f"a.{suffix}")
    assert listed(tmp_path) == ({"a": picture(0)}, [])


def test_kinds_of_files_that_are_left_out_are_counted(tmp_path: Path) -> None:
    lay_out(tmp_path, "a.jpg", "a.json", "b.JSON", "c.mp4", "README", "d.strange_suffix", "e.tar.gz", "f.TGZ", "g.zip")
    found, notes = listed(tmp_path)
    assert list(found) == ["a"]
    counted, packed, zipped = notes
    assert counted == "5 files were passed over, being no photos: 2 .json, 2 without a suffix, 1 .mp4"
    assert packed == (
        f"passed over: 2 are archives in which photos cannot be read one by one, such as {tmp_path}/e.tar.gz"
    )
    assert zipped.startswith("passed over: 1 are zips, which are read where --images names them")
    with pytest.raises(InputError, match=r"no images there; .*1 files were passed over, being no photos: 1 \.mp4"):
        listed_alone(tmp_path / "films", "a.mp4")


def listed_alone(folder: Path, name: str) -> None:
    lay_out(folder, name)
    list(list_photos([str(folder)]))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.TGZ", "a.tar.zst", "a.7z"])
def test_packed_archive_is_refused_by_what_to_do(tmp_path: Path, name: str) -> None:
    lay_out(tmp_path, name)
    with pytest.raises(InputError, match=rf"{name}: an archive in which photos cannot be read one by one; unpack it"):
        list(list_photos([f"{tmp_path}/{name}"]))


def test_tars_lists_and_zips_are_known_in_capitals(tmp_path: Path) -> None:
    write_tar(tmp_path / "A.TAR", {"a.png": picture(1)})
    with zipfile.ZipFile(tmp_path / "B.ZIP", "w") as archive:
        archive.writestr("b.png", picture(2))
    (tmp_path / "C.TXT").write_text("A.TAR\nB.ZIP\n")
    both = {"a": picture(1), "b": picture(2)}
    assert listed(tmp_path / "A.TAR", tmp_path / "B.ZIP")[0] == listed(tmp_path / "C.TXT")[0] == both


def test_members_of_a_zip_that_share_a_name_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for name, grey in (("d/a.png", 1), ("d/a.png", 2), ("d/a.png", 3), ("b.png", 4), ("n.txt", 5), ("n.txt", 6)):
            archive.writestr(name, picture(grey))
    for place, found in (("p.zip", {"d/a": 3, "b": 4}), ("zip://d::p.zip", {"a": 3})):
        where = place.replace("p.zip", f"{tmp_path}/p.zip")
        photos, notes = listed(where)
        assert photos == {key: picture(grey) for key, grey in found.items()}
        (note,) = [note for note in notes if "same name" in note]
        assert note == f"passed over: 2 {NAMED_AGAIN}, such as zip://d/a.png::{tmp_path}/p.zip"


def test_colons_in_a_name_are_no_chain(tmp_path: Path) -> None:
    names = ["a::b.jpg", "zip::c.jpg", "d::e/f.jpg", "g::h.tar", "10:30.jpg"]
    lay_out(tmp_path, *names)
    write_tar(tmp_path / "g::h.tar", {"x::y.png": picture(9)})
    expected = {"a::b": 0, "zip::c": 1, "d::e/f": 2, "10:30": 4, "x::y": 9}
    assert listed(tmp_path)[0] == {key: picture(seed) for key, seed in expected.items()}
    (tmp_path / "list.txt").write_text("a::b.jpg\n./zip::c.jpg\n")
    assert listed(tmp_path / "list.txt")[0] == {"a::b": picture(0), "zip::c": picture(1)}
    assert listed(f"{tmp_path}/a::b.jpg")[0] == {"a::b": picture(0)}


def test_control_characters_of_names_are_escaped_in_keys_and_messages(tmp_path: Path) -> None:
    name = "a\x1b]0;owned\x07\n\u202egpj.jpg"
    lay_out(tmp_path, name)
    (photo,) = list_photos([str(tmp_path)])
    escaped = r"a\x1b]0;owned\x07\x0a\u202egpj"
    assert photo.key == escaped
    assert photo.name == f"{tmp_path}/{escaped}.jpg"
    assert read_bytes(photo) == picture(0)
    with pytest.raises(InputError) as caught:
        list(list_photos([f"{tmp_path}/gone\x1b2J.jpg"]))
    assert r"gone\x1b2J.jpg: no such file" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("/etc/a.jpg", "etc/a"),
        ("../../a.jpg", "a"),
        ("x/../../a.jpg", "a"),
        ("./x//y/./a.b.jpg", "x/y/a.b"),
        ("x/..hidden/a.jpg", "x/..hidden/a"),
        ("//a.jpg", "a"),
    ],
)
def test_keys_never_lead_out_of_where_a_tar_is_unpacked(name: str, key: str) -> None:
    assert key_of(name) == key


# Links


def test_linked_folders_are_entered_once_and_never_in_circles(tmp_path: Path) -> None:
    root, disk = tmp_path / "root", tmp_path / "disk"
    lay_out(root, "b/own.jpg")
    lay_out(disk, "deep/far.jpg", "near.jpg", ".hidden/kept.jpg")
    (root / "a_to_own").symlink_to(root / "b")  # comes first, and still the folder's own name counts
    (root / "disk").symlink_to(disk)
    (root / "again").symlink_to(disk / "deep")
    (disk / "deep" / "up").symlink_to(disk)
    (disk / "back").symlink_to(root)
    (root / "around").symlink_to(tmp_path)
    (root / "hidden").symlink_to(disk / ".hidden")
    found, notes = listed(root)
    assert list(found) == ["again/far", "b/own", "disk/deep/far", "disk/near", "hidden/kept"]
    assert [note.partition(", such")[0] for note in notes] == [
        "passed over: 3 are links to folders that are listed anyway",
        "passed over: 2 are links to folders that they lie in",
    ]


def test_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "a.jpg", "sub/b.jpg")
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"sub: cannot be read \(Permission denied\)"):
        list(list_photos([str(tmp_path)]))


# Lists


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_lists_of_windows_programs_are_read(tmp_path: Path, encoding: str) -> None:
    lay_out(tmp_path, "ä.jpg", "b\x0c\u2028c.jpg")
    (tmp_path / "list.txt").write_bytes("ä.jpg\r\nb\x0c\u2028c.jpg\r\n".encode(encoding))
    assert list(listed(tmp_path / "list.txt")[0].values()) == [picture(0), picture(1)]


def test_list_may_name_folders_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    lay_out(tmp_path, "x/a.jpg", "y/a.jpg", "y/deep/b.jpg")
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(picture(7))
    (tmp_path / "list.txt").write_bytes(b"x\ny/\n" + os.fsencode(f"{tmp_path}/y") + b"\ncaf\xe9.jpg\n")
    expected = {"x/a": 0, "y/a": 1, "y/deep/b": 2, "a": 1, "deep/b": 2, r"caf\xe9": 7}
    assert listed(tmp_path / "list.txt")[0] == {key: picture(seed) for key, seed in expected.items()}


# Tars and zips


def test_links_in_a_tar_are_the_photos_that_they_lead_to(tmp_path: Path) -> None:
    members: dict[str, bytes | tuple[bytes, str]] = {
        "before.png": (tarfile.SYMTYPE, "d/a.png"),
        "d/a.png": picture(1),
        "hard.png": (tarfile.LNKTYPE, "d/a.png"),
        "d/up.png": (tarfile.SYMTYPE, "../b.png"),
        "chain.png": (tarfile.SYMTYPE, "./d/up.png"),
        "b.png": picture(2),
        "gone.png": (tarfile.SYMTYPE, "nowhere.png"),
        "circle.png": (tarfile.SYMTYPE, "circle.png"),
        "outside.png": (tarfile.SYMTYPE, "/etc/passwd"),
    }
    write_tar(tmp_path / "a.tar", members)
    found, notes = listed(tmp_path / "a.tar")
    expected = {"d/a": 1, "b": 2, "before": 1, "hard": 1, "d/up": 2, "chain": 2}
    assert found == {key: picture(seed) for key, seed in expected.items()}
    assert notes == [
        f"passed over: 3 are links in a tar to what is not in it, such as {tmp_path}/a.tar::gone.png",
    ]


def test_tars_that_were_put_together_are_read_to_the_end(tmp_path: Path) -> None:
    one, two = (write_tar(tmp_path / f"{seed}.tar", {f"{seed}.png": picture(seed)}) for seed in (1, 2))
    (tmp_path / "both.tar").write_bytes(one + two)
    (tmp_path / "tail.tar").write_bytes(one + b"no tar" * 100)
    assert listed(tmp_path / "both.tar") == ({"1": picture(1), "2": picture(2)}, [])
    found, (note,) = listed(tmp_path / "tail.tar")
    assert found == {"1": picture(1)}
    assert note == f"passed over: 1 tars are followed by bytes that are no tar, such as {tmp_path}/tail.tar, byte 10240"


def test_names_in_a_tar_that_lead_out_make_safe_keys(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"/abs/a.png": picture(1), "../../b.png": picture(2), "\x1b[31mc.png": picture(3)})
    assert listed(tmp_path / "a.tar")[0] == {"abs/a": picture(1), "b": picture(2), r"\x1b[31mc": picture(3)}


def test_tar_whose_headers_contradict_each_other_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        info = tarfile.TarInfo("short.png")
        info.pax_headers = {"path": "other.png"}
        tar.addfile(info)
    data = bytearray((tmp_path / "a.tar").read_bytes())
    assert b"path=other.png" in data
    with pytest.raises(InputError, match=r"a\.tar: not a whole, uncompressed tar \(two headers tell of"):
        list(list_photos([f"{tmp_path}/a.tar"]))


def test_zip_is_read_like_a_folder(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        names = ["x/a.png", "b.PNG", "__MACOSX/._b.png", "notes.json", "../out.png", "/abs.png", "c::d.png", ".h.png"]
        for seed, name in enumerate(names):
            archive.writestr(name, picture(seed))
    found, notes = listed(tmp_path / "a.zip")
    assert found == {"b": picture(1), "x/a": picture(0)}
    assert notes[0] == "1 files were passed over, being no photos: 1 .json"
    assert notes[1].startswith("passed over: 3 have names that cannot be told in a URL")


def test_damage_in_a_zip_is_that_of_its_photo(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", picture(1))
        archive.writestr("b.png", picture(2))
    data = (tmp_path / "a.zip").read_bytes()
    (tmp_path / "a.zip").write_bytes(data.replace(picture(1), bytes(len(picture(1))), 1))
    damaged, sound = list_photos([f"{tmp_path}/a.zip"])
    with pytest.raises(ImageError, match=r"a\.png::.*a\.zip: cannot be unpacked \(Bad CRC"):
        read_listed(damaged)
    assert read_listed(sound) == picture(2)
    (tmp_path / "a.zip").write_bytes(data[:100])
    with pytest.raises(InputError, match=r"a\.zip: not a whole zip"):
        list(list_photos([f"{tmp_path}/a.zip"]))


def test_encrypted_photos_of_a_zip_are_told_of(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", picture(1))
        archive.writestr("b.png", picture(2))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1
    (tmp_path / "a.zip").write_bytes(data)
    found, (note,) = listed(tmp_path / "a.zip")
    assert found == {"b": picture(2)}
    assert note.startswith("passed over: 1 are encrypted in a zip")


def test_empty_path_is_no_name_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path, "a.png")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="an empty path; is a variable of the shell not set"):
        list(list_photos([""]))


def test_name_with_a_tilde_is_recorded_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path / "~nobody-of-that-name", "a.png")
    monkeypatch.chdir(tmp_path)
    assert [photo.url for photo in list_photos(["~nobody-of-that-name"])] == [f"{tmp_path}/~nobody-of-that-name/a.png"]


def test_list_that_is_no_text_is_refused_by_its_line(tmp_path: Path) -> None:
    (tmp_path / "photos.txt").write_bytes("# photos\na.png\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"photos\.txt, line \d: not a text"):
        list(list_photos([str(tmp_path / "photos.txt")]))


def test_folders_deeper_than_calls_may_be_nested_are_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = 1_200
    monkeypatch.chdir(tmp_path)
    for _ in range(depth):
        os.mkdir("a")
        os.chdir("a")
    Path("x.png").write_bytes(picture(0))
    try:
        assert [photo.key for photo in list_photos([str(tmp_path)])] == ["a/" * depth + "x"]
    finally:
        # Nothing of Python's deletes a tree that deep: it would stay, and fail whoever tidies up later.
        Path("x.png").unlink()
        for _ in range(depth):
            os.chdir("..")
            os.rmdir("a")
