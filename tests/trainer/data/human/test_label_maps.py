"""Which values of label maps are masks, and which files are no label maps."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human import LabelMaps
from sum_factory.trainer.data.sets import LabelMapsSettings, open_set

HEIGHT, WIDTH = 40, 48


def stripes(*values: int, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """Return a map in which each value is a stripe of columns."""
    columns = np.asarray(values, dtype)[np.arange(WIDTH) * len(values) // WIDTH]
    return np.broadcast_to(columns, (HEIGHT, WIDTH)).copy()


def write(folder: Path, labels: Image.Image, suffix: str = ".png") -> None:
    for name in ("images", "labels"):
        (folder / name).mkdir(exist_ok=True)
    Image.new("RGB", labels.size, "green").save(folder / "images" / "a.jpg")
    labels.save(folder / "labels" / f"a{suffix}")


def opened(folder: Path, **changes: Any) -> LabelMaps:
    found = open_set(LabelMapsSettings("label-maps", folder / "images", folder / "labels", "part", **changes))
    assert isinstance(found, LabelMaps)
    return found


def with_palette(labels: npt.NDArray[Any], first: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    image = Image.fromarray(labels)
    image.putpalette([*first, *(n % 251 for n in range(1, 256 * 3 - 2))])
    return image


@pytest.mark.parametrize(
    ("labels", "taken"),
    [
        (Image.fromarray(stripes(0, 1, 8)), [1, 8]),
        (with_palette(stripes(0, 15, 255)), [15]),
        (Image.fromarray(stripes(0, 3, 254, 255)), [3, 254, 255]),
        (Image.fromarray(stripes(0, 255, 256, 1000, dtype=np.uint16)), [255, 256, 1000]),
        (Image.fromarray(stripes(1, 7, 255)), [1, 7]),
        (Image.fromarray(stripes(0, 70_000, 3, dtype=np.int32)), [3, 70_000]),
    ],
)
def test_background_and_void_are_no_masks_where_they_mean_that(
    labels: Image.Image, taken: list[int], tmp_path: Path
) -> None:
    suffix = ".tif" if labels.mode == "I" else ".png"
    write(tmp_path, labels, suffix)
    with Image.open(tmp_path / "labels" / f"a{suffix}") as written:
        stored = np.asarray(written)
    found = opened(tmp_path)
    assert np.array_equal(found.load(0).masks, np.stack([stored == value for value in taken]))


def test_zero_beside_void_may_be_a_class_and_has_to_be_told(tmp_path: Path) -> None:
    """In COCO-Stuff it is people; in other sets background."""
    write(tmp_path, Image.fromarray(stripes(0, 5, 255)))
    with pytest.raises(InputError, match=r"a\.png holds 255, which is void, so 0 may be .*`ignored: \[255\]`"):
        opened(tmp_path)
    assert opened(tmp_path, ignored=(255,)).load(0).count == 2
    assert opened(tmp_path, ignored=(0, 255)).load(0).count == 1


def test_values_below_the_least_are_no_masks(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(stripes(7, 26, 26000, 26001, dtype=np.uint16)))
    found = opened(tmp_path, least=24000)
    assert found.load(0).count == 2
    assert "0 and all below 24000" in found.findings[0]


def test_colours_are_values(tmp_path: Path) -> None:
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[:10], colours[10:20], colours[20:30] = (9, 0, 0), (0, 1, 0), (0, 0, 1)
    write(tmp_path, Image.fromarray(colours))
    expected = np.stack([np.all(colours == each, axis=2) for each in ((9, 0, 0), (0, 1, 0), (0, 0, 1))])
    assert np.array_equal(opened(tmp_path).load(0).masks, expected)
    assert opened(tmp_path, ignored=(0, 256)).load(0).count == 2


@pytest.mark.parametrize(
    ("labels", "suffix", "message"),
    [
        (Image.fromarray(stripes(0, 90, 180)), ".jpg", r"a\.jpg: no label map, as lossy compression"),
        (
            Image.fromarray(stripes(0, 1, 2, dtype=np.float32)),
            ".tif",
            r"a\.tif: no label map, as its values are floats",
        ),
    ],
)
def test_lossy_and_float_maps_are_refused_when_opened(
    labels: Image.Image, suffix: str, message: str, tmp_path: Path
) -> None:
    write(tmp_path, labels, suffix)
    with pytest.raises(InputError, match=message):
        opened(tmp_path)


def test_lossy_webp_is_refused_and_lossless_is_read(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(stripes(0, 1, 2)).convert("RGB"), ".png")
    with Image.open(tmp_path / "labels" / "a.png") as stored:
        picture = stored.copy()
    (tmp_path / "labels" / "a.png").unlink()
    picture.save(tmp_path / "labels" / "a.webp", lossless=True)
    assert opened(tmp_path).load(0).count == 2
    picture.save(tmp_path / "labels" / "a.webp", quality=80)
    with pytest.raises(InputError, match=r"a\.webp: no label map, as lossy"):
        opened(tmp_path)


def test_transparent_pictures_are_no_label_maps(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(np.dstack([stripes(1, 2)] * 4)))
    with pytest.raises(ImageError, match="transparent somewhere"):
        opened(tmp_path)


@pytest.mark.parametrize("values", [(0,), (3,)])
def test_set_of_maps_without_masks_is_refused(values: tuple[int, ...], tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(stripes(*values)))
    with pytest.raises(InputError, match=r"1 of 1 label maps that were looked at have no mask.*a\.png"):
        opened(tmp_path)
    assert opened(tmp_path, most_blank=1).load(0).count == len(values) - values.count(0)


def test_memory_is_that_of_the_masks_that_are_drawn(tmp_path: Path) -> None:
    side = 600
    labels = (np.arange(side * side) // 1200 + 1).astype(np.uint16).reshape(side, side)
    write(tmp_path, Image.fromarray(labels))
    found = opened(tmp_path)
    tracemalloc.start()
    sample = found.load(0)
    drawn = sample.masks_at([5, 250])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.count == 300
    assert np.array_equal(drawn, np.stack([labels == 6, labels == 251]))
    assert most < 30 * side * side, "all 300 masks are ten times as much"


def test_palette_whose_background_is_not_its_first_colour_is_refused_until_told(tmp_path: Path) -> None:
    """Programs that choose colours by themselves put the object first as often as the background."""
    labels = Image.fromarray(stripes(0, 1, 1, 1))
    labels.putpalette([255, 0, 0, 0, 0, 0])
    write(tmp_path, labels)
    with pytest.raises(ImageError, match=r"first colour of its palette.*\(255, 0, 0\), and another is black"):
        opened(tmp_path)
    assert opened(tmp_path, ignored=(1,)).load(0).count == 1


def test_colour_that_is_ignored_is_ignored_in_maps_of_greys(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(stripes(255, 9)[..., None].repeat(3, 2)))
    found = opened(tmp_path, ignored=(0xFFFFFF,)).load(0)
    assert found.count == 1
    assert np.array_equal(found.masks[0], stripes(255, 9) == 9)


def in_colours(*codes: int) -> Image.Image:
    return of_colours(stripes(*codes, dtype=np.uint32))


def of_colours(labels: npt.NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.stack([labels >> shift & 255 for shift in (0, 8, 16)], 2).astype(np.uint8))


def test_red_is_no_void_and_has_to_be_told(tmp_path: Path) -> None:
    write(tmp_path, in_colours(0, 255, 25_344))
    colours = r"\(0, 0, 0\) as 0, \(255, 0, 0\) as 255, \(0, 99, 0\) as 25344"
    told = rf"labels: .*a\.png is in colours.*{colours}: .*`ignored: \[0\]`"
    with pytest.raises(InputError, match=told):
        opened(tmp_path)
    assert np.array_equal(
        opened(tmp_path, ignored=(0,)).load(0).masks[0], stripes(0, 255, 25_344, dtype=np.int32) == 255
    )
    write(tmp_path, of_colours(160 + np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 20))
    assert opened(tmp_path).load(0).count == 96, "numbers of objects, of which one is 255"


def test_red_in_a_set_of_greys_with_void_is_named_when_read(tmp_path: Path) -> None:
    write(tmp_path, Image.fromarray(stripes(1, 7, 255)))
    found = opened(tmp_path)
    assert found.load(0).count == 2
    write(tmp_path, in_colours(0, 255))
    with pytest.raises(ImageError, match=r"a\.png: is in colours, of which red has the number of void"):
        found.load(0)


@pytest.mark.parametrize("bits", [2, 4])
def test_numbers_of_few_bits_are_numbers_and_no_shades(bits: int, tmp_path: Path) -> None:
    """The largest number of four bits is no void of 255."""
    top = 2**bits - 1
    rows = b"".join(b"\0" + bytes([top << (8 - bits)] + [0] * (WIDTH * bits // 8 - 1)) for _ in range(HEIGHT))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    write(tmp_path, Image.fromarray(stripes(0, 1)))
    (tmp_path / "labels" / "a.png").write_bytes(png)
    found = opened(tmp_path, most_blank=1).load(0)
    assert found.count == 1
    assert found.masks[0].sum() == HEIGHT
    assert opened(tmp_path, ignored=(0, top), most_blank=1).load(0).count == 0
