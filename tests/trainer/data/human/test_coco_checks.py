"""What COCO files hold that cannot be used is found when they are opened; pycocotools says what the sound ones mean."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sum_factory.shared.annotations.segmentations import _areas, check_segmentations
from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human import HumanSet
from sum_factory.trainer.data.sets import CocoSettings, open_set

HEIGHT, WIDTH = 30, 40
SQUARE = [[5, 5, 15, 5, 15, 15, 5, 15]]
Record = dict[str, Any]


def image(number: int = 1, name: str = "a.png", **more: Any) -> Record:
    return {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH, **more}


def annotation(segmentation: Any = SQUARE, number: int = 1, **more: Any) -> Record:
    return {"id": number, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0, **more}


def save_photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def opened(
    folder: Path, annotations: list[Record], images: list[Record] | None = None, more: Any = None, **changes: Any
) -> HumanSet:
    content = {"images": images or [image()], "annotations": annotations, **(more or {})}
    (folder / "coco.json").write_text(json.dumps(content))
    if images is None:
        save_photo(folder / "images" / "a.png")
    return open_set(CocoSettings("coco", folder / "coco.json", folder / "images", "entity", **changes))


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Record:
    return {"size": list(size), "counts": counts}


def encoded(mask: npt.NDArray[np.bool_]) -> str:
    return str(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode())


def square() -> npt.NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[5:15, 5:15] = True
    return mask


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


@pytest.mark.parametrize("yes", [1, True, 1.0, "1", "true", " True "])
@pytest.mark.parametrize("no", [0, False, 0.0, "0", "false", "", None])
def test_crowds_are_told_by_whatever_tools_write_for_truth(yes: Any, no: Any, tmp_path: Path) -> None:
    found = opened(tmp_path, [annotation(number=1, iscrowd=yes), annotation([[1, 1, 9, 1, 9, 9]], 2, iscrowd=no)])
    expected = coco_mask.decode(coco_mask.frPyObjects([[1, 1, 9, 1, 9, 9]], HEIGHT, WIDTH)[0]).astype(bool)
    assert np.array_equal(found.load(0).masks, expected[None])
    assert any("left out 1 crowds" in line for line in found.findings)


@pytest.mark.parametrize("strange", [2, -1, "perhaps", [1], {"is": 1}, float("nan")])
def test_crowds_of_no_known_truth_are_refused_or_left_out(strange: Any, tmp_path: Path) -> None:
    annotations = [annotation(number=1), annotation(number=2, iscrowd=strange), annotation(number=3, iscrowd="1")]
    with pytest.raises(InputError, match=r"1 have an iscrowd that is neither 0 nor 1 \(the first: annotation 2, "):
        opened(tmp_path, annotations)
    assert opened(tmp_path, annotations, skip="problems").load(0).count == 1


def test_nulls_are_as_if_nothing_stood_there(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    listed = [{"id": 1, "file_name": "a.png", "width": None, "height": None, "coco_url": None, "license": None}]
    nulls = dict.fromkeys(("id", "iscrowd", "bbox", "area", "category_id", "score"))
    found = opened(tmp_path, [annotation(**nulls)], listed, {"info": None, "categories": None, "licenses": None})
    assert np.array_equal(found.load(0).masks, square()[None])
    unnamed = {"categories": [{"id": 1, "name": None, "supercategory": None}, {"id": None, "name": "None"}]}
    with pytest.raises(InputError, match="has no category 'None'"):
        opened(tmp_path, [annotation()], listed, unnamed, categories=("None",))


def test_ids_are_the_same_as_numbers_floats_and_texts(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    named = {"categories": [{"id": "7", "name": "cat"}]}
    kinds = [annotation(number=n, image_id=image_id, category_id=7.0) for n, image_id in enumerate((1, 1.0, "1"))]
    for listed in ([image("1")], [image(1.0)]):  # type: ignore[arg-type]
        assert opened(tmp_path, kinds, listed, named, categories=("cat",)).load(0).count == 3
    with pytest.raises(InputError, match="1 are of images that the file does not list"):
        opened(tmp_path, [*kinds, annotation(image_id=True)], [image(1)])


def test_id_of_two_photos_is_refused_and_equal_entries_are_one(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    save_photo(tmp_path / "images" / "b.png")
    with pytest.raises(InputError, match=r"1 is of a\.png and of a\.png, of another size"):
        opened(tmp_path, [annotation()], [image(), {**image(), "width": 2 * WIDTH}])
    images = [image(), image(2, "b.png"), image(1, "b.png")]
    other = annotation(number=2, image_id=2)
    with pytest.raises(InputError, match=r"1 have the id of another \(the first: 1 is of a\.png and of b\.png\)"):
        opened(tmp_path, [annotation(), other], images)
    assert opened(tmp_path, [annotation(), other], images, skip="problems").keys == ["b"]
    assert opened(tmp_path, [annotation()], [image(), image()]).keys == ["a"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"id": 1}, "have no file_name"),
        ({"file_name": "a.png"}, "have no id"),
        (image(width=0), "is no size"),
        (image(width="wide"), "is no size"),
        (image(width=10**6, height=10**6), "is no size"),
        (image(width=float("inf")), "is no size"),
        (image(width=WIDTH + 4), r"a\.png: 40 x 30, but .* 44 x 30"),
        (image(name="gone.png"), r"gone\.png: missing"),
        (image(name="../a.png"), "leads out of"),
        (image(name="/etc/a.png"), "leads out of"),
    ],
)
def test_images_that_cannot_be_used_are_refused(entry: Record, message: str, tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "a.png")
    with pytest.raises(InputError, match=message):
        opened(tmp_path, [annotation()], [entry])


def test_photo_that_is_missing_is_left_out_if_told(tmp_path: Path) -> None:
    for name in "abc":
        save_photo(tmp_path / "images" / f"{name}.png")
    images = [image(n, f"{name}.png") for n, name in enumerate("abcd", 1)]
    annotations = [annotation(number=n, image_id=n) for n in range(1, 5)]
    assert opened(tmp_path, annotations, images, skip="problems").keys == ["a", "b", "c"]


@pytest.mark.parametrize("content", ["[1]", '{"images": {}}', '{"images": [1], "annotations": []}', "{", "[" * 9000])
def test_other_json_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "coco.json").write_text(content)
    with pytest.raises(InputError, match=r"coco\.json: expected COCO instances JSON"):
        open_set(CocoSettings("coco", tmp_path / "coco.json", tmp_path, "entity"))


def test_photos_are_found_where_archives_put_them(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "entity_01" / "images_merge" / "a.png")
    save_photo(tmp_path / "images" / "entity_02" / "a.png", (20, 20))
    images = [image(name="entity_01/a.png"), image(2, "entity_02/a.png", width=20, height=20)]
    found = opened(tmp_path, [annotation(), annotation(number=2, image_id=2)], images)
    assert found.keys == ["entity_01/a", "entity_02/a"]
    assert found.load(0).image.shape == (HEIGHT, WIDTH, 3)
    assert any("1 photos were found in other folders" in line for line in found.findings)


def test_coco_url_names_photos_that_have_no_file_name(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "train2017" / "7.png")
    entry = {"id": 1, "coco_url": "http://images.example/train2017/7.png", "height": HEIGHT, "width": WIDTH}
    assert opened(tmp_path, [annotation()], [entry]).keys == ["train2017/7"]


CATEGORIES = [
    {"id": 0, "name": "cup", "supercategory": "OBJECT"},
    {"id": 1, "name": "cup:handle", "supercategory": "PART"},
    {"id": 2, "name": "knife:handle", "supercategory": "PART"},
]


@pytest.mark.parametrize(
    ("categories", "taken"),
    [((), [0, 1, 2]), ((0, 2), [0, 2]), (("PART",), [1, 2]), (("cup*",), [0, 1]), (("cup", 2), [0, 2])],
)
def test_categories_are_chosen_by_id_name_and_supercategory(
    categories: tuple[int | str, ...], taken: list[int], tmp_path: Path
) -> None:
    drawn = [annotation([[n, n, n + 9, n, n + 9, n + 9, n, n + 9]], n, category_id=n) for n in range(3)]
    masks = opened(tmp_path, drawn, more={"categories": CATEGORIES}, categories=categories).load(0).masks
    assert [int(np.flatnonzero(mask.any(0))[0]) for mask in masks] == taken


def test_category_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no category 'knife:handel'; did you mean 'knife:handle'"):
        opened(tmp_path, [annotation()], more={"categories": CATEGORIES}, categories=("knife:handel",))


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


def test_photo_of_another_folder_is_no_stand_in(tmp_path: Path) -> None:
    """Of two photos of one name, that of the folder which is there."""
    save_photo(tmp_path / "images" / "train" / "0.png")
    with pytest.raises(InputError, match=r"val/0\.png: missing"):
        opened(tmp_path, [annotation()], [image(name="val/0.png")])


@pytest.mark.parametrize(
    ("on_disk", "written", "key"),
    [
        (b"d\xff/caf\xe9.png", r"d\xff/caf\xe9.png", r"d\xff/caf\xe9"),
        (b"caf\xe9.png", "caf\udce9.png", r"caf\xe9"),
        (b"a\\xe9.png", r"a\xe9.png", r"a\xe9"),
        (b"d/x12.png", r".\d\x12.png", "d/x12"),
    ],
)
def test_names_with_backslashes_are_escapes_or_folders(on_disk: bytes, written: str, key: str, tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / os.fsdecode(on_disk))
    found = opened(tmp_path, [annotation()], [image(name=written)])
    assert found.keys == [found.load(0).key] == [key]


def test_file_that_two_names_lead_to_is_refused(tmp_path: Path) -> None:
    save_photo(tmp_path / "images" / "0.png")
    listed = [image(name="val/0.png"), image(2, "train/0.png")]
    with pytest.raises(InputError, match=r"0\.png is both val/0\.png and train/0\.png"):
        opened(tmp_path, [annotation(), annotation(number=2, image_id=2)], listed)


def test_category_is_found_by_its_own_name_and_none_without_an_id(tmp_path: Path) -> None:
    named = {"categories": [{"id": 1, "name": "cat [big]"}, {"name": "dog"}]}
    assert len(opened(tmp_path, [annotation()], more=named, categories=("cat [big]",)).keys) == 1
    with pytest.raises(InputError, match="has no category 'dog'"):
        opened(tmp_path, [annotation()], more=named, categories=("dog",))
