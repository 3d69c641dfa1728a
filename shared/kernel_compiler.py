"""Numba's compiler, with a place for what it compiles, wherever the package is installed.

Numba keeps compiled code where NUMBA_CACHE_DIR says, else beside the module, else in the user's cache, and raises where
it may write to none of these: in a container, say, that is read-only and runs as a user without a home. There a folder
of our own below the temporary one takes their place. If there is none either, nothing is kept, and each process
compiles anew, which takes seconds.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numba


def kernel_compiler(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that compiles a function as ``numba.njit`` does with ``options``, at its first call."""

    def compile_kernel(function: Callable[..., Any]) -> Any:
        with suppress(_NoPlaceError), _told_apart():
            return numba.njit(cache=True, **options)(function)
        folder = own_folder()
        if folder is not None:
            with suppress(_NoPlaceError), _told_apart(), _cache_in(folder):
                return numba.njit(cache=True, **options)(function)
        return numba.njit(**options)(function)

    return compile_kernel


def own_folder() -> str | None:
    """Return a folder below the temporary one that only this user can read and write, or None. It is made if need be.

    What lies there is run, so what is there already is not taken if it is a link, somebody else's, or open to others.
    """
    try:
        folder = os.path.join(tempfile.gettempdir(), f"sum-factory-kernels-{os.geteuid()}")
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
    except OSError:
        return None
    is_own = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not stat.S_IMODE(found.st_mode) & 0o077
    return folder if is_own else None


class _NoPlaceError(Exception):
    """Numba found no place for compiled code."""


@contextmanager
def _told_apart() -> Iterator[None]:
    """Raise ``_NoPlaceError`` for that one of Numba's ``RuntimeError``s which says that there is no place."""
    try:
        yield
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        raise _NoPlaceError from error


@contextmanager
def _cache_in(folder: str) -> Iterator[None]:
    """Have functions that are decorated meanwhile keep their compiled code below ``folder``, as by NUMBA_CACHE_DIR."""
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = folder
    try:
        yield
    finally:
        config.CACHE_DIR = before
