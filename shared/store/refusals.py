"""What a file system says no with, in plain words: which file, why, and what to do.

A local disk raises ``OSError``. The libraries behind remote file systems raise kinds of their own beside it (botocore
alone has dozens), so from a remote URL every exception counts as a refusal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sum_factory.shared.errors import SumError

LOCAL_PROTOCOLS = ("file", "local")
REMEDY_FOR_DISK = "check the path, its permissions and the free space"
REMEDY_FOR_CREDENTIALS = (
    "check the credentials, and what they allow (for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
)
REMEDY_FOR_CONNECTION = "check the network and the address of the store (for S3: AWS_ENDPOINT_URL)"
REMEDY_FOR_MISSING = "check the URL, and that the bucket is there"
REMEDY_FOR_STORE = "check the URL, the credentials and the network"
_CREDENTIALS = ("Credential", "Permission", "Profile", "Token", "Forbidden", "Unauthorized", "Authentication")
_CONNECTION = ("Connect", "Timeout", "Gateway", "HTTPClient", "ServerDisconnected")
"""Words in the names of exception classes, of any library."""


def is_remote(url: str) -> bool:
    """Return whether a path or URL is on another kind of file system than a local disk."""
    protocol, separator, _ = url.partition("://")
    return bool(separator) and protocol not in LOCAL_PROTOCOLS


def is_refusal(error: Exception, url: str) -> bool:
    """Return whether an error from work on a file at ``url`` is the file system's, and not one that we raised."""
    return isinstance(error, OSError) or (is_remote(url) and not isinstance(error, SumError))


def reason_of(error: Exception) -> str:
    """Return why a file system refused, in one line."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(str(reason).split())


def is_about_one_file(error: Exception, url: str) -> bool:
    """Return whether a refusal to read ``url`` says something of this file, and not of the store that it is in."""
    if isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError)):
        return True
    return isinstance(error, PermissionError) and not is_remote(url)


def remedy_of(error: Exception, url: str) -> str:
    """Return what a user can do about a refusal."""
    if not is_remote(url):
        return REMEDY_FOR_DISK
    if isinstance(error, ImportError):
        return "install what reads such URLs (for S3: pip install s3fs)"
    kinds = [kind.__name__ for kind in type(error).__mro__]
    for words, remedy in ((_CREDENTIALS, REMEDY_FOR_CREDENTIALS), (_CONNECTION, REMEDY_FOR_CONNECTION)):
        if any(word in kind for kind in kinds for word in words):
            return remedy
    return REMEDY_FOR_MISSING if isinstance(error, FileNotFoundError) else REMEDY_FOR_STORE


@contextmanager
def explained(url: str, name: str, kind: type[SumError], outage: type[SumError] | None = None) -> Iterator[None]:
    """Turn a refusal to read ``url`` into a ``kind`` that says so of ``name`` and tells why.

    One that is not about this file but about its store becomes an ``outage``, if that is given.
    """
    try:
        yield
    except Exception as error:
        if not is_refusal(error, url):
            raise
        remedy = f"; {remedy_of(error, url)}" if is_remote(url) else ""
        raised = kind if outage is None or is_about_one_file(error, url) else outage
        raise raised(f"{name}: cannot be read ({reason_of(error)}){remedy}") from error
