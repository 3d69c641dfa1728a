"""A checksum of a small file inside the file itself: whichever bit of it flips, the file no longer fits.

A sealed file holds, once, the JSON text ``"file_sha256": "<64 hexadecimal digits>"``, which is the SHA-256 of the whole
file with these digits replaced by zeros. Plans, ``dataset.json`` and manifests are sealed; data files need no seal,
since their manifest has their SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

SEAL = "file_sha256"
_ZEROS = b"0" * 64
_BEFORE = f'"{SEAL}": "'.encode()


def with_room(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object with room for the seal of the file that it is written to."""
    return {**record, SEAL: _ZEROS.decode()}


def seal(data: bytes) -> bytes:
    """Fill in the seal of a file, written as JSON with ``": "`` between names and values, that has room for it."""
    start = data.rindex(_BEFORE + _ZEROS) + len(_BEFORE)
    return data[:start] + hashlib.sha256(data).hexdigest().encode() + data[start + len(_ZEROS) :]


def is_sealed(data: bytes) -> bool:
    """Whether a file has a seal. Raises ``ValueError`` if it has one that does not fit."""
    found = data.rfind(_BEFORE)
    if found < 0:
        return False
    start = found + len(_BEFORE)
    end = start + len(_ZEROS)
    digest = hashlib.sha256()
    for piece in (memoryview(data)[:start], _ZEROS, memoryview(data)[end:]):
        digest.update(piece)
    if data[start:end] != digest.hexdigest().encode():
        raise ValueError("its bytes are not those that were written: they do not have the SHA-256 that it names")
    return True


def require_seal(data: bytes) -> None:
    """Raise ``ValueError`` if a file has no seal, or one that does not fit."""
    if not is_sealed(data):
        raise ValueError("it does not name its SHA-256")
