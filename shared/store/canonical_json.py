"""JSON values written in one way only: as text to be hashed, and as files."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_id(value: Any) -> str:
    """Return the first 128 bits of the SHA-256 of a JSON value, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def to_json(value: Any) -> bytes:
    """Return a JSON value as stable, readable bytes."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=True) + "\n").encode()
