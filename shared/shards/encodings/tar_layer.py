"""A unit of a layer as a WebDataset tar with fixed bytes, and random access into it by offset.

Each image is one sample of two members: ``KEY.labels``, ``KEY.uncertainty``, ``KEY.logits`` or ``KEY.embeddings`` (the
blobs of its masks, or crops, one after the other) or ``KEY.jpg`` (the photo), and ``KEY.json`` (what is known of the
image and its masks; the lengths that cut the first). A photo that could not be read has no ``KEY.jpg``, since a reader
would take an empty one for a photo. In member names the characters ``%`` and ``.`` of a key are percent-encoded, since
WebDataset ends a key at the first dot.
"""

from __future__ import annotations

import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import unit_name
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.kinds.kind import LayerKind
from sum_factory.shared.store.records import Record, whole_number

META = "json"


def tar_path(layer: str, number: int) -> str:
    """Return the path of a unit's data inside the shard set."""
    return f"{layer}/{unit_name(number)}.tar"


def tar_unit(name: str) -> tuple[str, int] | None:
    """Return of which layer and unit a file of this name is the tar, or None if it is none."""
    matched = re.fullmatch(r"(?P<layer>.+)/(?P<number>[0-9]{6,8})\.tar", name)
    if matched is None or name != tar_path(matched["layer"], int(matched["number"])):
        return None
    return matched["layer"], int(matched["number"])


def sample_key(key: str) -> str:
    """Return an image key as a WebDataset key, without dots."""
    return key.replace("%", "%25").replace(".", "%2E")


class _Buffer(io.BytesIO):
    """A file in memory that stays open: an unfinished tar still writes its end to it when Python deletes the writer."""

    def close(self) -> None:
        """Do nothing."""


class TarEncoder:
    """A ``LayerEncoder`` of tars, which webdataset writes; equal blobs give equal bytes."""

    columns = ()

    def __init__(self, layer: str) -> None:
        from webdataset import TarWriter  # which imports torch

        self._kind, self._buffer = kind_of(layer), _Buffer()
        fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
        self._writer = TarWriter(self._buffer, **fixed, encoder=False, format="PAX_FORMAT")
        self._extents: list[dict[str, Any]] = []

    def add(self, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]) -> None:
        """Add the masks of an image: see ``LayerEncoder``."""
        offset = 0
        if blobs or self._kind.has_empty_member:
            offset = self._write(key, self._kind.member, b"".join(blobs))
        described = {**meta, "key": key, "length": [len(blob) for blob in blobs]}
        self._write(key, META, json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
        for blob in blobs:
            self._extents.append({"offset": offset, "length": len(blob), "crc32": zlib.crc32(blob)})
            offset += len(blob)

    def finish(self) -> tuple[tuple[bytes, ...], list[dict[str, Any]]]:
        """Return the tar, and the extent in it of each blob."""
        self._writer.close()
        return (self._buffer.getvalue(),), self._extents

    def _write(self, key: str, member: str, data: bytes) -> int:
        """Add a member; return the offset of its data in the tar."""
        self._writer.write({"__key__": sample_key(key), member: data})
        blocks = -(-len(data) // tarfile.BLOCKSIZE)
        return int(self._writer.tarstream.offset) - blocks * tarfile.BLOCKSIZE


def faults_of_tar(layer: str, data: bytes, rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Yield in what a tar differs from the extents in the manifest, whose ``rows`` these are.

    Raises ``ShardError`` if it does not read as a tar.
    """
    masks = [row for row in rows if row["mask"] is not None]
    for row in masks:
        if zlib.crc32(data[row["offset"] : row["offset"] + row["length"]]) != row["crc32"]:
            yield f"mask {row['mask']} of image {row['image']} fails its checksum"
    if sum(len(blobs) for _, blobs in images_of_tar(data, kind_of(layer), name)) != len(masks):
        yield "the tar's members do not hold the masks of the manifest"


def images_of_tar(data: bytes, kind: LayerKind, name: str) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Yield the description and the blobs of every image of a tar of a layer of a kind, in order.

    Raises ``ShardError`` if the tar is damaged. A tar that was cut between two members ends early and raises nothing:
    only its manifest can tell.
    """
    try:
        members = _members(data)
        for path in members:
            if path.endswith(f".{META}"):
                meta = Record.parse(_content(data, members[path]))
                lengths = [whole_number(length, "length", most=len(data)) for length in meta.items("length", len(data))]
                held = f"{path.removesuffix(META)}{kind.member}"
                bare = not lengths and not kind.has_empty_member
                yield dict(meta.entries), _cut(b"" if bare else _content(data, members[held]), lengths)
    except (tarfile.TarError, ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise ShardError(f"{name}: damaged ({ascii(str(error))[:300]}); run `labelgen verify`") from error


class _OnceThrough(io.BytesIO):
    """Bytes of a tar, of which hardly more than all are read in total: a false header may lead back for ever."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = 2 * len(data) + (1 << 16)

    def read(self, size: int | None = -1, /) -> bytes:
        """Read bytes. Raises ``ValueError`` when more have been read than reading all once takes."""
        found = super().read(size)
        self._left -= len(found) or 1
        if self._left < 0:
            raise ValueError("its headers lead back to what has been read")
        return found


def _members(data: bytes) -> dict[str, tarfile.TarInfo]:
    """Return the regular files of a tar by name, which lie one after the other. Raises ``ValueError``."""
    members: dict[str, tarfile.TarInfo] = {}
    end = 0
    with tarfile.open(fileobj=_OnceThrough(data), mode="r:") as tar:
        while (member := tar.next()) is not None:
            if not (member.isreg() and member.size >= 0 and member.offset_data >= end) or member.issparse():
                raise ValueError(f"the member {member.name[:200]!r} is no regular file, or lies within another")
            end = member.offset_data + member.size
            members[member.name] = member
    return members


def _content(data: bytes, member: tarfile.TarInfo) -> bytes:
    content = data[member.offset_data : member.offset_data + member.size]
    if len(content) != member.size:
        raise ValueError(f"{member.name} is cut short")
    return content


def _cut(data: bytes, lengths: list[int]) -> list[bytes]:
    if sum(lengths) != len(data):
        raise ValueError("blobs and their lengths do not match")
    blobs, start = [], 0
    for length in lengths:
        blobs.append(data[start : start + length])
        start += length
    return blobs
