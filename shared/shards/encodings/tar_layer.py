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
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import unit_name
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.kinds.kind import LayerKind

META = "json"


def tar_path(layer: str, number: int) -> str:
    """Return the path of a unit's data inside the shard set."""
    return f"{layer}/{unit_name(number)}.tar"


def tar_unit(name: str) -> tuple[str, int] | None:
    """Return of which layer and unit a file of this name is the tar, or None if it is none."""
    matched = re.fullmatch(r"(?P<layer>.+)/(?P<number>\d{6,})\.tar", name)
    if matched is None or name != tar_path(matched["layer"], int(matched["number"])):
        return None
    return matched["layer"], int(matched["number"])


def sample_key(key: str) -> str:
    """Return an image key as a WebDataset key, without dots."""
    return key.replace("%", "%25").replace(".", "%2E")


@dataclass
class TarWriter:
    """Builds a tar in memory; the bytes depend on what is added and on nothing else."""

    _buffer: io.BytesIO = field(default_factory=io.BytesIO)

    def add(self, name: str, data: bytes) -> int:
        """Add a member; return the offset of its data in the tar."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        self._buffer.write(info.tobuf(tarfile.PAX_FORMAT))
        offset = self._buffer.tell()
        self._buffer.write(data)
        self._buffer.write(bytes(-len(data) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> bytes:
        """Close the tar and return its bytes."""
        self._buffer.write(bytes(2 * tarfile.BLOCKSIZE))
        return self._buffer.getvalue()


def add_sample(
    writer: TarWriter, kind: LayerKind, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]
) -> list[int]:
    """Add an image with its blobs in a layer of a kind; return the offset of each blob in the tar."""
    name = sample_key(key)
    has_member = blobs or kind.is_member_of_none
    start = writer.add(f"{name}.{kind.member}", b"".join(blobs)) if has_member else 0
    described = {**meta, "key": key, "length": [len(blob) for blob in blobs]}
    writer.add(f"{name}.{META}", json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    offsets = []
    for blob in blobs:
        offsets.append(start)
        start += len(blob)
    return offsets


class TarEncoder:
    """A ``LayerEncoder`` of tars."""

    columns = ()

    def __init__(self, layer: str) -> None:
        self._kind, self._writer = kind_of(layer), TarWriter()

    def add(self, key: str, blobs: Sequence[bytes], meta: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Add the masks of an image: see ``LayerEncoder``."""
        offsets = add_sample(self._writer, self._kind, key, blobs, meta)
        return [
            {"offset": offset, "length": len(blob), "crc32": zlib.crc32(blob)}
            for offset, blob in zip(offsets, blobs, strict=True)
        ]

    def finish(self) -> tuple[bytes, ...]:
        """Return the tar."""
        return (self._writer.finish(),)


def faults_of_tar(layer: str, data: bytes, rows: Sequence[Mapping[str, Any]], name: str) -> Iterator[str]:
    """Yield in what a tar differs from the places in the manifest, whose ``rows`` these are.

    Raises ``ShardError`` if it does not read as a tar.
    """
    masks = [row for row in rows if row["mask"] is not None]
    for row in masks:
        if zlib.crc32(data[row["offset"] : row["offset"] + row["length"]]) != row["crc32"]:
            yield f"mask {row['mask']} of image {row['image']} fails its checksum"
    if sum(len(blobs) for _, blobs in read_samples(data, kind_of(layer), name)) != len(masks):
        yield "the tar's members do not hold the masks of the manifest"


def read_samples(data: bytes, kind: LayerKind, name: str) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Yield the description and the blobs of every image of a tar of a layer of a kind, in order.

    Raises ``ShardError`` if the tar is damaged. A tar that was cut between two members ends early and raises nothing:
    only its manifest can tell.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = {member.name: member for member in tar if member.isfile()}
            for path in members:
                if path.endswith(f".{META}"):
                    meta = json.loads(_content(tar, members[path]))
                    held = f"{path.removesuffix(META)}{kind.member}"
                    bare = not meta["length"] and not kind.is_member_of_none
                    yield meta, _cut(b"" if bare else _content(tar, members[held]), meta["length"])
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise ShardError(f"{name}: damaged ({error}); run `labelgen verify`") from error


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "only regular files get here"
    data = file.read()
    if len(data) != member.size:
        raise ValueError(f"{member.name} is cut short")
    return data


def _cut(blob: bytes, lengths: list[int]) -> list[bytes]:
    if sum(lengths) != len(blob):
        raise ValueError("blobs and their lengths do not match")
    blobs, start = [], 0
    for length in lengths:
        blobs.append(blob[start : start + length])
        start += length
    return blobs
