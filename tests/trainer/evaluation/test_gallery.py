"""The gallery shows the masks in which models differ most, with the clicks that they got, on one page."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from segment_anything import SamPredictor

from sum_factory.shared.drawing import draw_mask
from sum_factory.shared.errors import InputError
from sum_factory.shared.sam.architecture import SamArchitecture
from sum_factory.shared.sam.checkpoint import LoadedSam
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.task_prompt import TaskPrompt
from sum_factory.shared.sam.upstream import Sam
from sum_factory.trainer.cli import main
from sum_factory.trainer.data.sets import SetSettings, open_set
from sum_factory.trainer.evaluation.clicks import Click
from sum_factory.trainer.evaluation.gallery.changes import largest_changes, outputs_by_task
from sum_factory.trainer.evaluation.gallery.draw import Window, fullest_window, loupe, overlay
from sum_factory.trainer.evaluation.gallery.page import GallerySettings, write_gallery
from sum_factory.trainer.evaluation.run import evaluate_sets
from sum_factory.trainer.evaluation.settings import Protocol

TINY = SamArchitecture("tiny", 32, 2, 2, (1,), 128, window_size=3, prompt_dim=32, decoder_mlp_dim=64)
"""That of ``tiny_sam``."""
Masks = npt.NDArray[np.bool_]
ODD = 'parts <script>alert("&")</script>'
PROTOCOL = Protocol(rounds=2)


def loud(sam: Sam, factor: float) -> Sam:
    """Return a copy whose prompts give masks that differ from each other."""
    copied = deepcopy(sam)
    with torch.no_grad():
        for name, parameter in copied.mask_decoder.named_parameters():
            if parameter.dim() > 1 and "hypernetworks" not in name:
                parameter *= factor
    return copied


@pytest.fixture(scope="module")
def models(tiny_sam: Sam) -> dict[str, LoadedSam]:
    """A plain SAM, and one with a task prompt that knows two tasks."""
    table = TaskPrompt(32)
    with torch.no_grad():
        table.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    prompted = LoadedSam(loud(tiny_sam, 4), TINY, "b" * 64, table, ("unspecified", "part"))
    return {"SAM": LoadedSam(loud(tiny_sam, 3), TINY, "a" * 64), "SUM <i>": prompted}


@pytest.fixture(scope="module")
def sets(human_sets: tuple[SetSettings, ...]) -> tuple[SetSettings, ...]:
    salient, parts = human_sets
    return replace(salient, limit=3), replace(parts, name=ODD, limit=3)


@pytest.fixture(scope="module")
def page(models: dict[str, LoadedSam], sets: tuple[SetSettings, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gallery") / "page.html"
    write_gallery(out, models, sets, GallerySettings(PROTOCOL, most=2, prompted=1))
    return out


@dataclass
class Parsed(HTMLParser):
    """The elements of a page, each with its attributes; and all of its text but for style and script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str, **having: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag and having.items() <= found.items()]


def test_the_largest_gains_and_losses_are_chosen(
    models: dict[str, LoadedSam], sets: tuple[SetSettings, ...], page: Path
) -> None:
    """Against the scores of all masks, as ``trainer evaluate`` has them."""
    for settings, changes in zip(sets, largest_changes(models, sets, PROTOCOL, 2), strict=True):
        scores: list[dict[tuple[str, int], float]] = []
        for model in models.values():
            (result,) = evaluate_sets(model, [settings], [PROTOCOL])
            rows = [row for row in result.rows.to_pylist() if row["round"] == 2]
            scores.append({(row["image"], row["mask"]): row["boundary_iou"] for row in rows})
        expected = sorted(scores[1][key] - scores[0][key] for key in scores[0])
        wanted = [each for each in expected if each > 0][-2:] + [each for each in expected if each < 0][:2]
        found = [each.change for each in changes.chosen]
        assert found == sorted(found, key=lambda change: -abs(change))
        assert sorted(found) == pytest.approx(sorted(wanted), abs=1e-6)
        assert changes.masks == len(expected)
        for name, own in zip(models, scores, strict=True):
            assert changes.means[name] == pytest.approx(sum(own.values()) / len(own), abs=1e-6)


def test_masks_of_a_photo_are_spread(models: dict[str, LoadedSam], sets: tuple[SetSettings, ...]) -> None:
    (changes,) = largest_changes(models, sets[1:], PROTOCOL, 9, max_masks=1)
    assert changes.masks == 3
    assert {each.number for each in changes.chosen} == {0}


def test_outputs_under_each_task_are_those_of_upstream(
    models: dict[str, LoadedSam], sets: tuple[SetSettings, ...]
) -> None:
    """Upstream's predictor gets the vector of the task on its embedding; what was never trained is unspecified."""
    model, sample = models["SUM <i>"], open_set(sets[0]).load(0)
    found = outputs_by_task(model, sample, Click(40, 50, True))
    assert [each.task for each in found] == list(TASKS)
    assert [each.prompted for each in found] == ["unspecified", "unspecified", "unspecified", "part"]
    assert model.task_prompt is not None
    for each in found:
        predictor = SamPredictor(model.sam)
        predictor.set_image(sample.image)
        vector = model.task_prompt.weight[TASKS.index(each.prompted)].detach()
        predictor.features = predictor.features + vector[None, :, None, None]
        masks, predicted, _ = predictor.predict(np.array([[40, 50]]), np.array([1]), multimask_output=True)
        assert (np.stack(each.masks) != masks).mean() < 1e-3
        assert each.predicted == pytest.approx(predicted.tolist(), abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_loupe_is_where_most_differs(seed: int) -> None:
    random = np.random.default_rng(seed)
    pixels, side = random.random((23, 31)) < 0.2, 7
    window = fullest_window(pixels, side)

    def inside(y: int, x: int) -> int:
        return sum(bool(pixels[row, column]) for row in range(y, y + side) for column in range(x, x + side))

    most = max(inside(y, x) for y in range(23 - side + 1) for x in range(31 - side + 1))
    assert window.side == side
    assert inside(window.y, window.x) == most


def test_the_loupe_is_centred_on_what_is_smaller_than_it() -> None:
    pixels = np.zeros((60, 60), bool)
    pixels[30, 20] = True
    assert fullest_window(pixels, 11) == Window(15, 25, 11)


def test_where_masks_are_the_same_the_loupe_shows_what_is_wrong_in_them() -> None:
    target = np.zeros((200, 300), bool)
    target[20:60, 20:60] = True
    wrong, other = target.copy(), target.copy()
    wrong[150:155, 250:255] = True
    other[100:110, 100:110] = True
    assert all(low <= at < low + 37 for low, at in zip(loupe_at([wrong, other], target), (105, 105), strict=True))
    x, y = loupe_at([wrong, wrong], target)
    assert x <= 250 < x + 37
    assert y <= 150 < y + 37
    x, y = loupe_at([target, target], target)
    assert target[y : y + 37, x : x + 37].any()
    assert not target[y : y + 37, x : x + 37].all(), "at the boundary"


def loupe_at(masks: list[Masks], target: Masks) -> tuple[int, int]:
    window = loupe(masks, target)
    assert window.side == 37
    return window.x, window.y


def test_overlays_look_as_masks_that_are_drawn_on_the_photo() -> None:
    random = np.random.default_rng(0)
    photo = random.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    mask = np.zeros((70, 90), bool)
    mask[10:40, 30:90] = True
    mask[20:25, 50:60] = False
    colour = (64, 160, 255)
    expected = photo.astype(np.float32)
    draw_mask(expected, photo, mask, np.array(colour, np.float32))
    drawn = overlay(photo, mask, colour)
    assert drawn is not None
    assert (drawn.x, drawn.y, drawn.width, drawn.height) == (30, 10, 60, 30)
    over = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn.url.partition(",")[2]))).convert("RGBA"), np.float32)
    found = photo.astype(np.float32)
    part = found[10:40, 30:90]
    share = over[..., 3:] / 255
    part[:] = (1 - share) * part + share * over[..., :3]
    assert np.abs(found - expected).max() < 2
    assert overlay(photo, np.zeros_like(mask), colour) is None


def test_the_page_holds_all_that_it_shows(page: Path, models: dict[str, LoadedSam]) -> None:
    text = page.read_text()
    parsed = Parsed(text)
    links = [value for _, found in parsed.elements for name, value in found.items() if name in ("href", "src")]
    assert links
    assert all(link is not None and link.startswith(("#photo", "data:image/")) for link in links)
    assert "http" not in text
    assert "@import" not in text
    cards = parsed.named("article")
    assert len(cards) > 3
    photos = parsed.named("image")
    stored = [found for found in photos if (found.get("id") or "").startswith("photo")]
    assert len(stored) == len(cards)
    sizes = set()
    for found in stored:
        with Image.open(io.BytesIO(base64.b64decode((found["href"] or "").partition(",")[2]))) as picture:
            assert (str(picture.width), str(picture.height)) == (found["width"], found["height"])
            sizes.add(picture.size)
    assert sizes <= {(128, 96), (90, 128), (64, 64)}, "photos have their own size"
    panels = parsed.named("svg", **{"class": "panel loupe"})
    assert len(panels) == len(cards) * (len(models) + 2)
    captions = "".join(parsed.text)
    assert "never trained, so as unspecified" in captions


def test_names_are_text(page: Path) -> None:
    parsed = Parsed(page.read_text())
    assert len(parsed.named("script")) == 1
    assert not parsed.named("i")
    assert {found["data-set"] for found in parsed.named("article")} == {"salient", ODD}


def test_clicks_are_numbered_in_their_order(page: Path) -> None:
    """One in the first round, and one more in the second unless the mask was right."""
    parsed = Parsed(page.read_text())
    assert parsed.named("g", **{"class": "click on"})
    text = page.read_text()
    assert text.count(">1</text>") >= text.count(">2</text>") > 0
    assert ">3</text>" not in text


def test_models_that_do_not_differ_give_an_empty_page(
    models: dict[str, LoadedSam], sets: tuple[SetSettings, ...], tmp_path: Path
) -> None:
    same = {"one": models["SAM"], "two": models["SAM"]}
    assert write_gallery(tmp_path / "page.html", same, sets[:1], GallerySettings(PROTOCOL)) == 0
    assert "No mask differs" in (tmp_path / "page.html").read_text()


def test_a_set_without_masks_is_refused(
    models: dict[str, LoadedSam], sets: tuple[SetSettings, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sum_factory.trainer.evaluation.gallery.changes.masks_with_pixels", lambda sample: iter(()))
    with pytest.raises(InputError, match="no masks; nothing to show"):
        list(largest_changes(models, sets[:1], PROTOCOL, 1))


def test_the_command_writes_the_page(tiny_weights: str, human_folder: Path, tmp_path: Path) -> None:
    suite, out = tmp_path / "suite.yaml", tmp_path / "page.html"
    folders = f"images: {human_folder / 'images'}, masks: {human_folder / 'salient'}"
    suite.write_text(f"sets:\n- {{kind: folder-pairs, name: salient, task: salient, limit: 1, {folders}}}\n")
    command = ["gallery", "--suite", str(suite), "--out", str(out), "--rounds", "1", "--weights", f"a={tiny_weights}"]
    result = CliRunner().invoke(main, [*command, "--weights", f"b={tiny_weights}"])
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"wrote {out}: 0 masks, ")
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--weights", "a=x"], "expected two models or more"),
        (["--weights", "a=x", "--weights", "a=y"], "several are called 'a'"),
        (["--weights", "a=x", "--weights", "y"], "expected NAME=WEIGHTS, found 'y'"),
        (["--weights", "a=x", "--weights", "b=y", "--sam", "c=z"], "no --weights is called 'c'"),
    ],
)
def test_odd_names_are_refused(options: list[str], told: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["gallery", "--suite", "s", "--out", str(tmp_path / "p.html"), *options])
    assert result.exit_code == 2
    assert told in " ".join(result.stderr.split())


@pytest.fixture
def browser() -> Iterator[Any]:
    """A headless Chromium of the system."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is installed on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.long
def test_a_browser_filters_and_enlarges(page: Path, browser: Any) -> None:
    tab = browser.new_page(viewport={"width": 1400, "height": 1000})
    asked, wrong = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: wrong.append(str(error)))
    tab.on("dialog", lambda dialog: wrong.append("a name was run as a script"))
    tab.goto(page.as_uri())
    cards = tab.locator("article")
    count = cards.count()
    assert tab.locator("article:visible").count() == count
    tab.select_option("#set", ODD)
    shown = tab.locator("article:visible")
    assert 0 < shown.count() < count
    assert {each.get_attribute("data-set") for each in shown.all()} == {ODD}
    assert tab.locator("#shown").inner_text() == str(shown.count())
    tab.select_option("#task", "salient")
    assert shown.count() == 0, "no set has another task than its own"
    tab.select_option("#set", "")
    assert {each.get_attribute("data-task") for each in shown.all()} == {"salient"}
    tab.select_option("#task", "")
    for sign in ("gain", "loss"):
        tab.select_option("#sign", sign)
        assert {each.get_attribute("data-sign") for each in shown.all()} <= {sign}
    tab.select_option("#sign", "")
    assert shown.count() == count
    panel = tab.locator("svg.whole:visible").nth(1)
    panel.click()
    large = tab.locator("dialog svg")
    box = large.bounding_box()
    assert (box["width"], box["height"]) == tuple(
        float(panel.get_attribute(f"data-{side}")) for side in ("width", "height")
    )
    large.click()
    assert not tab.locator("dialog").is_visible()
    tab.locator("summary:visible").first.click()
    assert tab.locator("details[open] svg.whole:visible").count() == 12
    assert wrong == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
