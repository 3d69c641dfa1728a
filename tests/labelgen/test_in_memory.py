"""Labelling without a shard set: the masks of upstream's generator, and all else as a shard set has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import segment_anything
import torch
from PIL import Image

from sum_factory.labelgen import LabelledPhoto, RunSettings, label, open_shards
from sum_factory.labelgen.run import run
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.errors import ImageError, InputError, SettingsError
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.runtime import Runtime

POINTS = {"points_per_side": 6}
OPTIONS: dict[str, Any] = {"automask": POINTS, "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for number in range(2):
        Image.fromarray(make_scene(0, number).image[: 200 - 30 * number]).save(folder / f"scene{number}.png")
    return folder


def iou(one: Any, other: Any) -> float:
    return float((one & other).sum() / max(1, (one | other).sum()))


def test_masks_are_those_of_upstream(scenes: Path) -> None:
    pixels = np.asarray(Image.open(scenes / "scene0.png"))
    (found,) = label(pixels, **{**OPTIONS, "automask": {**POINTS, "max_area_share": 2.0}})
    generator = segment_anything.SamAutomaticMaskGenerator(
        load_sam().sam, points_per_side=6, pred_iou_thresh=0.5, stability_score_thresh=0.8
    )
    expected = generator.generate(pixels)
    assert len(found) == len(expected) > 3
    assert (found.key, found.height, found.width, found.error) == ("0", *pixels.shape[:2], None)
    for mask, theirs in zip(found.masks(), expected, strict=True):
        assert iou(mask, theirs["segmentation"]) > 0.999
    assert found.boxes.tolist() == [each["bbox"] for each in expected]
    assert np.allclose(found.predicted_iou, [each["predicted_iou"] for each in expected], atol=1e-5)
    assert np.allclose(found.points, [each["point_coords"][0] for each in expected])
    assert np.array_equal(found.image(), pixels)


def test_photos_come_in_any_form_and_one_after_the_other(scenes: Path) -> None:
    path, asked = scenes / "scene1.png", []

    def photos() -> Iterator[Any]:
        for photo in (str(path), path, Image.open(path), np.asarray(Image.open(path))):
            asked.append(1)
            yield photo
        raise AssertionError("nobody asked for more")

    labelled = label(photos(), **OPTIONS)
    found = [next(labelled) for _ in range(2)]
    labelled.close()  # type: ignore[attr-defined]
    rest = list(label([Image.open(path).convert("RGBA"), np.asarray(Image.open(path))], **OPTIONS))
    assert [each.key for each in (*found, *rest)] == ["scene1", "scene1", "0", "1"]
    for each in (*found, *rest):
        assert len(each) == len(found[0]) > 0
        assert np.array_equal(each.areas, found[0].areas)
        assert np.array_equal(each.mask(0), found[0].mask(0))
    assert [each.key for each in label(scenes, **OPTIONS)] == ["scene0", "scene1"]


def test_all_else_is_what_a_shard_set_has(scenes: Path, tmp_path: Path) -> None:
    settings = {"refiner": "vit_micro", "automask": POINTS, "runtime": Runtime("cpu"), "threads": 1}
    run(RunSettings(images=(str(scenes),), shards=str(tmp_path / "labels"), **settings), say=lambda line: None)
    here = list(label(scenes, refiner="vit_micro", **OPTIONS))
    there = list(open_shards(str(tmp_path / "labels")))
    assert [photo.key for photo in there] == [photo.key for photo in here] == ["scene0", "scene1"]
    for one, other in zip(here, there, strict=True):
        assert len(one) == len(other) > 3
        for name in ("boxes", "areas", "points", "predicted_iou", "stability"):
            assert np.allclose(getattr(one, name), getattr(other, name), rtol=1e-6), name
        assert np.allclose(one.mean_u["refinement"], other.mean_u["refinement"], rtol=1e-5, equal_nan=True)
        assert np.array_equal(one.image(), other.image())
        for k in range(len(one)):
            assert iou(one.mask(k), other.mask(k)) > 0.95  # a small mask has few pixels
            maps = one.uncertainty(k), other.uncertainty(k)
            assert (maps[0] is None) == (maps[1] is None)
            if maps[0] is not None:
                assert np.array_equal(*maps)
                assert np.array_equal(one.refined(k), other.refined(k))


def test_bad_photo_ends_the_iteration_or_is_kept_with_its_error(scenes: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"bad\.png: not an image"):
        list(label([bad], **OPTIONS))
    with pytest.raises(InputError, match="no such file"):
        list(label(tmp_path / "gone.png", **OPTIONS))
    failed, sound = label([bad, scenes / "scene1.png"], errors="keep", **OPTIONS)
    assert "not an image" in str(failed.error)
    assert (len(failed), failed.height, list(failed.masks())) == (0, 0, [])
    assert len(sound) > 0


@pytest.mark.parametrize(
    "photo", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), Image.new("I;16", (8, 8))]
)
def test_pixels_of_other_kinds_are_refused(photo: Any) -> None:
    with pytest.raises(ImageError, match="photo 0"):
        list(label([photo], **OPTIONS))


def test_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(SettingsError, match="give a refiner"):
        label([], min_refine_area=100, **OPTIONS)
    with pytest.raises(TypeError):
        label([], automask={"no_such_setting": 1})


def test_torch_has_its_threads_again(scenes: Path) -> None:
    torch.set_num_threads(2)
    labelled = label([scenes / "scene1.png"], **OPTIONS)
    list(labelled)
    assert torch.get_num_threads() == 2


def test_masks_and_layers_that_are_not_there_are_named(scenes: Path) -> None:
    (photo,) = label(scenes / "scene1.png", **OPTIONS)
    assert isinstance(photo, LabelledPhoto)
    with pytest.raises(IndexError, match=f"mask {len(photo)} of"):
        photo.mask(len(photo))
    with pytest.raises(KeyError, match="no maps 'refinement'; there are none"):
        photo.uncertainty(0)
    assert np.array_equal(photo.mask(-1), photo.mask(len(photo) - 1))
