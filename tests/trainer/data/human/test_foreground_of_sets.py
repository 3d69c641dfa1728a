"""What is foreground is decided for all files of a set, or told by its recipe; files that differ are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mask_pictures import (
    HEIGHT,
    WIDTH,
    Draw,
    Mask,
    coloured,
    grey,
    objects,
    opened,
    palette,
    stripes,
    white_on_black_and_nothing,
    white_on_nothing,
    write,
)
from sum_factory.shared.errors import ImageError, InputError


@pytest.mark.parametrize(
    ("foreground", "drawn", "chosen"),
    [
        ("half", stripes(0, 128, 255), (128, 255)),
        ((255,), stripes(0, 128, 255), (255,)),
        ("non-zero", stripes(0, 1, 2), (1, 2)),
        ((2,), stripes(0, 1, 2), (2,)),
        ("zero", stripes(255, 0), (0,)),
        ("half", stripes(0, 20, 60, 100), (60, 100)),
    ],
)
def test_foreground_is_what_the_recipe_says(
    foreground: Any, drawn: Draw, chosen: tuple[int, ...], tmp_path: Path
) -> None:
    write(tmp_path, drawn)
    pairs = opened(tmp_path, foreground=foreground)
    for number in range(4):
        with Image.open(tmp_path / "masks" / f"{number}.png") as written:
            stored = np.asarray(written)
        assert np.array_equal(pairs.load(number).masks[0], np.isin(stored, chosen))


def test_alpha_may_be_asked_for(tmp_path: Path) -> None:
    write(tmp_path, white_on_black_and_nothing)
    (found,) = opened(tmp_path, foreground="alpha").load(0).masks
    assert np.array_equal(found, np.arange(WIDTH)[None].repeat(HEIGHT, 0) >= 3)
    write(tmp_path, grey(0, 255))
    with pytest.raises(InputError, match="none of its masks is transparent"):
        opened(tmp_path, foreground="alpha")


@pytest.mark.parametrize("fill", [0, 255])
def test_set_of_more_than_a_tenth_empty_or_full_masks_is_refused(fill: int, tmp_path: Path) -> None:
    masks = objects() * 5
    masks[7] = masks[8] = np.full((HEIGHT, WIDTH), fill > 0)
    write(tmp_path, grey(0, 255), masks=masks)
    assert len(opened(tmp_path).keys) == 20
    masks[9] = masks[7]
    write(tmp_path, grey(0, 255), masks=masks)
    with pytest.raises(InputError, match=r"of 20 masks that were looked at .*7\.png.*most_blank"):
        opened(tmp_path)
    assert len(opened(tmp_path, most_blank=0.2).keys) == 20


def test_inverted_masks_are_pointed_out(tmp_path: Path) -> None:
    write(tmp_path, grey(255, 0))
    assert "if these masks are inverted, set `foreground: zero`" in opened(tmp_path).findings[0]
    assert np.array_equal(opened(tmp_path, foreground="zero").load(0).masks[0], objects()[0])


def test_set_says_in_one_line_what_is_foreground(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, grey(0, 1))
    opened(tmp_path, name="my masks")
    share = np.mean([mask.mean() for mask in objects()])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("my masks: 4 photos; foreground is 1 (of 0 and 1): ")
    assert f"{share:.0%} of a mask on average, seen in 4 of 4 masks" in line
    opened(tmp_path, name="my masks")
    assert capsys.readouterr().err == "", "it is told once"


@pytest.mark.parametrize(("set_has", "file_has"), [(255, 1), (1, 255), (1, 7)])
def test_file_that_the_sample_missed_and_that_is_otherwise_is_named_when_read(
    set_has: int, file_has: int, tmp_path: Path
) -> None:
    write(tmp_path, grey(0, set_has), masks=objects() * 17)
    pairs = opened(tmp_path)
    seen = {histogram.path.name for histogram in pairs._sample}
    other = next(index for index, key in enumerate(pairs.keys) if f"{key}.png" not in seen)
    path = pairs.opened.files[other].pair.masks[0]
    grey(0, file_has)(objects()[0]).save(path)
    with pytest.raises(ImageError, match=rf"{path.name}: holds .*taken for {set_has}"):
        _ = pairs.load(other).masks


def test_opaque_file_that_the_sample_missed_in_a_set_of_transparent_ones_is_named_when_read(tmp_path: Path) -> None:
    def cut_out(mask: Mask) -> Image.Image:
        return Image.fromarray(np.dstack([*[np.full(mask.shape, 9, np.uint8)] * 3, mask.astype(np.uint8) * 255]))

    write(tmp_path, cut_out, masks=objects() * 17)
    pairs = opened(tmp_path)
    seen = {histogram.path.name for histogram in pairs._sample}
    other = next(index for index, key in enumerate(pairs.keys) if f"{key}.png" not in seen)
    path = pairs.opened.files[other].pair.masks[0]
    grey(0, 255)(objects()[0]).save(path)
    with pytest.raises(ImageError, match=rf"{path.name}: is opaque, but the masks of its set were taken for"):
        _ = pairs.load(other).masks


def values(*chosen: int) -> Draw:
    """The first value around the object, the others in equal parts of it."""

    def draw(mask: Mask) -> Image.Image:
        parts = np.asarray(chosen[1:], np.uint8)[np.arange(WIDTH) % len(chosen[1:])]
        return Image.fromarray(np.where(mask, parts, np.uint8(chosen[0])))

    return draw


ODD = {
    "0/100": (grey(0, 255), values(0, 100), "holds no value above 100"),
    "numbers": (grey(0, 255), values(0, *range(1, 8)), "holds no value above 7"),
    "void": (grey(0, 255), values(0, 1, 255), "holds 0, 1, 255"),
    "colours": (grey(0, 255), coloured, "holds colours"),
    "palette": (grey(0, 255), palette((0, 0, 0), (0, 128, 0)), "holds colours"),
    "transparent": (grey(0, 255), white_on_nothing, "is transparent somewhere"),
    "black in transparent ones": (white_on_nothing, grey(0, 0), "is opaque"),
}


OF_ONE_VALUE = ("0/100", "colours", "palette")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("is_sampled", [False, True])
def test_odd_file_in_a_set_is_named_and_never_empty_or_full(odd: str, is_sampled: bool, tmp_path: Path) -> None:
    usual, other, words = ODD[odd]
    write(tmp_path, usual, masks=objects() * (3 if is_sampled else 17))
    pairs = opened(tmp_path)
    seen = {histogram.path.name for histogram in pairs._sample}
    place = next(index for index, key in enumerate(pairs.keys) if (f"{key}.png" in seen) == is_sampled)
    path = pairs.opened.files[place].pair.masks[0]
    other(objects()[0]).save(path)
    if is_sampled and odd in OF_ONE_VALUE:  # then each mask has one value beside 0, whichever it is
        assert np.array_equal(opened(tmp_path).load(place).masks[0], objects()[0])
        return
    with pytest.raises(
        (ImageError, InputError), match=rf"{path.name}: .*{words}|some masks are transparent|holds? 3 values"
    ):
        _ = (opened(tmp_path) if is_sampled else pairs).load(place).masks


def test_shades_of_soft_edges_are_no_contradiction(tmp_path: Path) -> None:
    """Masks that were drawn twice as large and halved have five values, masks of whole pixels two."""

    def halved(mask: Mask) -> Image.Image:
        large = np.repeat(np.repeat(mask, 2, 0), 2, 1)
        large = np.roll(large, 1, (0, 1)).astype(np.float64)
        return Image.fromarray((255 * large.reshape(HEIGHT, 2, WIDTH, 2).mean((1, 3))).astype(np.uint8))

    write(tmp_path, grey(0, 255), masks=objects() * 3)
    halved(objects()[1]).save(tmp_path / "masks" / "1.png")
    pairs = opened(tmp_path)
    found = pairs.load(pairs.keys.index("1")).masks[0]
    assert np.array_equal(found, np.asarray(halved(objects()[1])) >= 128)


def test_file_of_a_set_of_single_values_that_has_more_is_named(tmp_path: Path) -> None:
    write(tmp_path, grey(0, 1), masks=objects() * 17)
    for number in range(0, 68, 2):
        grey(0, 255)(objects()[number % 4]).save(tmp_path / "masks" / f"{number}.png")
    pairs = opened(tmp_path)
    seen = {histogram.path.name for histogram in pairs._sample}
    place = next(index for index, key in enumerate(pairs.keys) if f"{key}.png" not in seen)
    path = pairs.opened.files[place].pair.masks[0]
    values(255, 1)(objects()[0]).save(path)
    with pytest.raises(ImageError, match=rf"{path.name}: holds more than 0 and one other value"):
        _ = pairs.load(place).masks


def test_stated_values_mean_the_same_in_every_file_of_a_set(tmp_path: Path) -> None:
    """A file without colours is one of greys, and a palette may have greys among its colours."""

    def white_and_red(mask: Mask) -> Image.Image:
        colours = np.where(mask[..., None], (255, 255, 255), (0, 0, 0))
        colours[0, 0] = (255, 0, 0)
        return Image.fromarray(colours.astype(np.uint8))

    write(tmp_path, white_and_red)
    Image.fromarray(np.where(objects()[1][..., None], 255, 0).repeat(3, 2).astype(np.uint8)).save(
        tmp_path / "masks" / "1.png"
    )
    pairs = opened(tmp_path, foreground=(0xFFFFFF,))
    assert np.array_equal(pairs.load(1).masks[0], objects()[1])
    voc = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128,) * 3]
    write(tmp_path, palette(*voc, index=7))
    pairs = opened(tmp_path, foreground=(7,))
    assert all(np.array_equal(pairs.load(n).masks[0], mask) for n, mask in enumerate(objects()))


def test_files_of_several_pictures_and_of_deep_colours_are_refused(tmp_path: Path) -> None:
    pictures = [grey(0, 255)(mask) for mask in objects()]
    write(tmp_path, grey(0, 255), suffix=".tif")
    pictures[0].save(tmp_path / "masks" / "0.tif", save_all=True, append_images=pictures[1:])
    with pytest.raises(ImageError, match=r"0\.tif: holds 4 pictures, expected one"):
        opened(tmp_path)
