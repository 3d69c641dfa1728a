"""Stores and disks that do not answer, or not as they should, are named; photos are not blamed for them."""

from __future__ import annotations

import pydoc
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from strangers import lay_out, picture, write_tar
from sum_factory.labelgen import disk_listing, listing, store_listing
from sum_factory.labelgen.listing import list_photos
from sum_factory.shared import deadlines, photo_files
from sum_factory.shared.errors import InputError, UnreachableError
from sum_factory.shared.photo_files import PhotoFile, is_readable, read_listed
from sum_factory.trainer.data.human import mask_files


@pytest.fixture
def server() -> Iterator[Callable[[str], str]]:
    """``server(behaviour)`` is the URL of a photo at a server that drips, stays silent, fails, or has none."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            behaviour = self.path.split("/")[1]
            if behaviour == "silent":
                released.wait(120)
                return
            status = {"gone": 404, "failing": 503}.get(behaviour, 200)
            self.send_response(status)
            self.send_header("Content-Length", "1000" if status == 200 else "0")
            self.end_headers()
            while self.command == "GET" and status == 200 and not released.wait(0.05):
                self.wfile.write(b"x")
                self.wfile.flush()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        made.handle_error = lambda *_: None  # type: ignore[method-assign]  # nobody waits for the rest of the drops
        threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
        yield lambda behaviour: f"http://127.0.0.1:{made.server_port}/{behaviour}/a.jpg"
        released.set()
        made.shutdown()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores are waited for no longer than half a second."""
    monkeypatch.setattr(store_listing, "within", lambda _, store, call: deadlines.within(0.5, store, call))
    monkeypatch.setattr(photo_files, "within", lambda _, store, call: deadlines.within(0.5, store, call))


@pytest.mark.usefixtures("impatient")
def test_store_that_is_silent_is_named_and_not_the_list(server: Callable[[str], str], tmp_path: Path) -> None:
    url = server("silent")
    (tmp_path / "list.txt").write_text(f"{url}\n")
    store = url.removesuffix("/silent/a.jpg")
    begun = time.monotonic()
    for place in (url, f"{tmp_path}/list.txt"):
        with pytest.raises(InputError) as caught:
            list(list_photos([place]))
        assert str(caught.value).startswith(f"{url}: cannot be read (the store {store} has not answered within")
    assert time.monotonic() - begun < 60


def test_store_that_drips_is_an_outage(server: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    url = server("dripping")
    (photo,) = list_photos([url])
    assert photo == PhotoFile("a", url, size=1000, stamp=photo.stamp)
    monkeypatch.setattr(photo_files, "within", lambda _, store, call: deadlines.within(0.5, store, call))
    with pytest.raises(UnreachableError, match=r"a\.jpg: cannot be read \(the store http://127.0.0.1:\d+ has not answ"):
        read_listed(photo)


def test_store_that_fails_is_not_one_without_the_photo(server: Callable[[str], str]) -> None:
    with pytest.raises(InputError, match=r"gone/a\.jpg: no such file or folder"):
        list(list_photos([server("gone")]))
    with pytest.raises(InputError, match=r"failing/a\.jpg: cannot be read \(503"):
        list(list_photos([server("failing")]))


def test_what_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(deadlines, "TOLD_SECONDS", 0.01)
    over = threading.Event()
    with pytest.raises(TimeoutError, match=r"^the store s3://b has not answered within 0 s$"):
        deadlines.within(0.05, "the store s3://b", over.wait)
    assert capsys.readouterr().err == "the store s3://b has not answered for 0 s; it is waited for 0 s\n"
    monkeypatch.setattr(deadlines, "TOLD_SECONDS", 60.0)
    assert deadlines.within(600, "the store s3://b", lambda: 7) == 7
    assert capsys.readouterr().err == ""
    over.set()


@pytest.mark.parametrize("silent", ["os.scandir", "os.lstat", "os.stat", "pathlib.Path.read_bytes"])
def test_disk_that_is_silent_is_named_soon_and_not_waited_for_without_end(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a disk of the network whose server is gone: whoever asks never comes back."""
    lay_out(tmp_path, "photos/a.jpg", "photos/b.jpg")
    (photo, _) = list_photos([f"{tmp_path}/photos"])
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photos/a.jpg\n")
    over = threading.Event()
    true = pydoc.locate(silent)

    def never(path: Any, *rest: Any, **more: Any) -> Any:
        if "photos" in str(path):
            over.wait(20)
        return true(path, *rest, **more)  # type: ignore[operator]

    monkeypatch.setattr(silent, never)
    monkeypatch.setattr(deadlines, "TOLD_SECONDS", 0.01)
    for module in (store_listing, photo_files, disk_listing, mask_files):
        monkeypatch.setattr(module, "within", lambda _, whom, call: deadlines.within(0.05, whom, call))
    if silent in ("os.scandir", "os.lstat"):
        with pytest.raises(InputError, match=r"the disk of .*/photos.* has not answered within"):
            list(list_photos([f"{tmp_path}/photos"]))
    if silent == "os.lstat":
        with pytest.raises(InputError, match=r"the disk of .*/photos/a\.jpg has not answered within"):
            list(list_photos([f"{tmp_path}/list.txt"]))
    if silent == "os.stat":
        with pytest.raises(UnreachableError, match=r"the disk of .*/photos/a\.jpg has not answered within"):
            read_listed(photo)
        assert not is_readable(photo)
    if silent == "pathlib.Path.read_bytes":
        with pytest.raises(InputError, match=r"the disk of .*/photos/a\.jpg has not answered within"):
            mask_files.read_file(tmp_path / "photos" / "a.jpg")
    assert "photos" in capsys.readouterr().err.partition("has not answered for")[0]
    over.set()


def test_more_is_waited_for_the_more_there_is_to_read() -> None:
    assert deadlines.seconds_for(0) == deadlines.LOOK_SECONDS
    assert deadlines.seconds_for(100_000_000) == deadlines.LOOK_SECONDS + 500
    assert listing.LIST_BYTES < 2 * photo_files.MAX_BYTES


class WholeFiles(BaseHTTPRequestHandler):
    """A server that gives whole files alone, whatever part is asked for."""

    data = b""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.data)))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.data)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_server_that_gives_no_parts_of_files_is_blamed_and_not_the_photo(tmp_path: Path) -> None:
    WholeFiles.data = write_tar(tmp_path / "a.tar", {"a.png": picture(0)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), WholeFiles)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.tar"
        photo = PhotoFile("a", url, "a.png", 512, len(picture(0)))
        with pytest.raises(UnreachableError, match="gives no parts of files"):
            read_listed(photo)
    finally:
        server.shutdown()
        server.server_close()
