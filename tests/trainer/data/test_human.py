"""Human masks from folder pairs, COCO files and label maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human import CocoInstances, FolderPairs, LabelMaps

HEIGHT, WIDTH = 30, 40


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def rectangle(top: int, left: int, height: int, width: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def test_folder_pairs_are_matched_by_stem_and_thresholded_at_half(tmp_path: Path) -> None:
    for stem in ("b", "a"):
        photo(tmp_path / "images" / f"{stem}.png")
    (tmp_path / "masks").mkdir()
    soft = np.zeros((HEIGHT, WIDTH), np.uint8)
    soft[:10], soft[10:20], soft[20:] = 127, 128, 255
    for stem in ("a", "b"):
        Image.fromarray(soft).save(tmp_path / "masks" / f"{stem}.png")
    pairs = FolderPairs(tmp_path / "images", tmp_path / "masks", 1, "half")
    assert len(pairs.keys) == 2
    sample = pairs.load(0)
    assert (sample.key, sample.task, sample.image.shape) == ("a", 1, (HEIGHT, WIDTH, 3))
    assert np.array_equal(sample.masks, rectangle(10, 0, 20, WIDTH)[None])


def test_photo_without_a_mask_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "images" / "lonely.png")
    photo(tmp_path / "masks" / "a.png")
    with pytest.raises(InputError, match=r"lonely\.png"):
        _ = FolderPairs(tmp_path / "images", tmp_path / "masks", task=1).keys


def test_mask_of_another_size_is_named(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "masks" / "a.png", (10, 10))
    with pytest.raises(InputError, match=r"images/a\.png: 40 x 30, but .*masks/a\.png 10 x 10"):
        FolderPairs(tmp_path / "images", tmp_path / "masks", task=1).load(0)


def test_label_map_gives_a_mask_for_each_value_but_the_ignored_ones(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:9, 5:9], labels[10:20, 10:20], labels[25:, :] = 7, 3, 255
    (tmp_path / "labels").mkdir()
    palette = Image.fromarray(labels, mode=None).convert("P")
    palette.putdata(labels.ravel().tolist())
    palette.save(tmp_path / "labels" / "a.png")
    sample = LabelMaps(tmp_path / "images", tmp_path / "labels", task=3).load(0)
    assert np.array_equal(sample.masks, np.stack([labels == 3, labels == 7]))
    assert np.array_equal(sample.masks_at([1]), (labels == 7)[None])


def test_sixteen_bit_label_maps_keep_their_values(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[:3], labels[3:6] = 1000, 1256  # equal in their low byte
    (tmp_path / "labels").mkdir()
    Image.fromarray(labels).save(tmp_path / "labels" / "a.png")
    sample = LabelMaps(tmp_path / "images", tmp_path / "labels", task=2).load(0)
    assert np.array_equal(sample.masks, np.stack([labels == 1000, labels == 1256]))


def test_colour_picture_is_no_label_map(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "labels" / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: expected a label map, found 1\d\d\d values"):
        LabelMaps(tmp_path / "images", tmp_path / "labels", task=2).load(0)


def coco(tmp_path: Path, annotations: list[dict[str, Any]], **image: Any) -> CocoInstances:
    photo(tmp_path / "images" / "a.png")
    entry = {"id": 5, "file_name": "a.png", "height": HEIGHT, "width": WIDTH, **image}
    described = [{"id": k, "image_id": 5, **annotation} for k, annotation in enumerate(annotations)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": [entry], "annotations": described}))
    return CocoInstances(path, tmp_path / "images", task=2)


def test_coco_rle_and_polygons_decode_to_the_same_mask(tmp_path: Path) -> None:
    mask = rectangle(6, 8, 10, 12)
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    flat = mask.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    polygon = [[8, 6, 20, 6, 20, 16, 8, 16]]
    samples = coco(
        tmp_path,
        [
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": compressed["counts"].decode()}},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            {"segmentation": polygon},
            {"segmentation": polygon, "iscrowd": 1},
        ],
    )
    loaded = samples.load(0).masks
    assert loaded.shape == (3, HEIGHT, WIDTH)
    for decoded in loaded:
        assert np.array_equal(decoded, mask)


def test_masks_are_decoded_when_they_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corners = range(2, 22, 2)
    squares = [rectangle(corner, corner, 8, 8) for corner in corners]
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in squares]
    rle = [{"segmentation": {**each, "counts": each["counts"].decode()}} for each in encoded]
    sample = coco(tmp_path, rle).load(0)
    decoded = []
    decode = coco_mask.decode
    monkeypatch.setattr(coco_mask, "decode", lambda one: decoded.append(one) or decode(one))
    assert sample.count == len(squares)
    assert np.array_equal(sample.masks_at([7, 1, 4]), np.stack([squares[7], squares[1], squares[4]]))
    assert len(decoded) == 3
    assert sample.masks_at([]).shape == (0, HEIGHT, WIDTH)
    assert np.array_equal(sample.masks, np.stack(squares))


def test_polygon_of_several_pieces_is_their_union(tmp_path: Path) -> None:
    pieces = [[2, 2, 10, 2, 10, 10, 2, 10], [20, 15, 30, 15, 30, 25, 20, 25]]
    (mask,) = coco(tmp_path, [{"segmentation": pieces}]).load(0).masks
    drawn = np.zeros((HEIGHT, WIDTH), np.uint8)
    for piece in pieces:
        corners = np.array(piece).reshape(-1, 2)
        cv2.rectangle(drawn, corners[0].tolist(), (corners[2] - 1).tolist(), 1, -1)
    assert np.array_equal(mask, drawn > 0)


def test_annotation_of_an_unlisted_image_is_named(tmp_path: Path) -> None:
    samples = coco(tmp_path, [{"segmentation": [[0, 0, 5, 0, 5, 5]]}])
    content = json.loads(samples.annotations.read_text())
    content["annotations"][0]["image_id"] = 99
    samples.annotations.write_text(json.dumps(content))
    with pytest.raises(InputError, match="image 99"):
        len(samples.keys)


def test_photo_of_another_size_than_the_file_says_is_named(tmp_path: Path) -> None:
    samples = coco(tmp_path, [{"segmentation": [[0, 0, 5, 0, 5, 5]]}], width=WIDTH + 1)
    with pytest.raises(InputError, match=r"a\.png: 40 x 30"):
        samples.load(0)


def test_missing_photo_is_named(tmp_path: Path) -> None:
    samples = coco(tmp_path, [{"segmentation": [[0, 0, 5, 0, 5, 5]]}])
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(InputError, match=r"a\.png: missing"):
        samples.load(0)


def test_broken_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    path.write_text('{"images": [')
    with pytest.raises(InputError, match=r"instances\.json"):
        _ = CocoInstances(path, tmp_path, task=2).keys
