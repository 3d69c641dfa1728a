"""What the headers of a tar tell of its members, by plain reading of block after block.

``tarfile`` trusts headers: of one that lies it may read the whole file as a name, go back and never end, or call itself
until Python gives up. Here a header's block is still parsed by ``tarfile``; which block is next, and what extended
headers say, is decided here, so every step goes forward and holds a megabyte at most.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = tarfile.BLOCKSIZE
MAX_EXTENDED = 1 << 20
"""Bytes of an extended header: names are shorter."""
MAX_CHAINED = 8
"""Extended headers before one member: there are four kinds."""
FITS_A_HEADER = 8 << 30
"""Sizes below this a plain header can tell, so that an extended one has nothing to add."""
FILE, HARD_LINK, SYMBOLIC_LINK, SPARSE, OTHER = "file", "hard link", "symbolic link", "sparse file", "other"
_KINDS = {
    tarfile.REGTYPE: FILE,
    tarfile.AREGTYPE: FILE,
    tarfile.CONTTYPE: FILE,
    tarfile.LNKTYPE: HARD_LINK,
    tarfile.SYMTYPE: SYMBOLIC_LINK,
    tarfile.GNUTYPE_SPARSE: SPARSE,
}
_WITHOUT_DATA = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
)
_LONG = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}
_OF_ONE_MEMBER = {"path", "linkpath", "size"}
_IS_EXTENDED, _GOES_ON = 482, 504
"""Where a sparse file's header, and each block of its map, says whether another such block follows."""


class Readable(Protocol):
    """A file that can be read at any byte."""

    def seek(self, offset: int, /) -> object: ...

    def read(self, size: int, /) -> bytes: ...


class TarFault(Exception):  # noqa: N818
    """What is wrong with a tar, and at which byte."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member: its name as it is written, and its ``size`` bytes from ``offset`` on. ``link`` is what a link names.

    ``name_in_header`` is what its own header calls it, which may be a part of the name.
    """

    name: str
    kind: str
    offset: int
    size: int
    link: str
    name_in_header: str


@dataclass(frozen=True, slots=True)
class Remainder:
    """What follows the end mark at a byte and is no tar."""

    at: int


def read_members(file: Readable, length: int) -> Iterator[TarMember | Remainder]:
    """Yield the members of a tar of so many bytes, also of several that were put one after the other.

    Raises ``TarFault`` for one that is cut short, compressed, damaged, or whose headers contradict each other.
    """
    at, is_ended = 0, False
    extended: dict[str, str] = {}
    chained = 0
    while True:
        block = _read(file, at, BLOCK)
        if not block.strip(b"\0"):
            if extended:
                raise TarFault(f"an extended header without its member at byte {at}")
            if len(block) < BLOCK:
                if is_ended:
                    return
                raise TarFault(f"no end mark at byte {at}")
            at, is_ended = at + BLOCK, True
            continue
        header = _parsed(block)
        if header is None and is_ended:
            yield Remainder(at)
            return
        if header is None:
            raise TarFault(f"no end mark and no header at byte {at}")
        is_ended = False
        if header.size < 0:
            raise TarFault(f"a header tells of {header.size} bytes, at byte {at}")
        data = at + BLOCK
        if header.type in _LONG or header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE):
            chained += 1
            if header.size > MAX_EXTENDED or chained > MAX_CHAINED:
                raise TarFault(f"an extended header without end at byte {at}")
            extended |= _extension(header, _read(file, data, header.size), at)
            at = data + _whole_blocks(header.size)
            continue
        member, at = _member(file, header, extended, at, data)
        if at >= length + BLOCK:
            raise TarFault(f"a member that goes on beyond the end, at byte {member.offset}")
        extended, chained = {}, 0
        yield member


def _read(file: Readable, at: int, size: int) -> bytes:
    file.seek(at)
    pieces = []
    while size > 0 and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _parsed(block: bytes) -> tarfile.TarInfo | None:
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, OverflowError):
        return None


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _member(
    file: Readable, header: tarfile.TarInfo, extended: dict[str, str], at: int, data: int
) -> tuple[TarMember, int]:
    """Return the member of a header at byte ``at``, and the byte of the next header."""
    kind, size = _KINDS.get(header.type, OTHER), header.size
    if any(keyword.startswith("GNU.sparse.") for keyword in extended):
        kind = SPARSE
    if header.type == tarfile.GNUTYPE_SPARSE:
        data += _length_of_map(file, at, data)
    if "size" in extended:
        size = _size_in(extended["size"], at)
        if size != header.size and size < FITS_A_HEADER:
            raise TarFault(f"two headers tell of {header.size} and of {size} bytes, at byte {at}")
    name = extended.get("path", header.name)
    following = data if header.type in _WITHOUT_DATA else data + _whole_blocks(size)
    link = extended.get("linkpath", header.linkname)
    return TarMember(name, kind, data, size, link, header.name), following


def _length_of_map(file: Readable, at: int, data: int) -> int:
    """Return how many bytes of a sparse file's map follow its header."""
    length, goes_on = 0, _read(file, at, BLOCK)[_IS_EXTENDED] != 0
    while goes_on:
        block = _read(file, data + length, BLOCK)
        length += BLOCK
        goes_on = len(block) == BLOCK and block[_GOES_ON] != 0
    return length


def _extension(header: tarfile.TarInfo, data: bytes, at: int) -> dict[str, str]:
    """Return what an extended header at byte ``at`` says of the next member."""
    if header.type in _LONG:
        return {_LONG[header.type]: _text(data.partition(b"\0")[0])}
    told = dict(_records(data, at))
    if header.type != tarfile.XGLTYPE:
        return told
    if _OF_ONE_MEMBER & told.keys():
        raise TarFault(f"a header for all members gives each the same name or size, at byte {at}")
    return {}


def _records(data: bytes, at: int) -> Iterator[tuple[str, str]]:
    """Yield what the records of an extended header say: each is its own length, a keyword and a value."""
    offset = 0
    while offset < len(data) and data[offset]:
        digits = data[offset : offset + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[offset : offset + length]
        keyword, equals, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) != length or not equals or not value.endswith(b"\n"):
            raise TarFault(f"a damaged extended header at byte {at}")
        yield _text(keyword), _text(value[:-1])
        offset += length


def _size_in(value: str, at: int) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise TarFault(f"a header tells of {value[:20]!r} bytes, at byte {at}")
    return int(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
