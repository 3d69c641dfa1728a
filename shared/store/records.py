"""JSON that anybody may have written, read entry by entry: each has the type, the form and the size that is expected.

Every fault is a ``ValueError`` that names the entry, such as ``images[3].offset: expected 0 to 4, found -1``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Never

MOST_NESTED = 16
"""Objects and lists inside each other, at most, where any JSON may stand."""
LONGEST_TEXT = 1 << 16
"""Characters of a text, at most."""
LARGEST = (1 << 63) - 1
_DIGEST = re.compile("[0-9a-f]{64}")
_ID = re.compile("[0-9a-f]{32}")


def read_json(data: bytes | str) -> Any:
    """Parse JSON, whose numbers are finite. Raises ``ValueError``, also for what is nested deeper than Python goes."""
    try:
        return json.loads(data, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(name: str) -> Never:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is larger than any number")
    return number


@dataclass(frozen=True)
class Record:
    """A JSON object; ``name`` is what to call it in a message, nothing for that of the file itself."""

    entries: Mapping[str, Any]
    name: str = ""

    @classmethod
    def parse(cls, data: bytes | str) -> Record:
        """Parse a file. Raises ``ValueError`` if it is no JSON object."""
        return cls.of(read_json(data), "")

    @classmethod
    def of(cls, value: Any, name: str) -> Record:
        """Return a value as a record. Raises ``ValueError`` if it is none."""
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'the file'}: expected names and values, found {_shown(value)}")
        return cls(value, name)

    def only(self, names: Collection[str]) -> None:
        """Raise ``ValueError`` if there are entries of other names."""
        other = sorted(self.entries.keys() - {*names})
        if other:
            raise ValueError(f"{self._of(other[0][:80])}: not expected here")

    def value(self, name: str) -> Any:
        """Return an entry, whatever it is. Raises ``ValueError`` if it is missing."""
        if name not in self.entries:
            raise ValueError(f"{self._of(name)}: missing")
        return self.entries[name]

    def number(self, name: str, least: int = 0, most: int = LARGEST) -> int:
        """Return a whole number in a range."""
        return whole_number(self.value(name), self._of(name), least, most)

    def text(self, name: str, form: re.Pattern[str] | None = None, empty: bool = True) -> str:
        """Return a text, which may have to match a form, or to have a character."""
        value = self.value(name)
        if not isinstance(value, str) or len(value) > LONGEST_TEXT or not (value or empty):
            raise ValueError(f"{self._of(name)}: expected a text, found {_shown(value)}")
        if form is not None and not form.fullmatch(value):
            raise ValueError(f"{self._of(name)}: expected {form.pattern}, found {_shown(value)}")
        return value

    def digest(self, name: str) -> str:
        """Return a SHA-256, 64 hexadecimal digits."""
        return self.text(name, _DIGEST)

    def id(self, name: str) -> str:
        """Return an id as ``content_id`` makes them, 32 hexadecimal digits."""
        return self.text(name, _ID)

    def items(self, name: str, most: int = LARGEST) -> list[Any]:
        """Return a list."""
        value = self.value(name)
        if not isinstance(value, list) or len(value) > most:
            raise ValueError(f"{self._of(name)}: expected a list of at most {most}, found {_shown(value)}")
        return value

    def records(self, name: str, most: int = LARGEST) -> Iterator[Record]:
        """Yield the objects of a list."""
        for index, item in enumerate(self.items(name, most)):
            yield Record.of(item, f"{self._of(name)}[{index}]")

    def record(self, name: str) -> Record:
        """Return an object."""
        return Record.of(self.value(name), self._of(name))

    def ids(self, name: str, most: int) -> tuple[str, ...]:
        """Return a list of ids."""
        items = self.items(name, most)
        for index, item in enumerate(items):
            if not isinstance(item, str) or not _ID.fullmatch(item):
                raise ValueError(f"{self._of(name)}[{index}]: expected {_ID.pattern}, found {_shown(item)}")
        return tuple(items)

    def any(self, name: str) -> Mapping[str, Any]:
        """Return an object that may hold any JSON which is not nested more than ``MOST_NESTED`` times."""
        value = self.record(name)
        require_flat(value.entries, value.name)
        return value.entries

    def _of(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def whole_number(value: Any, name: str, least: int = 0, most: int = LARGEST) -> int:
    """Return a whole number in a range. Raises ``ValueError`` for any other value."""
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{name}: expected a whole number from {least} to {most}, found {_shown(value)}")
    return value


def require_flat(value: Any, name: str, depth: int = MOST_NESTED) -> None:
    """Raise ``ValueError`` if JSON is nested more than ``depth`` times, or has numbers of more than 64 bits."""
    if depth < 0:
        raise ValueError(f"{name[:80]}: nested more than {MOST_NESTED} times")
    if isinstance(value, dict):
        for key, item in value.items():
            require_flat(item, f"{name}.{key}", depth - 1)
    elif isinstance(value, list):
        for item in value:
            require_flat(item, name, depth - 1)
    elif type(value) is int and abs(value) > LARGEST:
        raise ValueError(f"{name}: expected a number of 64 bits, found {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'names and values' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if type(value) is int and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
