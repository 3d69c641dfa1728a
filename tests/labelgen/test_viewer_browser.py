"""The page in a browser: it filters, opens, toggles and saves, and 50,000 photos scroll at once."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sum_factory.labelgen.page.write import write_page
from sum_factory.labelgen.run import RunSummary
from sum_factory.shared.shards.dataset import DATASET, Dataset, Unit
from sum_factory.shared.shards.selection.opened import open_shards
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage

pytestmark = pytest.mark.long
ODD = "<img src=x onerror=alert(1)>"
Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """``serve(shards, ...)`` starts the command, and returns the address that it prints; it ends by Ctrl-C."""
    started: list[subprocess.Popen[str]] = []

    def serve(shards: Path, *options: str) -> str:
        command = [sys.executable, "-m", "sum_factory.labelgen.cli", "view", "--serve", f"--shards={shards}", *options]
        pipes = subprocess.PIPE
        server = subprocess.Popen(command, stdout=pipes, stderr=pipes, text=True, env={**os.environ})
        started.append(server)
        assert server.stdout is not None
        (address,) = re.findall(r"http://127\.0\.0\.1:\d+/[\w-]+/", server.stdout.readline())
        return str(address)

    yield serve
    for server in started:
        server.send_signal(signal.SIGINT)
        out, errors = server.communicate(timeout=20)
        assert (server.returncode, out, errors) == (0, "ended\n", "")


@pytest.fixture
def tab() -> Iterator[Any]:
    """A tab of a headless Chromium of the system, in which nothing goes wrong."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed on this machine")
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = opened.new_page(viewport={"width": 1400, "height": 900})
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append("a name was run as a script"))
        tab.on("requestfailed", lambda request: wrong.append(f"{request.url}: {request.failure}"))
        yield tab
        tab.unroute_all()
        opened.close()
    assert [each for each in wrong if "ERR_ABORTED" not in each] == []


@pytest.fixture
def named_oddly(own_photos: Path, tmp_path: Path, label: Callable[..., RunSummary], refiner: str) -> Path:
    """A refined shard set of seven photos, one of which cannot be read, and another has a script for a name."""
    (own_photos / "photo0.jpg").rename(own_photos / f"{ODD}.jpg")
    (own_photos / "broken.jpg").write_bytes(b"no photo")
    label(own_photos, tmp_path / "shards", refiner=refiner)
    return tmp_path / "shards"


def until(tab: Any, condition: str) -> None:
    """Wait until a script is true. The page's policy lets nobody turn texts into scripts, as Playwright's own does."""
    for _ in range(600):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(50)
    raise AssertionError(condition)


def count_of(tab: Any) -> tuple[int, int]:
    """Return the photos on the list, and the masks that meet the filter."""
    found = re.findall(r"\d[\d,]*", tab.locator("#counts").inner_text())
    return int(found[0].replace(",", "")), int(found[1].replace(",", ""))


def test_it_filters_opens_toggles_and_saves(named_oddly: Path, serve: Serve, tab: Any, tmp_path: Path) -> None:
    shards = ShardSet.open(str(named_oddly))
    areas = sorted(row["area"] for _, image in shards.walk() for row in image.masks)
    tab.goto(serve(named_oddly))
    tab.wait_for_selector("#progress.done", state="attached")
    until(tab, "document.querySelectorAll('.tile img[src]').length >= 6")
    assert count_of(tab) == (7, len(areas))
    assert ODD in tab.locator(".tile b").all_inner_texts()
    assert "not an image of a known format" in tab.locator(".tile.broken .trouble").inner_text()

    middle = areas[len(areas) // 2]
    tab.locator("[data-name=area] .bounds input").first.fill(str(middle))
    tab.keyboard.press("Enter")
    passing = sum(area >= middle for area in areas)
    until(tab, f"document.getElementById('counts').textContent.includes('{passing} of')")
    brushed = tab.locator("[data-name=stability] canvas").bounding_box()
    tab.mouse.move(brushed["x"] + 0.6 * brushed["width"], brushed["y"] + 9)
    tab.mouse.down()
    tab.mouse.move(brushed["x"] + brushed["width"] + 40, brushed["y"] + 9, steps=4)
    tab.mouse.up()
    until(tab, f"!document.getElementById('counts').textContent.includes('{passing} of')")
    least = float(tab.locator("[data-name=stability] .bounds input").first.input_value())
    chosen = [
        (image.key, row["mask"])
        for _, image in shards.walk()
        for row in image.masks
        if row["area"] >= middle and row["stability"] >= least
    ]
    until(tab, f"document.getElementById('counts').textContent.includes('{len(chosen)} of')")
    assert count_of(tab) == (len({key for key, _ in chosen}), len(chosen))

    first = chosen[0][0]
    tab.locator(".tile").first.click()
    tab.wait_for_selector("#photo tr[data-mask]")
    assert tab.locator("#photo .name b").inner_text() == first
    assert tab.locator("#photo tr[data-mask]:not(.out)").count() == sum(key == first for key, _ in chosen)
    pictures = []
    for key in "12345":
        tab.keyboard.press(key)
        tab.wait_for_timeout(700)
        pictures.append(tab.locator(".pane canvas").first.screenshot())
    assert len({*pictures}) == 5, "each layer looks otherwise"
    tab.keyboard.press("2")
    tab.keyboard.press("ArrowDown")
    assert tab.locator("tr.selected").get_attribute("data-mask") == str(chosen[0][1])
    tab.keyboard.press("r")
    assert tab.locator("tr.rejected").count() == 1
    tab.keyboard.press("d")
    assert tab.locator(".pane:visible").count() == 2
    tab.keyboard.press("Escape")
    tab.keyboard.press("Escape")
    assert not tab.locator("#photo").is_visible()

    tab.keyboard.press("Control+s")
    tab.fill("#out", str(tmp_path / "chosen"))
    tab.locator("dialog button[type=submit]").click()
    tab.wait_for_selector("dialog .good")
    selection = open_shards(str(tmp_path / "chosen"))
    kept = [(image.key, row["stability"], row["area"]) for _, image in selection.walk() for row in image.masks]
    expected = [
        (image.key, row["stability"], row["area"])
        for _, image in shards.walk()
        for row in image.masks
        if (image.key, row["mask"]) in chosen[1:]
    ]
    assert kept == expected


def test_two_sets_are_side_by_side(named_oddly: Path, serve: Serve, tab: Any) -> None:
    tab.goto(f"{serve(named_oddly, f'--beside={named_oddly}')}#1/0")
    tab.wait_for_selector("#photo tr[data-mask]")
    assert tab.locator(".pane:visible").count() == 2
    tab.wait_for_timeout(1000)
    one, other = (tab.locator(".pane canvas").nth(k).screenshot() for k in range(2))
    assert len(one) > 4000
    assert abs(len(one) - len(other)) < 0.2 * len(one)
    assert not tab.locator(".words:visible").count()


def test_a_page_in_a_file_filters_as_the_server_does(named_oddly: Path, serve: Serve, tab: Any, tmp_path: Path) -> None:
    shards = ShardSet.open(str(named_oddly))
    assert write_page(shards, tmp_path / "page.html", 99) == 6
    rows = [row for _, image in shards.walk() for row in image.masks]
    bounds = {"predicted_iou": rows[3]["predicted_iou"], "area": rows[4]["area"]}
    found = []
    for address in (serve(named_oddly), (tmp_path / "page.html").as_uri()):
        tab.goto(address)
        until(tab, "document.querySelectorAll('.tile img[src]').length >= 6")
        tab.fill("#pattern", "photo")
        for name, bound in bounds.items():
            tab.locator(f"[data-name={name}] .bounds input").first.fill(repr(bound))
            tab.keyboard.press("Enter")
        tab.wait_for_timeout(1200)
        found.append((tab.locator("#counts").inner_text(), tab.locator(".tile .caption").all_inner_texts()))
    assert len(found[0][1]) == len(found[1][1]) > 0
    assert found[0][0].split(" of ")[0] == found[1][0].split(" of ")[0]
    assert [text.split("·")[0] for text in found[0][1]] == [text.split("·")[0] for text in found[1][1]]
    tab.locator(".tile").first.click()
    tab.wait_for_selector("#photo tr[data-mask]")
    tab.keyboard.press("4")
    tab.wait_for_timeout(300)
    assert not tab.locator(".words:visible").count()


@pytest.fixture
def large(finished: tuple[Path, RunSummary], tmp_path: Path) -> Path:
    """A shard set of 50,000 photos with two masks each, all of one mask's data; no photo is there."""
    small = ShardSet.open(str(finished[0]))
    number, image = next((number, image) for number, image in small.walk() if len(image.masks) > 1)
    blob, photo = small.label_blobs(number, image)[0], small.unit(number).images[image.index]
    own = [name for name in image.masks[0] if name in {"box_x", "box_y", "box_w", "box_h", "area"}]
    own += ["point_x", "point_y", "predicted_iou", "stability", "crop_x0", "crop_y0", "crop_x1", "crop_y1"]
    columns = {name: [image.masks[0][name]] * 2 for name in own}
    units = [
        Unit(k, tuple(replace(photo, key=f"{k:03d}/{n:03d}", url=f"/gone/{k}/{n}.jpg") for n in range(250)))
        for k in range(200)
    ]
    dataset = Dataset(250, tuple(unit.id for unit in units), 50_000, {MASKS: small.layer()})
    storage = Storage(str(tmp_path / "large"))
    storage.make()
    for unit in units:
        storage.write(f"units/{unit.name}.json", unit.to_json())
        writer = UnitWriter(dataset, small.layer(), unit, {photo.key: image.digest for photo in unit.images})
        for n in range(250):
            writer.add_image(n, (image.height, image.width), [blob, blob], columns, {})
        writer.commit(storage)
    storage.write(DATASET, dataset.to_json())
    return tmp_path / "large"


def test_50_000_photos_scroll_at_once(large: Path, serve: Serve, tab: Any) -> None:
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(serve(large))
    tab.wait_for_selector(".tile b:text-is('000/000')")
    assert count_of(tab)[0] == 50_000
    tab.evaluate("document.getElementById('grid').scrollTop = 1e9")
    tab.wait_for_selector(".tile b:text-is('199/249')")
    assert tab.locator(".tile").count() < 80, "only what is on the screen is there"
    tab.wait_for_selector(".tile .trouble:visible")
    assert "--photos-from" in tab.locator(".tile .trouble:visible").first.inner_text()
    assert len([each for each in asked if "/api/tile/" in each]) < 200
    tab.wait_for_selector("#progress.done", state="attached", timeout=60_000)
    assert count_of(tab) == (50_000, 100_000)
    tab.fill("#pattern", "199/24")
    until(tab, "document.getElementById('counts').textContent.startsWith('10 photos')")
    until(tab, "document.querySelectorAll('.tile').length === 10")


def test_a_taken_port_is_told(named_oddly: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "sum_factory.labelgen.cli", "view", "--serve", f"--port={port}"]
        done = subprocess.run([*command, f"--shards={named_oddly}"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --port {port}: taken, perhaps by another `labelgen view`; give another")
    assert done.stdout == ""
