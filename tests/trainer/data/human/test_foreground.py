"""What is foreground in mask files of every kind that users have; the expected masks are drawn here by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from mask_pictures import (
    Draw,
    Mask,
    coloured,
    colours,
    cut_out,
    grey,
    height_in_alpha,
    objects,
    opaque,
    opened,
    palette,
    soft,
    stripes,
    white_on_black_and_nothing,
    white_on_nothing,
    write,
)
from sum_factory.shared.errors import ImageError, InputError

FILES: dict[str, tuple[Draw, str]] = {
    "0 and 255": (grey(0, 255), ".png"),
    "0 and 1": (grey(0, 1), ".png"),
    "0 and 100": (grey(0, 100), ".png"),
    "38 and 75": (grey(38, 75), ".png"),
    "1 and 2": (grey(1, 2), ".png"),
    "16 bits, 0 and 255": (grey(0, 255, np.uint16), ".png"),
    "16 bits, 0 and 1": (grey(0, 1, np.uint16), ".png"),
    "16 bits, 0 and 65535": (grey(0, 65_535, np.uint16), ".png"),
    "floats, 0 and 1": (grey(0, 1, np.float32), ".tif"),
    "one bit": (lambda mask: Image.fromarray(mask), ".png"),
    "palette of classes": (palette((0, 0, 0), (128, 0, 0)), ".png"),
    "palette with class 15": (palette((0, 0, 0), *[(9, k, 200) for k in range(16)], index=15), ".png"),
    "palette of greys, as in GIFs": (palette((0, 0, 0), (255, 255, 255)), ".gif"),
    "palette that begins with white": (palette((200, 200, 90), (0, 0, 0)), ".png"),
    "a colour on black": (coloured, ".png"),
    "white on black in colours": (lambda mask: grey(0, 255)(mask).convert("RGB"), ".png"),
    "a photo that is cut out": (cut_out, ".png"),
    "white on nothing": (white_on_nothing, ".png"),
    "opaque": (opaque, ".png"),
    "JPEG": (grey(0, 255), ".jpg"),
    "JPEG in colours": (lambda mask: grey(0, 255)(mask).convert("RGB"), ".jpg"),
    "BMP": (grey(0, 255), ".bmp"),
    "lossless WebP": (lambda mask: grey(0, 255)(mask).convert("RGB"), ".webp"),
}


@pytest.mark.parametrize("kind", FILES)
def test_masks_of_every_kind_are_read_as_they_were_drawn(kind: str, tmp_path: Path) -> None:
    draw, suffix = FILES[kind]
    write(tmp_path, draw, suffix, **({"lossless": True} if suffix == ".webp" else {}))
    pairs = opened(tmp_path)
    expected = [~mask for mask in objects()] if "begins with white" in kind else objects()
    for number, mask in enumerate(expected):
        (found,) = pairs.load(number).masks
        if suffix == ".jpg":
            assert np.count_nonzero(found != mask) <= 4
        else:
            assert np.array_equal(found, mask)


def test_deep_tiffs_whose_0_is_white_are_not_inverted(tmp_path: Path) -> None:
    write(tmp_path, grey(0, 255))
    for number, mask in enumerate(objects()):
        (tmp_path / "masks" / f"{number}.png").unlink()
        stored = np.where(mask, 0, 65_535).astype(np.uint16)
        tifffile.imwrite(tmp_path / "masks" / f"{number}.tif", stored, photometric="miniswhite")
    pairs = opened(tmp_path)
    assert [np.array_equal(pairs.load(n).masks[0], mask) for n, mask in enumerate(objects())] == [True] * 4


def test_soft_edges_are_cut_at_half(tmp_path: Path) -> None:
    masks = [np.kron(mask, np.ones((4, 4), bool)) for mask in objects()]
    write(tmp_path, grey(0, 255), masks=masks)
    expected = []
    for number, mask in enumerate(objects()):
        soft(mask).save(tmp_path / "masks" / f"{number}.png")
        expected.append(np.asarray(soft(mask)) >= 128)
    pairs = opened(tmp_path)
    assert len(np.unique(np.asarray(soft(objects()[0])))) > 8
    for number, mask in enumerate(expected):
        assert np.array_equal(pairs.load(number).masks[0], mask)
    assert "128 and above" in pairs.findings[0]


def test_files_of_several_depths_in_one_set_are_not_zero(tmp_path: Path) -> None:
    write(tmp_path, grey(0, 1))
    grey(0, 255)(objects()[1]).save(tmp_path / "masks" / "1.png")
    palette((0, 0, 0), (0, 90, 0), (7, 7, 7), index=2)(objects()[2]).save(tmp_path / "masks" / "2.png")
    pairs = opened(tmp_path)
    assert [np.array_equal(pairs.load(n).masks[0], mask) for n, mask in enumerate(objects())] == [True] * 4


REFUSED: dict[str, tuple[Draw, str, str]] = {
    "trimap": (stripes(0, 128, 255), ".png", "3 values"),
    "numbers of objects": (stripes(0, 1, 2, 3), ".png", "numbers of objects"),
    "void at 255": (stripes(0, 1, 255), ".png", "void"),
    "many classes and void": (stripes(0, *range(1, 13), 255), ".png", "14 values"),
    "shades": (stripes(0, *range(20, 240, 10)), ".png", "shades"),
    "colours": (colours, ".png", r"\(0, 99, 0\) as 25344, \(200, 30, 40\) as 2629320\), more than two"),
    "lossy colours": (coloured, ".jpg", "lossy colours"),
    "0 and 1 in a JPEG": (grey(0, 3), ".jpg", "values|value"),
    "two masks": (white_on_black_and_nothing, ".png", "either may be the mask"),
    "height": (height_in_alpha, ".png", "alpha holds shades"),
    "palette with void": (stripes(0, 1, 255), ".gif", "values"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_may_mean_several_things_is_refused_with_what_to_say(kind: str, tmp_path: Path) -> None:
    draw, suffix, message = REFUSED[kind]
    write(tmp_path, draw, suffix)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path)
    assert "foreground:" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def areas(*parts: int) -> Draw:
    """Return what draws the values in areas beside each other, in front of 0; the mask says how large all is."""

    def draw(mask: Mask) -> Image.Image:
        picture = np.zeros(mask.shape, np.uint8)
        inside = np.linspace(0, len(parts) - 0.01, mask.shape[1] - 20).astype(int)
        picture[10:-10, 10:-10] = np.asarray(parts, np.uint8)[inside]
        return Image.fromarray(picture)

    return draw


def softly(draw: Draw, radius: int) -> Draw:
    return lambda mask: draw(mask).filter(ImageFilter.GaussianBlur(radius))


CLASSES = (36, 73, 109, 146, 182, 219, 255)
LARGE = [np.zeros((60, 160), bool)] * 4


@pytest.mark.parametrize(
    "draw", [areas(*CLASSES), softly(areas(*CLASSES), 1), areas(255, 128, 255), areas(*[255] * 8, 100)]
)
def test_classes_that_are_stretched_are_no_soft_edges(draw: Draw, tmp_path: Path) -> None:
    write(tmp_path, draw, masks=LARGE)
    with pytest.raises(InputError, match=r"masks: .*png holds (whole areas of|3 values).*foreground:"):
        opened(tmp_path)
    write(tmp_path, areas(255), masks=LARGE * 12)
    pairs = opened(tmp_path)
    seen = {histogram.path.name for histogram in pairs._sample}
    place = next(index for index, key in enumerate(pairs.keys) if f"{key}.png" not in seen)
    path = pairs.opened.files[place].pair.masks[0]
    draw(LARGE[0]).save(path)
    with pytest.raises(ImageError, match=rf"{path.name}: holds .*, but the masks of its set were taken for"):
        _ = pairs.load(place).masks


@pytest.mark.parametrize("radius", [1, 3])
def test_soft_edges_of_any_width_are_no_classes(radius: int, tmp_path: Path) -> None:
    write(tmp_path, softly(areas(255), radius), masks=LARGE)
    expected = np.asarray(softly(areas(255), radius)(LARGE[0])) >= 128
    assert np.array_equal(opened(tmp_path).load(0).masks[0], expected)
