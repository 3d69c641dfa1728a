"""What file systems say no with becomes one line that says what to do."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager

import pytest
from aiohttp import ServerDisconnectedError
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)

from sum_factory.shared.errors import InputError, ShardError, SumError, UnreachableError
from sum_factory.shared.store.refusals import (
    REMEDY_FOR_CONNECTION,
    REMEDY_FOR_CREDENTIALS,
    REMEDY_FOR_DISK,
    REMEDY_FOR_MISSING,
    REMEDY_FOR_STORE,
    explained,
    is_refusal,
    is_remote,
    reason_of,
    remedy_of,
)

URL = "s3://bucket/x"


@pytest.mark.parametrize(
    ("url", "remote"),
    [
        ("labels", False),
        ("/data/labels", False),
        ("file:///data/labels", False),
        ("local:///data", False),
        (URL, True),
        ("memory://x", True),
        ("simplecache::s3://bucket/x", True),
    ],
)
def test_disks_and_stores_are_told_apart(url: str, remote: bool) -> None:
    assert is_remote(url) == remote


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (NoCredentialsError(), REMEDY_FOR_CREDENTIALS),
        (PartialCredentialsError(provider="env", cred_var="secret"), REMEDY_FOR_CREDENTIALS),
        (ProfileNotFound(profile="mine"), REMEDY_FOR_CREDENTIALS),
        (PermissionError("Access Denied"), REMEDY_FOR_CREDENTIALS),
        (EndpointConnectionError(endpoint_url="http://nowhere"), REMEDY_FOR_CONNECTION),
        (ConnectTimeoutError(endpoint_url="http://nowhere"), REMEDY_FOR_CONNECTION),
        (ServerDisconnectedError(), REMEDY_FOR_CONNECTION),
        (TimeoutError(), REMEDY_FOR_CONNECTION),
        (FileNotFoundError("The specified bucket does not exist"), REMEDY_FOR_MISSING),
        (ClientError({"Error": {"Code": "Teapot", "Message": "no"}}, "PutObject"), REMEDY_FOR_STORE),
        (OSError(errno.EBUSY, "slow down"), REMEDY_FOR_STORE),
    ],
)
def test_remedy_fits_the_refusal(error: Exception, remedy: str) -> None:
    assert is_refusal(error, URL)
    assert remedy_of(error, URL) == remedy
    assert remedy_of(error, "/data/x") == REMEDY_FOR_DISK
    assert reason_of(error)
    assert "\n" not in reason_of(error)


def test_our_own_errors_and_bugs_on_a_disk_are_no_refusals() -> None:
    assert not is_refusal(ShardError("damaged"), URL)
    assert not is_refusal(TypeError("a bug"), "/data/x")
    assert not is_refusal(NoCredentialsError(), "file:///data/x")
    with pytest.raises(ShardError, match="damaged"):
        raise_in(explained(URL, "a photo", InputError), ShardError("damaged"))
    with pytest.raises(TypeError):
        raise_in(explained("/data/x", "a photo", InputError), TypeError("a bug"))


def test_refusal_is_explained_of_what_was_read() -> None:
    denied, gone = PermissionError("Access Denied"), OSError(errno.ENODEV, "No such device")
    with pytest.raises(InputError, match=r"^a photo: cannot be read \(Access Denied\); check the credentials"):
        raise_in(explained(URL, "a photo", InputError), denied)
    with pytest.raises(InputError, match=r"^a photo: cannot be read \(No such device\)$"):
        raise_in(explained("/data/x", "a photo", InputError), gone)


def raise_in(context: AbstractContextManager[None], error: Exception) -> None:
    with context:
        raise error


@pytest.mark.parametrize(
    ("error", "url", "kind"),
    [
        (FileNotFoundError(2, "No such file or directory"), "/photos/x", InputError),
        (PermissionError(13, "Permission denied"), "/photos/x", InputError),
        (PermissionError(13, "Forbidden"), "s3://photos/x", UnreachableError),
        (FileNotFoundError(2, "No such key"), "s3://photos/x", InputError),
        (OSError(5, "Input/output error"), "/photos/x", UnreachableError),
        (OSError(116, "Stale file handle"), "/photos/x", UnreachableError),
        (TimeoutError("no answer"), "s3://photos/x", UnreachableError),
    ],
)
def test_outage_of_a_store_is_told_from_a_photo_that_is_gone(error: Exception, url: str, kind: type[SumError]) -> None:
    with pytest.raises(SumError) as raised, explained(url, "a photo", InputError, UnreachableError):
        raise error
    assert type(raised.value) is kind
