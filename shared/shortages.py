"""Tell what this machine lacks (memory, open files, threads) from what is wrong with a file: a shortage is nobody's
fault, and is over when others have gone."""

from __future__ import annotations

import errno

_CODES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS)
_WORDS = ("can't allocate memory", "out of memory", "not enough memory", "can't start new thread")
"""What torch and Python say of a shortage in a plain ``RuntimeError``."""
_KINDS = ("OutOfMemoryError",)
"""Kinds of errors of torch and of Ray, which are not imported for this."""


def is_shortage(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, says that the machine or the process lacks something."""
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ in _KINDS:
            return True
        if isinstance(error, OSError) and error.errno in _CODES:
            return True
        if isinstance(error, RuntimeError) and any(words in str(error) for words in _WORDS):
            return True
        error = error.__cause__
    return False
