"""What lets the bearer of a URL in is never recorded or told, and all else of a URL is."""

from __future__ import annotations

import json
import pickle

import pytest

from sum_factory.shared.credentials import concealed, has_credentials, without_credentials
from sum_factory.shared.errors import ShardError, StorageError, SumError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.places import joined, parent_of
from sum_factory.shared.relocation import Relocation
from sum_factory.shared.shards.dataset import Unit
from sum_factory.shared.shards.selection.plan import base_url, stored_url
from sum_factory.shared.store.storage import Storage

SECRET = "S3CR3T"
AWS = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIA%2F{SECRET}&X-Amz-Date=2026&X-Amz-Signature={SECRET}"
AZURE = f"sv=2022-11-02&ss=b&srt=sco&sp=rl&se=2027-01-01T00:00:00Z&spr=https&sig={SECRET}%3D"
CLEAN = {
    f"https://me:{SECRET}@host/a.jpg": "https://host/a.jpg",
    f"https://{SECRET}@host:8080/a.jpg": "https://host:8080/a.jpg",
    f"https://me:{SECRET}/x@host/a.jpg": "https://host/a.jpg",
    f"ftp://me:{SECRET}@host/a": "ftp://host/a",
    f"s3://AKIA:{SECRET}@bucket/a@2x.jpg": "s3://bucket/a@2x.jpg",
    f"https://b.s3.amazonaws.com/a.jpg?{AWS}": "https://b.s3.amazonaws.com/a.jpg",
    f"https://h/a.jpg?id=7&{AWS}&w=3": "https://h/a.jpg?id=7&w=3",
    f"https://acc.blob.core.windows.net/c/a.jpg?{AZURE}": "https://acc.blob.core.windows.net/c/a.jpg",
    f"https://h/a?AWSAccessKeyId={SECRET}&Signature={SECRET}&Expires=17": "https://h/a",
    f"https://h/a?GoogleAccessId={SECRET}&Expires=17&Signature={SECRET}": "https://h/a",
    f"https://h/a?X-Goog-Signature={SECRET}&X-Goog-Expires=9": "https://h/a",
    f"https://h/a?token={SECRET}": "https://h/a",
    f"https://h/a?Access_Token={SECRET};page=2": "https://h/a?page=2",
    f"https://h/a?api_key={SECRET}&key={SECRET}&password={SECRET}": "https://h/a",
    f"https://h/a#access_token={SECRET}": "https://h/a",
    f"https://h/a?%73ig={SECRET}": "https://h/a",
    f"https://h/a?from=https%3A%2F%2Fme%3A{SECRET}%40x%2Fb": "https://h/a",
    f"https://h/a;token={SECRET}/b.jpg": "https://h/a/b.jpg",
    f"https://h/a?token%3D{SECRET}": "https://h/a",
    f"https://h/a?{SECRET}{'x' * 16}": "https://h/a",
    f"https://h/a#{SECRET}": "https://h/a",
    f"HTTPS://h/a?key={SECRET}": "HTTPS://h/a",
    f"https://h/x::y.jpg?token={SECRET}": "https://h/x::y.jpg",
    f"http://[::1]:9000/a?X-Amz-Signature={SECRET}": "http://[::1]:9000/a",
    f"https://h/a?hdnea=exp=1~hmac={SECRET}": "https://h/a",
    f"https://h/a?subscription-key={SECRET}&PHPSESSID={SECRET}&ticket={SECRET}&oauth={SECRET}": "https://h/a",
    f"zip://a.jpg::https://me:{SECRET}@host/p.zip": "zip://a.jpg::https://host/p.zip",
    f"simplecache::https://h/x.tar?sig={SECRET}": "simplecache::https://h/x.tar",
}
UNCHANGED = (
    "/data/a.jpg",
    "/data/me:x@host/a?sig=1.jpg",
    "file:///data/a?sig=1",
    "https://host/a.jpg?id=7&size=large",
    "https://host:8080/a@2x.jpg",
    "https://h/a?expires=soon&se=1",
    "s3://bucket/a?key=7",
    "abfs://container@account.dfs.core.windows.net/a.jpg",
    "zip://a.jpg::/data/p.zip",
    "zip://a@2x.jpg::/data/p.zip",
    "zip://t:x/y@z?key=9.jpg::/data/p.zip",
    "https://h/a;v=1/b.jpg",
    "https://h/a?raw",
)


@pytest.mark.parametrize(("url", "clean"), CLEAN.items())
def test_credentials_are_taken_out_and_the_rest_stays(url: str, clean: str) -> None:
    assert without_credentials(url) == clean
    assert has_credentials(url)
    assert not has_credentials(clean)


@pytest.mark.parametrize("url", UNCHANGED)
def test_what_has_none_is_returned_as_it_is(url: str) -> None:
    assert without_credentials(url) is url or without_credentials(url) == url
    assert not has_credentials(url)


@pytest.mark.parametrize(("url", "clean"), CLEAN.items())
@pytest.mark.parametrize(
    "text", ["{}", "{}: missing", "cannot read '{}', and \"{}\"; ({}).", "URL('{}')\n<{}>", "a={}, b"]
)
def test_texts_have_none(url: str, clean: str, text: str) -> None:
    assert concealed(text.replace("{}", url)) == text.replace("{}", clean)
    assert concealed(json.dumps({"at": text.replace("{}", url)})) == json.dumps({"at": text.replace("{}", clean)})


def test_parameters_of_a_signature_are_taken_out_of_a_text_without_a_url() -> None:
    assert concealed(f"GET /a?X-Amz-Signature={SECRET}&AWSAccessKeyId={SECRET}") == (
        "GET /a?X-Amz-Signature=...&AWSAccessKeyId=..."
    )
    assert concealed("--set token=3, sig=x") == "--set token=3, sig=x"


@pytest.mark.parametrize("kind", [SumError, ShardError, StorageError])
def test_no_message_of_ours_has_any(kind: type[SumError]) -> None:
    error = kind(f"https://me:{SECRET}@host/a?sig={SECRET}: missing")
    assert str(error) == "https://host/a: missing"
    assert repr(pickle.loads(pickle.dumps(error))) == repr(error)


def test_folder_is_called_by_its_address_without_them_and_read_by_it() -> None:
    storage = Storage(f"memory://me:{SECRET}@host/set")
    storage.write("a", b"x")
    assert storage.read("a") == b"x"
    assert (storage.url, storage.path("a")) == ("memory://host/set", "memory://host/set/a")
    assert SECRET not in str(PhotoFile("a", f"https://me:{SECRET}@h/x.tar", "a.jpg").name)
    with pytest.raises(FileNotFoundError):
        Storage(storage.url).read("a")


def test_plan_records_none_and_keeps_its_id() -> None:
    unit = Unit(0, (PhotoFile("a", f"https://h/a.jpg?{AWS}", size=3), PhotoFile("b", "/b.jpg", size=4)))
    assert SECRET.encode() not in unit.to_json()
    read = Unit.from_json(unit.to_json(), "")
    assert read == unit.recorded() != unit
    assert read.id == unit.id
    assert read.recorded() is read


def test_photos_are_found_again_by_what_is_recorded_and_given_anew() -> None:
    given = f"https://h/photos=https://me:{SECRET}@h/photos"
    assert Relocation.parse([given]).moved("https://h/photos/x/a.jpg") == f"https://me:{SECRET}@h/photos/x/a.jpg"
    signed = f"https://h/photos=https://h/photos?{AZURE}"
    assert Relocation.parse([signed]).moved("https://h/photos/x/a.jpg") == f"https://h/photos/x/a.jpg?{AZURE}"
    both = f"https://me:{SECRET}@h/photos=/here"
    assert Relocation.parse([both]).moved("https://h/photos/a.jpg") == "/here/a.jpg"


def test_names_stand_before_what_a_web_server_is_asked() -> None:
    assert joined("https://h/x?sig=1", "a.jpg") == "https://h/x/a.jpg?sig=1"
    assert joined("https://h/x?sig=1", "a.jpg?sig=2") == "https://h/x/a.jpg?sig=2"
    assert parent_of("https://h/x/list.txt?sig=1") == "https://h/x?sig=1"
    assert joined("s3://bucket/x?y", "a") == "s3://bucket/x?y/a"


def test_selection_names_its_base_without_them_and_opens_it_with_its_own() -> None:
    base, selection = f"https://me:{SECRET}@h/sets/one", f"https://me:{SECRET}@h/sets/sure"
    assert stored_url(base, selection) == "../one"
    assert base_url("../one", selection) == base
    assert stored_url(base, "/data/sure") == "https://h/sets/one"


def test_password_with_a_quote_is_concealed() -> None:
    assert concealed(f"cannot read 'https://me:{SECRET}'x@host/a'") == "cannot read 'https://host/a'"
