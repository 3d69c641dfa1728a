"""Names of files as people may see them. A name may hold any byte but two, and a terminal obeys some of them."""

from __future__ import annotations

import re

_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f"
"""The control characters of ASCII and Latin-1 but tab and line feed."""
_TURNING = "\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""What begins a line, or turns the direction of what is written after it."""
_NO_CHARACTERS = "\ud800-\udfff"
"""What Python has for the bytes of a name that are not UTF-8; no file can be written with it."""
_IN_LINES = re.compile(f"[{_CONTROLS}{_TURNING}{_NO_CHARACTERS}]")
_IN_NAMES = re.compile(f"[\t\n{_CONTROLS}{_TURNING}{_NO_CHARACTERS}]")
_BYTES = range(0xDC80, 0xDD00)
"""The characters that stand for bytes 0x80 to 0xff which are not UTF-8."""


def printable(name: str) -> str:
    r"""Return a name in which whatever is no plain character is escaped, as ``\x1b``: control characters, line breaks,
    marks that turn the direction of writing, and bytes that are not UTF-8."""
    return name if name.isascii() and name.isprintable() else _IN_NAMES.sub(_escaped, name)


def printable_lines(text: str) -> str:
    """Return a text as ``printable`` would, but with its line breaks and tabs."""
    return _IN_LINES.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if code in _BYTES:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
