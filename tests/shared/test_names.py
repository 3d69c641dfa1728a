"""What a name may do to a terminal is escaped, wherever the name goes."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sum_factory.shared.errors import ImageError, SumError
from sum_factory.shared.names import printable, printable_lines
from sum_factory.shared.progress import Speaker, Stage

NAME = "a\x1b[2J\x07\x9b\u202e\udcff\n.jpg"
ESCAPED = r"a\x1b[2J\x07\x9b\u202e\xff\x0a.jpg"


def test_plain_names_stay() -> None:
    for name in ("a b.jpg", "é/写真.jpg", "C:\\x", "\N{NARROW NO-BREAK SPACE}PM.png", "\U0001f469\u200d\U0001f4bb.png"):
        assert printable(name) == name
        assert printable_lines(name) == name


def test_what_is_no_plain_character_is_escaped() -> None:
    assert printable(NAME) == ESCAPED
    assert printable_lines(NAME) == ESCAPED.replace(r"\x0a", "\n")


@given(st.text(st.characters(codec=None)))
def test_no_control_character_is_left_and_all_can_be_written(name: str) -> None:
    shown = printable(name)
    assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in shown)
    shown.encode("utf-8")


@pytest.mark.parametrize("kind", [SumError, ImageError])
def test_errors_show_names_escaped(kind: type[SumError]) -> None:
    assert str(kind(f"{NAME}: gone")) == f"{ESCAPED.replace(chr(92) + 'x0a', chr(10))}: gone"


def test_progress_shows_names_escaped() -> None:
    file = io.StringIO()
    Speaker(timer=False).say("skipped: \x1b[2J", file)
    assert file.getvalue() == "skipped: \\x1b[2J\n"
    assert Stage(f"opening {NAME}").line().startswith(f"opening {ESCAPED}:")
