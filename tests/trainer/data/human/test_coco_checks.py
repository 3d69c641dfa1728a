"""What COCO files hold that cannot be used is found when they are opened; pycocotools says what the sound ones mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coco_content import HEIGHT, SQUARE, WIDTH, annotation, encoded, image, opened, rle, save_photo, square
from sum_factory.shared.annotations.segmentations import _areas, check_segmentations
from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.sets import CocoSettings, open_set

WRONG: dict[str, tuple[Any, str]] = {
    "none": (None, "have no segmentation"),
    "empty": ([], "have no segmentation"),
    "empty polygon": ([[]], "fewer than three points"),
    "one point": ([[3, 4]], "fewer than three points"),
    "two points": ([[3, 4, 9, 9]], "fewer than three points"),
    "odd": ([[1, 1, 9, 1, 9, 9, 3]], "odd number"),
    "NaN": ([[1, 1, float("nan"), 1, 9, 9]], "no finite numbers"),
    "infinite": ([[1, 1, float("inf"), 1, 9, 9]], "no finite numbers"),
    "huge": ([[1, 1, 1e9, 1, 9, 9]], "far outside"),
    "huge whole number": ([[1, 1, 10**400, 1, 9, 9]], "no finite numbers|far outside"),
    "negative and huge": ([[1, 1, -1e7, 1, 9, 9]], "far outside"),
    "outside": ([[50, 5, 60, 5, 60, 15]], "lie outside"),
    "texts": ([["1", "1", "9", "1", "9", "9"]], "no finite numbers"),
    "nulls": ([[1, 1, None, 1, 9, 9]], "no finite numbers"),
    "flat": ([5, 5, 15, 5, 15, 15], "neither polygons nor RLE"),
    "points as objects": ([{"x": 1, "y": 1}, {"x": 9, "y": 1}, {"x": 9, "y": 9}], "neither polygons nor RLE"),
    "points as pairs": ([[[1, 1], [9, 1], [9, 9]]], "no finite numbers"),
    "text": ("polygon", "neither polygons nor RLE"),
    "RLE without counts": ({"size": [HEIGHT, WIDTH]}, "neither polygons nor RLE"),
    "negative counts": (rle([10, -5, HEIGHT * WIDTH - 5]), "whole numbers from 0"),
    "fractions": (rle([10.5, 5, HEIGHT * WIDTH - 15.5]), "whole numbers from 0"),
    "short": (rle([100, 100]), "shorter or longer"),
    "long": (rle([100, 100, HEIGHT * WIDTH]), "shorter or longer"),
    "no counts": (rle([]), "shorter or longer"),
    "short text": (rle(encoded(square())[:-3]), "shorter or longer|whole numbers"),
    "long text": (rle(encoded(np.pad(square(), ((0, 5), (0, 0))))), "shorter or longer"),
    "no text": (rle(""), "whole numbers"),
    "text of other characters": (rle("h\u00e9\u20ac~"), "whole numbers"),
    "text that breaks off": (rle(encoded(square()) + "o"), "whole numbers"),
    "other size": (rle([300, 100, 1600], (50, 40)), "no size, or of another"),
    "turned size": (rle([300, 100, 800], (WIDTH, HEIGHT)), "no size, or of another"),
    "absurd size": (rle([10**12], (10**6, 10**6)), "no size, or of another"),
    "no size": ({"counts": [300, 100, 800]}, "no size, or of another"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_decoded_is_counted_by_kind_and_refused_or_left_out(kind: str, tmp_path: Path) -> None:
    segmentation, message = WRONG[kind]
    annotations = [annotation(number=7), annotation(segmentation, 8), annotation(number=9)]
    with pytest.raises(InputError, match=f"1 of 3 annotations cannot be used: 1 .*({message}).*annotation 8"):
        opened(tmp_path, annotations)
    found = opened(tmp_path, annotations, skip="problems")
    assert np.array_equal(found.load(0).masks, np.stack([square(), square()]))
    assert any("left out 1 of 3 annotations" in line for line in found.findings)


def test_missing_segmentation_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 have no segmentation"):
        opened(tmp_path, [annotation(), {"id": 3, "image_id": 1}])


def test_problems_are_counted_by_kind(tmp_path: Path) -> None:
    annotations = [annotation(number=n) for n in range(9)] + [
        annotation([], 20),
        annotation([], 21),
        annotation([[1, 2]], 22),
    ]
    with pytest.raises(InputError, match=r"3 of 12 .*2 have no segmentation .* 20\); 1 have polygons of fewer .* 22\)"):
        opened(tmp_path, annotations)


def test_checks_of_rle_agree_with_pycocotools(tmp_path: Path) -> None:
    """Random masks in texts, also cut and changed: what is called sound decodes to its size, and only that."""
    random = np.random.default_rng(5)
    texts, sums = [], []
    for _ in range(300):
        smooth = random.random((HEIGHT, WIDTH)) < random.random() ** 3
        texts.append(encoded(smooth))
        sums.append(HEIGHT * WIDTH)
    for text in texts[:200]:
        for other in (text[: random.integers(1, len(text))], text + chr(random.integers(48, 80)), text[1:]):
            if (ord(other[-1]) - 48) & 32:
                continue  # pycocotools reads beyond its end
            texts.append(other)
            sums.append(sum(uncompressed(other)))
    checked = check_segmentations([rle(text) for text in texts], np.tile([HEIGHT, WIDTH], (len(texts), 1)))
    kinds, empty = checked.kinds, checked.empty
    assert [kind == "" for kind in kinds] == [total == HEIGHT * WIDTH for total in sums]
    assert kinds.count("") >= 300
    assert empty == sum(encoded(np.zeros((HEIGHT, WIDTH), bool)) == text for text in texts)


def uncompressed(text: str) -> list[int]:
    """Decode compressed counts a character at a time, as COCO's own source describes them."""
    counts: list[int] = []
    place = 0
    while place < len(text):
        number = shift = 0
        while True:
            code = ord(text[place]) - 48
            number |= (code & 31) << shift
            place, shift = place + 1, shift + 5
            if not code & 32:
                break
        number -= (1 << shift) if code & 16 else 0
        counts.append(number + counts[-2] if len(counts) > 2 else number)
    return counts if min(counts) >= 0 else [-1]


def test_polygons_that_leave_the_photo_are_cut_and_degenerate_pieces_cover_nothing(tmp_path: Path) -> None:
    over = [[-8, 5, 15, 5, 15, 15, -8, 15], [3, 3], [1, 1, 2, 2]]
    (mask,) = opened(tmp_path, [annotation(over)]).load(0).masks
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[5:15, :15] = True
    assert np.array_equal(mask, expected)


@pytest.mark.parametrize("scale", [1.1, 1.9])
def test_polygons_of_photos_of_another_size_are_refused(scale: float, tmp_path: Path) -> None:
    listed = [{"id": 1, "file_name": "a.png"}]
    save_photo(tmp_path / "images" / "a.png")
    corners = np.array([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]])
    drawn = [annotation([(corners / 4).ravel().tolist()], n) for n in range(18)] + [
        annotation([corners.ravel().tolist()], 18)
    ]
    (mask,) = opened(tmp_path, drawn[-1:], listed).load(0).masks
    assert mask.all()
    for each in drawn:
        each["segmentation"] = [[scale * value for value in each["segmentation"][0]]]
    with pytest.raises(InputError, match=r"1 of 19 polygons end beyond their photos \(the first: 18\)"):
        opened(tmp_path, drawn, listed)
    found = opened(tmp_path, [*drawn, annotation(number=19)], listed)
    assert any(
        "1 of 20 polygons end beyond their photos (the first: 18), and are cut" in line for line in found.findings
    )


def test_polygons_that_all_lie_in_one_corner_are_pointed_out(tmp_path: Path) -> None:
    drawn = [annotation([[1, 1, 9 + n / 2, 1, 9, 9]], n) for n in range(20)]
    assert any("no polygon reaches beyond 46% of its photo" in line for line in opened(tmp_path, drawn).findings)
    drawn.append(annotation([[1, 1, 29, 1, 9, 9]], 20))
    assert not any("no polygon reaches" in line for line in opened(tmp_path, drawn).findings)


def test_first_polygon_of_two_points_is_no_box(tmp_path: Path) -> None:
    (mask,) = opened(tmp_path, [annotation([[2, 2, 9, 9], *SQUARE])]).load(0).masks
    assert np.array_equal(mask, square())


def test_shares_of_the_size_are_no_pixels(tmp_path: Path) -> None:
    shares = [[0.1, 0.1, 0.6, 0.1, 0.6, 0.7]]
    with pytest.raises(InputError, match="between 0 and 1; expected pixels"):
        opened(tmp_path, [annotation(shares, n) for n in range(3)])


def test_file_of_nothing_but_crowds_is_used(tmp_path: Path) -> None:
    crowds = [annotation(rle(encoded(square())), n, iscrowd=1) for n in range(2)]
    found = opened(tmp_path, crowds)
    assert found.load(0).masks.shape == (2, HEIGHT, WIDTH)
    assert any("all 2 annotations are crowds" in line for line in found.findings)
    mixed = opened(tmp_path, [*crowds, annotation(number=9)])
    assert np.array_equal(mixed.load(0).masks, square()[None])
    assert any("left out 2 crowds" in line for line in mixed.findings)


@pytest.mark.parametrize("edition", [1, 2])
def test_regions_of_via_are_masks(edition: int, tmp_path: Path) -> None:
    xs, ys = SQUARE[0][::2], SQUARE[0][1::2]
    shape = {"name": "polygon" if edition == 1 else "polyline", "all_points_x": xs, "all_points_y": ys}
    line = {"name": "polyline", "all_points_x": [1, 5], "all_points_y": [1, 5]}
    regions = [{"shape_attributes": shape}, {"shape_attributes": shape}, {"shape_attributes": line}]
    record = {
        "filename": "a.png",
        "size": 1,
        "regions": {str(n): r for n, r in enumerate(regions)} if edition == 1 else regions,
    }
    content = {"a.png1": record} if edition == 1 else {"_via_settings": {}, "_via_img_metadata": {"a.png1": record}}
    save_photo(tmp_path / "images" / "a.png")
    (tmp_path / "via.json").write_text(json.dumps(content))
    settings = {"annotations": tmp_path / "via.json", "images": tmp_path / "images", "task": "entity", "kind": "coco"}
    with pytest.raises(InputError, match=r"fewer than three points \(the first: annotation a\.png, region 2\)"):
        open_set(CocoSettings(**settings))
    found = open_set(CocoSettings(**settings, skip="problems"))
    assert np.array_equal(found.load(0).masks, np.stack([square(), square()]))


def test_rle_of_nearly_the_photos_size_is_resized(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png", (100, 60))
    mask = np.zeros((60, 99), bool)
    mask[10:30, 20:50] = True
    entry = image(width=100, height=60)
    (found,) = opened(tmp_path, [annotation(rle(encoded(mask), (60, 99)))], [entry]).load(0).masks
    columns = ((np.arange(100) + 0.5) * 99 / 100).astype(int)
    assert np.array_equal(found, mask[:, columns])


def test_polygons_without_area_are_counted_and_too_many_are_refused(tmp_path: Path) -> None:
    flat = [[[5, 5, 5, 5, 5, 5]], [[1, 1, 9, 9, 20, 20, 3, 3]], [[0, 5, 30, 5, 12, 5]]]
    sound = [annotation(SQUARE, number) for number in range(4)]
    found = opened(tmp_path, [*sound, *(annotation(each, 10 + n) for n, each in enumerate(flat))])
    assert "3 annotations cover nothing" in found.findings
    with pytest.raises(InputError, match="3 of 3 annotations cover nothing"):
        opened(tmp_path, [annotation(each, n) for n, each in enumerate(flat)])


def test_areas_of_polygons_are_those_of_the_shoelace_formula() -> None:
    rng = np.random.default_rng(0)
    polygons = [rng.uniform(0, 99, 2 * rng.integers(3, 9)).tolist() for _ in range(50)]
    expected = []
    for polygon in polygons:
        x, y = np.reshape(polygon, (-1, 2)).T
        expected.append(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)
    flat, lengths = np.concatenate(polygons), np.array([*map(len, polygons)])
    np.testing.assert_allclose(_areas(flat, lengths), expected, rtol=1e-9)


def test_shares_a_little_outside_of_the_photo_are_shares(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not shares of the photo's size"):
        opened(tmp_path, [annotation([[0.1, 0.1, 1.02, 0.1, 1.02, 0.7]])])
