"""The files of photos as other software reads them: as they are if that is plain enough, else written anew."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import PurePosixPath

from PIL import Image

from sum_factory.labelgen.sets.formats.format import PhotoCopy
from sum_factory.shared.images import RgbImage, open_photo
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.originals import is_stretched, original_of, read_original
from sum_factory.shared.shards.shard_set import ShardSet

JPEG, PNG = ".jpg", ".png"
PLAIN = {"JPEG": JPEG, "MPO": JPEG, "PNG": PNG}
"""Kinds of files that everybody reads, and what their names end with."""
AS_PNG = "photos are copied as PNG: EXIF turns them, or they are of another kind than JPEG and PNG of 8 bits"
AS_JPEG = "photos are copied as JPEG of quality 95, as VOC has no others"
QUALITY = 95


def copy_of(shards: ShardSet, photo: PhotoFile, sha256: str | None, lost: Counter[str], jpeg: bool) -> PhotoCopy:
    """Read a photo of a plan, upright and in the size of its masks. With ``jpeg``, it is one in any case.

    ``lost`` counts those that are written anew. Raises as ``decode_original``.
    """
    data = read_original(shards, photo, sha256)
    opened = open_photo(data, original_of(shards, photo).name, is_stretched(shards))
    suffix = _plain_suffix(data)
    if suffix is not None and not opened.is_turned and not opened.is_deep and not (jpeg and suffix != JPEG):
        return PhotoCopy(data, suffix)
    lost[AS_JPEG if jpeg else AS_PNG] += 1
    return PhotoCopy(_encoded(opened.decode().pixels, jpeg), JPEG if jpeg else PNG)


def name_of(photo: PhotoFile) -> str:
    """Return what the file of a photo is called, without folders."""
    return PurePosixPath(photo.member or photo.url.partition("::")[0].partition("?")[0]).name


def _plain_suffix(data: bytes) -> str | None:
    with Image.open(io.BytesIO(data)) as image:
        return (
            PLAIN.get(image.format or "") if image.mode in ("RGB", "L") and "transparency" not in image.info else None
        )


def _encoded(pixels: RgbImage, jpeg: bool) -> bytes:
    buffer = io.BytesIO()
    if jpeg:
        Image.fromarray(pixels).save(buffer, "jpeg", quality=QUALITY, subsampling=0)
    else:
        Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
