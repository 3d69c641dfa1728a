"""A photo as a plan records it, which anybody may have written: checked before it is one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import require_recorded
from sum_factory.shared.store.records import whole_number

LONGEST_KEY = 1 << 13
"""Characters of the key of a photo, at most."""
_OF_PHOTO = tuple(each.name for each in fields(PhotoFile))


def photo_of(told: Any, entry: str) -> PhotoFile:
    """Return a photo as a plan describes it. Raises ``ValueError``, naming the ``entry``."""
    try:
        photo = PhotoFile(**told)
    except TypeError:
        raise ValueError(f"{entry}: expected {', '.join(_OF_PHOTO)}") from None
    texts = photo.key, photo.url, photo.member, photo.stamp
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{entry}: expected texts for key, url, member and stamp")
    try:
        photo.key.encode()
        for text in texts[1:]:
            text.encode("utf-8", "surrogateescape")  # of a file whose name is not UTF-8
        require_recorded(photo.url)
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from None
    if not 0 < len(photo.key) <= LONGEST_KEY or "\0" in photo.key + photo.member or len(photo.member) > LONGEST_KEY:
        raise ValueError(f"{entry}: expected a key of 1 to {LONGEST_KEY} characters")
    whole_number(photo.offset, f"{entry}.offset")
    if photo.size is not None or photo.member:
        whole_number(photo.size, f"{entry}.size")
    return photo
