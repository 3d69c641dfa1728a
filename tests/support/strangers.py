"""Photos, tars and what a listing finds in them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from PIL import Image

from sum_factory.labelgen.keys import Keys
from sum_factory.labelgen.listing import list_photos
from sum_factory.labelgen.passed_over import PassedOver
from sum_factory.shared.photo_files import read_listed


def picture(seed: int) -> bytes:
    """Return the bytes of a small photo that differs from those of other seeds."""
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7), (seed, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def lay_out(folder: Path, *names: str) -> None:
    """Write a photo under each name, of its place among them."""
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(seed))


def listed(*places: Path | str) -> tuple[dict[str, bytes], list[str]]:
    """Return the bytes of each photo by its key, and what is told of those that were left out."""
    keys, passed_over = Keys(), PassedOver()
    photos = [
        replace(photo, key=keys.take(photo.key)) for photo in list_photos(map(str, places), keys.reserve, passed_over)
    ]
    return {photo.key: read_listed(photo) for photo in photos}, list(passed_over.notes())


def write_tar(path: Path, members: Mapping[str, bytes | tuple[bytes, str]]) -> bytes:
    """Write a tar: a member is its bytes, or a type and what it links to."""
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = content
                tar.addfile(info)
    return path.read_bytes()
