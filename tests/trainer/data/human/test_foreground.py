"""What is foreground in mask files of every kind that users have; the expected masks are drawn here by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageFilter

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.trainer.data.human import FolderPairs
from sum_factory.trainer.data.sets import FolderPairsSettings, open_set

HEIGHT, WIDTH = 24, 32
Mask = npt.NDArray[np.bool_]
Draw = Callable[[Mask], Image.Image]


def objects() -> list[Mask]:
    """Return the masks of four photos: rectangles of less than half of the photo."""
    masks = []
    for number in range(4):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[4 + number : 16, 5 : 14 + 2 * number] = True
        masks.append(mask)
    return masks


def write(folder: Path, draw: Draw, suffix: str = ".png", masks: list[Mask] | None = None, **options: Any) -> None:
    """Write photos of noise, and masks as ``draw`` makes them."""
    for name in ("images", "masks"):
        (folder / name).mkdir(exist_ok=True)
    for number, mask in enumerate(objects() if masks is None else masks):
        noise = np.random.default_rng(number).integers(0, 256, (*mask.shape, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / f"{number}.jpg")
        draw(mask).save(folder / "masks" / f"{number}{suffix}", **options)


def opened(folder: Path, **changes: Any) -> FolderPairs:
    found = open_set(FolderPairsSettings("folder-pairs", folder / "images", folder / "masks", "salient", **changes))
    assert isinstance(found, FolderPairs)
    return found


def grey(low: int, high: int, dtype: Any = np.uint8) -> Draw:
    return lambda mask: Image.fromarray(np.where(mask, high, low).astype(dtype))


def palette(*colours: tuple[int, int, int], index: int = 1) -> Draw:
    def draw(mask: Mask) -> Image.Image:
        image = Image.fromarray(np.where(mask, index, 0).astype(np.uint8))
        image.putpalette([channel for colour in colours for channel in colour])
        return image

    return draw


def coloured(mask: Mask) -> Image.Image:
    return Image.fromarray(np.where(mask[..., None], (200, 30, 40), (0, 0, 0)).astype(np.uint8))


def cut_out(mask: Mask) -> Image.Image:
    """The photo where the object is, transparent elsewhere, where most programs leave black."""
    noise = np.random.default_rng(9).integers(0, 256, (*mask.shape, 3), np.uint8)
    return Image.fromarray(np.dstack([np.where(mask[..., None], noise, 0), np.where(mask, 255, 0)]).astype(np.uint8))


def white_on_nothing(mask: Mask) -> Image.Image:
    """White everywhere, and seen only where the object is: laid over white it would be full."""
    return Image.fromarray(np.dstack([np.full((*mask.shape, 3), 255), np.where(mask, 255, 0)]).astype(np.uint8))


def opaque(mask: Mask) -> Image.Image:
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGBA")


def soft(mask: Mask) -> Image.Image:
    """A mask with soft edges: its values at half and above are the mask."""
    return Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).resize(
        (WIDTH * 4, HEIGHT * 4), Image.Resampling.BICUBIC
    )


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


def values(*parts: int) -> Draw:
    """Return what draws the first value as background, and the others as stripes of the object."""

    def draw(mask: Mask) -> Image.Image:
        rows, columns = np.nonzero(mask)
        picture = np.full(mask.shape, parts[0], np.uint8)
        picture[rows, columns] = np.asarray(parts[1:], np.uint8)[columns % (len(parts) - 1)]
        return Image.fromarray(picture)

    return draw


def colours(mask: Mask) -> Image.Image:
    picture = np.where(mask[..., None], (200, 30, 40), (0, 0, 0)).astype(np.uint8)
    picture[:2] = (0, 99, 0)
    return Image.fromarray(picture)


def white_on_black_and_nothing(mask: Mask) -> Image.Image:
    """A mask in its colours and another in its alpha."""
    alpha = np.full(mask.shape, 255, np.uint8)
    alpha[:, :3] = 0
    return Image.fromarray(np.dstack([np.where(mask[..., None], 255, 0).repeat(3, 2), alpha]).astype(np.uint8))


def height_in_alpha(mask: Mask) -> Image.Image:
    slope = np.linspace(0, 255, mask.size).reshape(mask.shape)
    return Image.fromarray(np.dstack([np.where(mask[..., None], 255, 0).repeat(3, 2), slope]).astype(np.uint8))


REFUSED: dict[str, tuple[Draw, str, str]] = {
    "trimap": (values(0, 128, 255), ".png", "3 values"),
    "numbers of objects": (values(0, 1, 2, 3), ".png", "numbers of objects"),
    "void at 255": (values(0, 1, 255), ".png", "void"),
    "many classes and void": (values(0, *range(1, 13), 255), ".png", "14 values"),
    "shades": (values(0, *range(20, 240, 10)), ".png", "shades"),
    "colours": (colours, ".png", r"\(0, 99, 0\) as 25344, \(200, 30, 40\) as 2629320\), more than two"),
    "lossy colours": (coloured, ".jpg", "lossy colours"),
    "0 and 1 in a JPEG": (grey(0, 3), ".jpg", "values|value"),
    "two masks": (white_on_black_and_nothing, ".png", "either may be the mask"),
    "height": (height_in_alpha, ".png", "alpha holds shades"),
    "palette with void": (values(0, 1, 255), ".gif", "values"),
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


@pytest.mark.parametrize(
    ("foreground", "drawn", "chosen"),
    [
        ("half", values(0, 128, 255), (128, 255)),
        ((255,), values(0, 128, 255), (255,)),
        ("non-zero", values(0, 1, 2), (1, 2)),
        ((2,), values(0, 1, 2), (2,)),
        ("zero", values(255, 0), (0,)),
        ("half", values(0, 20, 60, 100), (60, 100)),
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
