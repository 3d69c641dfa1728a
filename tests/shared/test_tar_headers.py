"""Headers are read as ``tarfile`` reads those of sound tars; those that lie are named, and never end the program."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sum_factory.shared.tar_headers import FILE, HARD_LINK, SYMBOLIC_LINK, TarFault, TarMember, read_members

BLOCK = 512


def block(name: str, size: int | bytes = 0, kind: bytes = tarfile.REGTYPE, link: str = "", pax: bytes = b"") -> bytes:
    """Return a header by hand, with the checksum that it asks for; ``pax`` is what follows it."""
    field = size if isinstance(size, bytes) else b"%011o\0" % size
    header = bytearray(BLOCK)
    header[: len(name)] = name.encode()
    header[100:108], header[124:136], header[156:157] = b"0000644\0", field, kind
    header[157 : 157 + len(link)] = link.encode()
    header[257:265] = b"ustar\x0000"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + pax + bytes(-len(pax) % BLOCK)


def record(keyword: bytes, value: bytes) -> bytes:
    length = len(keyword) + len(value) + 3
    while len(str(length)) + len(keyword) + len(value) + 3 != length:
        length += 1
    return b"%d %s=%s\n" % (length, keyword, value)


def extended(*records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    data = b"".join(records)
    return block("pax", len(data), kind, pax=data)


def members(data: bytes) -> list[object]:
    return list(read_members(io.BytesIO(data), len(data)))


def files(data: bytes) -> list[tuple[str, int, int]]:
    found = [member for member in members(data) if isinstance(member, TarMember)]
    return [(member.name, member.offset, member.size) for member in found if member.kind == FILE]


NEGATIVE = b"\xff" * 8 + struct.pack(">i", -1536)
END = bytes(2 * BLOCK)
PHOTO = block("a.jpg", 3, pax=b"abc")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"?"])
def test_negative_size_is_a_fault_and_no_endless_loop(kind: bytes) -> None:
    assert tarfile.TarInfo.frombuf(block("a", NEGATIVE, kind), "utf-8", "strict").size < 0
    with pytest.raises(TarFault, match=r"tells of -1536 bytes, at byte 1024"):
        members(PHOTO + block("a.jpg", NEGATIVE, kind) + END)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (extended(record(b"path", b"b.jpg")) * 9 + PHOTO + END, "an extended header without end"),
        (extended(record(b"path", b"b.jpg")) * 9999 + PHOTO + END, "an extended header without end"),
        (block("x", 5 << 20, tarfile.XHDTYPE) + END, "an extended header without end"),
        (extended(record(b"path", b"b.jpg")) + END, "an extended header without its member"),
        (extended(record(b"size", b"-512")) + PHOTO + END, r"tells of '-512' bytes"),
        (extended(record(b"size", b"9" * 30)) + PHOTO + END, r"tells of '9{20}' bytes"),
        (extended(record(b"size", b"1")) + PHOTO + END, "two headers tell of 3 and of 1 bytes"),
        (extended(b"999 path=b.jpg\n") + PHOTO + END, "a damaged extended header"),
        (extended(b"0 path=b.jpg\n") + PHOTO + END, "a damaged extended header"),
        (extended(b"9" * 5000) + PHOTO + END, "a damaged extended header"),
        (extended(b"14 path b.jpg\n") + PHOTO + END, "a damaged extended header"),
        (extended(record(b"path", b"b.jpg"), kind=tarfile.XGLTYPE) + PHOTO + END, "for all members"),
        (block("a.jpg", 1 << 20) + END, "goes on beyond the end"),
        (PHOTO + b"\xaa" * BLOCK + END, "no end mark and no header at byte 1024"),
        (PHOTO, "no end mark at byte 1024"),
        (b"", "no end mark at byte 0"),
    ],
)
def test_what_lies_is_a_fault(data: bytes, fault: str) -> None:
    with pytest.raises(TarFault, match=fault):
        members(data)


def test_extended_headers_are_believed_where_they_do_not_contradict() -> None:
    long, foreign = "x" * 300 + ".jpg", "écran \N{NARROW NO-BREAK SPACE}1.jpg"
    comment = extended(record(b"comment", b"of all"), kind=tarfile.XGLTYPE)
    name = extended(record(b"path", foreign.encode()), record(b"size", b"3"), record(b"mtime", b"1.5"))
    gnu = block("@", len(long) + 1, tarfile.GNUTYPE_LONGNAME, pax=long.encode() + b"\0")
    found = files(comment + name + PHOTO + gnu + PHOTO + END)
    assert [name for name, _, _ in found] == [foreign, long]
    assert [(offset, size) for _, offset, size in found] == [(5 * BLOCK, 3), (9 * BLOCK, 3)]


def test_tars_one_after_the_other_are_all_read() -> None:
    one, two = PHOTO + END + bytes(17 * BLOCK), block("b.jpg", 600, pax=bytes(600)) + END
    assert [name for name, _, _ in files(one + two + one)] == ["a.jpg", "b.jpg", "a.jpg"]


def test_bytes_behind_the_end_mark_that_are_no_tar_are_told_of() -> None:
    *_, last = members(PHOTO + END + b"signature" * 100)
    assert not isinstance(last, TarMember)
    assert last.at == 4 * BLOCK  # type: ignore[attr-defined]


def test_links_and_what_has_no_data_are_passed() -> None:
    hard = block("b.jpg", 3, tarfile.LNKTYPE, "a.jpg")
    symbolic = block("d/c.jpg", 0, tarfile.SYMTYPE, "../a.jpg")
    data = PHOTO + hard + symbolic + block("d/", 0, tarfile.DIRTYPE) + block("p", 0, tarfile.FIFOTYPE) + PHOTO + END
    found = [member for member in members(data) if isinstance(member, TarMember)]
    assert [member.kind for member in found if member.link] == [HARD_LINK, SYMBOLIC_LINK]
    assert [member.link for member in found if member.link] == ["a.jpg", "../a.jpg"]
    assert len(files(data)) == 2


def written(write: Callable[[tarfile.TarFile], object], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        write(tar)
    return buffer.getvalue()


@settings(deadline=None)
@given(
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.lists(st.tuples(st.text("aé.x写", min_size=1, max_size=30), st.integers(0, 3000)), max_size=5),
)
def test_members_are_those_that_tarfile_finds(form: int, entries: list[tuple[str, int]]) -> None:
    def write(tar: tarfile.TarFile) -> None:
        for name, size in entries:
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))

    data = written(write, form)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        expected = [(member.name, member.offset_data, member.size) for member in tar if member.isfile()]
    assert files(data) == expected


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, 5 * BLOCK), st.integers(0, 255)), max_size=8), st.booleans())
def test_damaged_tars_raise_nothing_but_their_fault(changes: list[tuple[int, int]], repair: bool) -> None:
    data = bytearray(extended(record(b"path", b"b.jpg"), record(b"size", b"3")) + PHOTO + END)
    for place, value in changes:
        data[place % len(data)] = value
    for start in (0, 2 * BLOCK) if repair else ():  # headers that are sound for all that their checksums say
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + BLOCK])
    try:
        members(bytes(data))
    except TarFault as fault:
        assert "byte" in str(fault)  # noqa: PT017
