"""The pages that are scripts do what they say, one after the other, in an empty folder."""

from __future__ import annotations

import runpy
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from sum_factory.labelgen import label, open_shards
from sum_factory.labelgen.sets.convert import convert
from sum_factory.pipelines.docs import pictures
from sum_factory.pipelines.docs.reference import notebook_page
from sum_factory.pipelines.docs.troubleshooting import TROUBLES, troubleshooting_page
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.automask.settings import AutomaskSettings

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"
NAMES = ("label_and_look", "read_without", "train_on_your_masks")


def test_label_and_look_and_read_without_this_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(NOTEBOOKS / "label_and_look.py"))
    said = capsys.readouterr().out
    photos = list(open_shards("labels"))
    assert all(f"{photo.key}: 256 x 256, {len(photo)} masks" in said for photo in photos)
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{photo.key}_masks.png" for photo in photos}
    convert("labels", "arrays", "zarr")
    script = NOTEBOOKS / "read_without.py"
    assert "sum_factory" not in script.read_text()
    alone = [sys.executable, "-I", "-W", "error", "-W", "ignore::ResourceWarning", str(script)]
    done = subprocess.run(alone, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    read = np.load("masks.npz")
    assert len(read.files) == sum(map(len, photos)) > 5
    for photo in photos:
        for k, mask in enumerate(photo.masks()):
            assert (read[f"{photo.key} {k}"] != mask).mean() < 1e-4, "but for rounding in the last bits"


def test_train_on_your_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(NOTEBOOKS / "train_on_your_masks.py"))
    said = capsys.readouterr().out
    assert "2 steps in" in said
    assert "after training: IoU 0." in said
    assert (tmp_path / "runs/mine/weights.safetensors").exists()


def test_page_of_a_script_has_its_words_and_its_code() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.py")} == set(NAMES)
    page = notebook_page("# # A\n#\n# Words,\n# more.\n\n# %%\nx = 1\n# why\ny = 2\n\n# Last.\n")
    assert [part.strip() for part in page.split("```")] == [
        "# A\n\nWords,\nmore.",
        "python\nx = 1\n# why\ny = 2",
        "Last.",
    ]


def test_every_trouble_is_a_message_of_the_code() -> None:
    page = troubleshooting_page()  # raises for one that is not
    assert page.count("\n:   ") == sum(map(len, TROUBLES.values())) > 20


def test_pictures_show_the_masks_of_a_setting() -> None:
    scene = make_scene(0, 6).image
    (photo,) = label(scene, automask={"points_per_side": 8})
    drawn = pictures.drawn(photo, range(len(photo)))
    covered = np.any([*photo.masks()], axis=0)
    changed = (drawn != scene).any(-1)
    assert covered.any()
    assert not changed[~covered].any()
    assert changed[covered].mean() > 0.99
    assert set(pictures.CHOICES) <= {field.name for field in fields(AutomaskSettings)}
    page = (NOTEBOOKS.parent / "choosing.md").read_text()
    assert all(f"images/setting_{name}.jpg" in page for name in pictures.CHOICES)
