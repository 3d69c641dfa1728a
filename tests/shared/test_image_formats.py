"""Photos that Pillow alone would refuse, turn white or black, or fill the memory with."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pillow_heif
import pytest
import tifffile
from PIL import Image, PngImagePlugin

from sum_factory.shared import images
from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import MAX_MEMORY, decode_image, open_photo

Pixels = npt.NDArray[np.uint8]


def photo(height: int = 48, width: int = 64) -> Pixels:
    """Return smooth RGB pixels without any symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 3, rows * 2 + columns], axis=2).astype(np.uint8)


def encoded(pixels: npt.NDArray[np.generic], kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(pixels: npt.NDArray[np.generic], **options: object) -> bytes:
    """Return a TIFF by a library that is not Pillow."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


# Formats


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "a.avif"), ("JPEG2000", "a.jp2"), ("TGA", "A.TGA"), ("HEIF", "a")])
def test_photos_of_phones_and_of_old_programs_are_read(kind: str, name: str) -> None:
    if kind == "HEIF":
        buffer = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(photo())).save(buffer, quality=95)
        data = buffer.getvalue()
    else:
        data = encoded(photo(), kind, **({"quality": 95} if kind == "AVIF" else {}))
    assert np.abs(decode_image(data, name).astype(int) - photo()).mean() < 4


def test_bytes_without_a_signature_are_a_tga_only_by_their_name() -> None:
    with pytest.raises(ImageError, match=r"notes\.jpg: not an image of a known format"):
        decode_image(encoded(photo(), "TGA"), "notes.jpg")


def test_heif_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(photo())).save(buffer, quality=95, exif=exif.tobytes())
    upright = np.rot90(photo(), -1)
    assert np.abs(decode_image(buffer.getvalue(), "a.heic").astype(int) - upright).mean() < 4


# What is called damaged and is not


def large_text(kind: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    if kind == "behind":
        text = chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(3 << 20)))
        data = encoded(photo(), "PNG")
        return data[:-12] + text + data[-12:]
    if kind == "iCCP":
        return encoded(photo(), "PNG", icc_profile=bytes(3 << 20))
    for number in range(66 if kind == "many" else 1):
        info.add_text(f"{number}", "x" * ((1 << 20) - 9 if kind == "many" else 3 << 20), zip=True)
    if kind == "iTXt":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", "x" * (3 << 20), zip=True)
    return encoded(photo(), "PNG", pnginfo=info)


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "many", "behind"])
def test_large_text_or_profile_is_no_damage(kind: str) -> None:
    data = large_text(kind)
    with pytest.raises((ValueError, SyntaxError)), Image.open(io.BytesIO(data)) as image:  # or it tests nothing
        image.load()
    np.testing.assert_array_equal(decode_image(data, "a.png"), photo())


def test_small_text_stays_and_still_turns_the_photo() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>')
    info.add_text("comment", "x" * (3 << 20))
    np.testing.assert_array_equal(decode_image(encoded(photo(), "PNG", pnginfo=info), "a"), photo()[::-1, ::-1])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_jpeg_that_lacks_only_its_end_mark_is_read(progressive: bool, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 56 + seed, 3), dtype=np.uint8)
    whole = encoded(noise, "JPEG", progressive=progressive, quality=90)
    expected = np.asarray(Image.open(io.BytesIO(whole)))
    assert whole.endswith(b"\xff\xd9")
    for cut in (1, 2):
        np.testing.assert_array_equal(decode_image(whole[:-cut], "a.jpg"), expected)
    for cut in (4, 6, 20, 100, 1000):
        with pytest.raises(ImageError, match="cut short"):
            decode_image(whole[:-cut], "a.jpg")


# Channels


def test_fourth_channel_of_a_tiff_is_alpha_only_if_it_says_so() -> None:
    infrared = np.full((48, 64), 40, np.uint8)
    four = np.dstack([photo(), infrared])
    data = tiff(four, photometric="rgb", extrasamples=("unspecified",))
    np.testing.assert_array_equal(decode_image(data, "a.tif"), photo())
    blended = decode_image(tiff(four, photometric="rgb", extrasamples=("unassalpha",)), "a.tif")
    assert np.abs(blended - (photo() * (40 / 255) + 255 * (215 / 255))).max() <= 1


def test_tiff_without_extra_samples_has_no_alpha() -> None:
    data = tiff(np.dstack([photo(), np.zeros((48, 64), np.uint8)]), photometric="rgb", extrasamples=("unassalpha",))
    order = "<" if data[:2] == b"II" else ">"
    entry = data.index(struct.pack(f"{order}HH", 338, 3))  # the entry ExtraSamples, which becomes a private tag
    data = data[:entry] + struct.pack(f"{order}H", 65_000) + data[entry + 2 :]
    np.testing.assert_array_equal(decode_image(data, "a.tif"), photo())


def test_cmyk_tiff_shows_its_colours() -> None:
    cmyk = np.zeros((16, 32, 4), np.uint8)
    cmyk[:, :16], cmyk[:, 16:] = (0, 255, 255, 0), (255, 255, 0, 0)
    decoded = decode_image(tiff(cmyk, photometric="separated"), "a.tif")
    np.testing.assert_array_equal(decoded[0, [0, -1]], [[255, 0, 0], [0, 0, 255]])


def test_tiff_of_channels_that_are_no_colours_is_refused_by_name() -> None:
    data = tiff(np.dstack([photo(), photo()[..., :2]]), photometric="minisblack", planarconfig="contig")
    with pytest.raises(ImageError, match=r"scan\.tif: a TIFF whose channels or bits"):
        decode_image(data, "scan.tif")


def test_sixteen_bit_negative_is_turned_to_a_positive() -> None:
    deep = np.linspace(0, 65_535, 48 * 64).astype(np.uint16).reshape(48, 64)
    decoded = decode_image(tiff(deep, photometric="miniswhite"), "a.tif")
    np.testing.assert_array_equal(decoded[..., 0], 255 - np.rint(deep / 257).astype(np.uint8))


# Depth


def twelve_bits() -> npt.NDArray[np.uint16]:
    return (photo()[..., 0].astype(np.uint16) * 16 + 5) % 4096


def test_twelve_bits_in_sixteen_are_told_of() -> None:
    assert open_photo(encoded(twelve_bits(), "PNG"), "a").decode().is_dim
    assert open_photo(tiff(np.dstack([twelve_bits()] * 3), photometric="rgb"), "a").decode().is_dim
    assert not open_photo(encoded(twelve_bits() * 16, "PNG"), "a").decode().is_dim
    assert not open_photo(encoded(np.full((9, 9), 7, np.uint16), "PNG"), "a").decode().is_dim  # of one value: a blank
    assert not open_photo(encoded((photo() // 8).astype(np.uint8), "PNG"), "a").decode().is_dim  # a dark photo


def expected_stretch(values: npt.NDArray[np.uint16]) -> Pixels:
    """Stretch naively: the thousandth part of the values at each end is black, or white."""
    ordered = np.sort(values.reshape(-1))
    low, high = (float(ordered[int(np.ceil(share * ordered.size)) - 1]) for share in (0.001, 0.999))
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("turn", [1, 3, 6])
def test_stretched_photo_has_its_data_from_black_to_white(channels: int, kind: str, turn: int) -> None:
    rng = np.random.default_rng(channels)
    values = rng.integers(200, 4096, (30, 40, 3)).astype(np.uint16)
    stored = np.dstack([values, np.full((30, 40), 65_535, np.uint16)])[..., :channels]
    upright = {1: lambda a: a, 3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1)}[turn]
    if kind == "TIFF":
        extra = {"extrasamples": ("unassalpha",)} if channels == 4 else {}
        photometric = "rgb" if channels > 1 else "minisblack"
        data = tiff(
            stored if channels > 1 else stored[..., 0],
            photometric=photometric,
            extratags=[(274, "H", 1, turn, True)],
            **extra,
        )
    else:
        data = png16(stored, turn)
    expected = expected_stretch(values if channels > 1 else values[..., :1])
    np.testing.assert_array_equal(
        decode_image(data, "a", stretch=True), upright(np.broadcast_to(expected, values.shape))
    )


def png16(values: npt.NDArray[np.uint16], turn: int) -> bytes:
    """Write a PNG of 16 bits by hand: Pillow has none of several channels."""
    height, width, channels = values.shape
    exif = Image.Exif()
    exif[0x0112] = turn
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [(b"IHDR", header), (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")), (b"IDAT", zlib.compress(rows))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def test_eight_bits_are_not_stretched() -> None:
    data = encoded(photo() // 2, "PNG")
    np.testing.assert_array_equal(decode_image(data, "a", stretch=True), photo() // 2)


# Memory


def bomb(width: int, height: int, depth: int, colour: int) -> bytes:
    """Return a PNG of white, opaque if it has an alpha, by its rows one after the other."""
    packer, row = zlib.compressobj(1), b"\0" + b"\xff" * (width * depth // 8 * {0: 1, 2: 3, 6: 4}[colour])
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("depth", "colour"), [(16, 0), (8, 6), (16, 6)], ids=["deep grey", "alpha", "deep alpha"])
def test_decoding_takes_no_more_than_it_said(depth: int, colour: int) -> None:
    """Pillow's own picture is not seen by ``tracemalloc``, so it is taken off what was said."""
    side = 1800
    opened = open_photo(bomb(side, side, depth, colour), "wall.png")
    of_pillow = side * side * (2 if colour == 0 else 4)
    tracemalloc.start()
    try:
        pixels = opened.decode().pixels
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert pixels.shape == (side, side, 3)
    assert peak + of_pillow <= opened.bytes_needed <= side * side * 8 + (1 << 27)


def test_what_needs_too_much_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), "JPEG2000")
    needed = open_photo(data, "a").bytes_needed
    monkeypatch.setattr(images, "MAX_MEMORY", needed - 1)
    monkeypatch.setattr(Image.Image, "load", pytest.fail)
    with pytest.raises(ImageError, match=r"a: 64 x 48 .* JPEG2000, RGB, takes .* GiB to decode, more than the limit"):
        open_photo(data, "a")


def test_every_kind_of_png_and_jpeg_within_the_limit_of_pixels_is_decoded() -> None:
    """A photo of the largest size is refused for its format alone, never for its mode."""
    at_most = images.MAX_PIXELS // 10_000
    for depth, colour in ((16, 0), (8, 2), (8, 6), (16, 6)):
        header = struct.pack(">IIBBBBB", at_most, 10_000, depth, colour, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        assert open_photo(data, "a").bytes_needed <= MAX_MEMORY


def test_tile_that_is_larger_than_its_picture_counts() -> None:
    small = open_photo(tiff(photo(), photometric="rgb", tile=(64, 64)), "a").bytes_needed
    large = open_photo(tiff(photo(), photometric="rgb", tile=(1024, 1024)), "a").bytes_needed
    assert large - small >= 3 * (1024 * 1024 - 64 * 64)


def test_jpeg_of_endless_scans_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), "JPEG", progressive=True)
    scan = data.index(b"\xff\xda", data.index(b"\xff\xda") + 2)
    with pytest.raises(ImageError, match="in more parts than any camera makes"):
        decode_image(data[:scan] + data[scan:-2] * 200 + data[-2:], "a.jpg")


def out_of_memory(self: Image.Image) -> None:
    raise MemoryError


def test_memory_that_is_short_is_not_the_fault_of_the_photo(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise MemoryError

    opened: Callable[[], object] = open_photo(encoded(photo(), "BMP"), "a").decode
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", out_of_memory)
    with pytest.raises(ImageError, match="damaged"):
        opened()
    monkeypatch.setattr(images.np, "empty", none_left)
    with pytest.raises(MemoryError):
        opened()


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("dtype", "top"), [("int16", 30_000), ("int32", 60_000), ("float32", 1.0), ("uint32", 4e9)])
def test_deep_grey_tiffs_are_right_in_every_order_of_bytes(
    order: str, compression: str | None, dtype: str, top: float
) -> None:
    """Or refused, as Pillow refuses uint32 of the other order."""
    values = np.linspace(0, top, 40 * 50).reshape(40, 50).astype(dtype)
    file = io.BytesIO()
    tifffile.imwrite(file, values, byteorder=order, compression=compression)
    if (dtype, order) == ("uint32", ">"):
        with pytest.raises(ImageError, match="save it as RGB"):
            decode_image(file.getvalue(), "a.tif")
        return
    white = 65_535 if top > 1 and top <= 65_535 else values.max()
    found = decode_image(file.getvalue(), "a.tif").astype(np.float64)
    assert np.abs(found - 255.0 * values[..., None].astype(np.float64) / white).max() <= 0.51


def test_deep_colours_in_planes_are_refused() -> None:
    values = np.random.default_rng(0).integers(0, 65_536, (3, 20, 30)).astype(np.uint16)
    file = io.BytesIO()
    tifffile.imwrite(file, values, planarconfig="separate", photometric="rgb")
    with pytest.raises(ImageError, match="one after the other"):
        decode_image(file.getvalue(), "a.tif")
