"""Every kind of photo becomes RGB in the same way that Pillow and NumPy say it should; the rest raises ImageError."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import MAX_PIXELS, decode_image, digest

Pixels = npt.NDArray[np.uint8]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Return the bytes of ``image`` as a file of format ``kind``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(height: int = 24, width: int = 40) -> Pixels:
    """Return smooth RGB pixels without any symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 9, columns * 5, rows * 3 + columns], axis=2).astype(np.uint8)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk of a PNG file."""
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_header(width: int, height: int) -> bytes:
    """Return the start of a PNG: its size is known, its pixels are absent."""
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", size) + png_chunk(b"IDAT", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_rgb_comes_back_exactly(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(Image.fromarray(photo()), kind, **options), "a")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, photo())


def test_decoded_pixels_can_be_written_to() -> None:
    assert decode_image(encoded(Image.fromarray(photo()), "PNG"), "a").flags.writeable


def test_grey_is_repeated_in_three_channels() -> None:
    grey = photo()[..., 0]
    decoded = decode_image(encoded(Image.fromarray(grey), "PNG"), "a")
    np.testing.assert_array_equal(decoded, np.stack([grey] * 3, axis=2))


def test_one_bit_image_becomes_black_and_white() -> None:
    bits = photo()[..., 0] > 90
    decoded = decode_image(encoded(Image.fromarray(bits), "PNG"), "a")
    np.testing.assert_array_equal(decoded, np.where(bits, 255, 0)[..., None].repeat(3, axis=2))


def test_sixteen_bit_grey_is_scaled_by_257() -> None:
    deep = np.linspace(0, 65_535, 24 * 40).round().astype(np.uint16).reshape(24, 40)
    assert deep.max() == 65_535
    decoded = decode_image(encoded(Image.fromarray(deep), "PNG"), "a")
    expected = np.rint(deep / 257.0).astype(np.uint8)
    assert expected.max() == 255
    np.testing.assert_array_equal(decoded, expected[..., None].repeat(3, axis=2))


def test_sixteen_bit_grey_keeps_its_darkness() -> None:
    deep = np.full((4, 5), 2_570, np.uint16)
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(deep), "PNG"), "a"), np.full((4, 5, 3), 10))


def test_float_image_is_stretched_from_its_own_range_and_nan_is_black() -> None:
    values = np.linspace(-2.0, 2.0, 20, dtype=np.float32).reshape(4, 5)
    values[0, 1] = np.nan
    decoded = decode_image(encoded(Image.fromarray(values), "TIFF"), "a")
    expected = np.rint((np.nan_to_num(values.astype(np.float64), nan=-2.0) + 2) / 4 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decoded[..., 0], expected)


def test_transparency_shows_white() -> None:
    alpha = np.tile(np.linspace(0, 255, 40).round().astype(np.uint8), (24, 1))
    rgba = np.dstack([photo(), alpha])
    decoded = decode_image(encoded(Image.fromarray(rgba), "PNG"), "a")
    share = alpha[..., None] / 255.0
    blended = share * photo() + (1 - share) * 255
    assert np.abs(decoded - blended).max() <= 1
    np.testing.assert_array_equal(decoded[:, 0], 255)
    np.testing.assert_array_equal(decoded[:, -1], photo()[:, -1])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_photo_that_is_transparent_everywhere_is_refused(mode: str) -> None:
    """Over white nothing of it would be left, and nobody would be told."""
    image = Image.fromarray(photo()).convert(mode)
    image.putalpha(0)
    with pytest.raises(ImageError, match=r"^a: transparent everywhere, so that nothing of it is seen"):
        decode_image(encoded(image, "PNG"), "a")


def test_transparent_grey_shows_white() -> None:
    grey = np.full((6, 7), 100, np.uint8)
    alpha = np.where(np.arange(7) < 3, 0, 255).astype(np.uint8) * np.ones((6, 1), np.uint8)
    image = Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha)))
    decoded = decode_image(encoded(image, "PNG"), "a")
    np.testing.assert_array_equal(decoded, np.where(alpha == 0, 255, 100)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("transparency", [0, bytes([0, 255, 128])], ids=["one index", "alpha of each index"])
def test_transparent_palette_entry_shows_white(transparency: int | bytes) -> None:
    indices = (np.arange(30) % 3).astype(np.uint8).reshape(5, 6)
    palette = np.array([[250, 0, 0], [0, 250, 0], [0, 0, 250]], np.uint8)
    image = Image.frombytes("P", (6, 5), indices.tobytes())
    image.putpalette(palette.tobytes())
    decoded = decode_image(encoded(image, "PNG", transparency=transparency), "a")
    np.testing.assert_array_equal(decoded[indices == 0], 255)
    np.testing.assert_array_equal(decoded[indices == 1], np.broadcast_to(palette[1], (10, 3)))
    half = palette[2] if isinstance(transparency, int) else palette[2] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(decoded[indices == 2] - np.asarray(half)).max() <= 1


def test_opaque_palette_shows_its_colours() -> None:
    indices = (np.arange(30) % 3).astype(np.uint8).reshape(5, 6)
    palette = np.array([[1, 2, 3], [40, 50, 60], [255, 254, 253]], np.uint8)
    image = Image.frombytes("P", (6, 5), indices.tobytes())
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), "a"), palette[indices])


def test_cmyk_jpeg_shows_its_colours() -> None:
    cmyk = np.zeros((16, 32, 4), np.uint8)
    cmyk[:, :16] = (0, 255, 255, 0)  # red
    cmyk[:, 16:] = (255, 255, 0, 0)  # blue
    decoded = decode_image(encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=95), "a").astype(int)
    assert np.abs(decoded[:, :15] - (255, 0, 0)).max() <= 10
    assert np.abs(decoded[:, 17:] - (0, 0, 255)).max() <= 10


UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: stored.swapaxes(0, 1)[:, ::-1],
    7: lambda stored: stored.swapaxes(0, 1)[::-1, ::-1],
    8: lambda stored: stored.swapaxes(0, 1)[::-1],
}
"""What to do to stored pixels, by the EXIF orientation: where row 0 and column 0 lie, from the EXIF standard."""


@pytest.mark.parametrize("orientation", sorted(UPRIGHT))
def test_exif_orientation_turns_the_photo_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(encoded(Image.fromarray(photo()), "PNG", exif=exif.tobytes()), "a")
    np.testing.assert_array_equal(decoded, UPRIGHT[orientation](photo()))


def test_exif_orientation_of_a_jpeg_turns_it_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(photo()), "JPEG", quality=95)
    turned = encoded(Image.fromarray(photo()), "JPEG", quality=95, exif=exif.tobytes())
    np.testing.assert_array_equal(decode_image(turned, "a"), UPRIGHT[6](decode_image(plain, "a")))


def test_jpeg_of_two_cameras_shows_the_first_picture() -> None:
    first, second = Image.fromarray(photo()), Image.fromarray(photo()[::-1].copy())
    decoded = decode_image(encoded(first, "MPO", save_all=True, append_images=[second], quality=95), "a")
    assert np.abs(decoded.astype(int) - photo()).max() <= 40
    assert np.abs(decoded.astype(int) - photo()).mean() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0",
    ],
    ids=["no header", "no directory", "orientation is text"],
)
def test_damaged_exif_does_not_spoil_the_photo(kind: str, exif: bytes) -> None:
    plain, damaged = (encoded(Image.fromarray(photo()), kind, **options) for options in ({}, {"exif": exif}))
    np.testing.assert_array_equal(decode_image(damaged, "a"), decode_image(plain, "a"))


def test_exif_of_wrong_types_does_not_hinder_turning() -> None:
    # Little-endian TIFF directory: orientation 6, and a resolution unit (a number) given as text.
    entries = [(0x0112, 3, 1, b"\x06\0\0\0"), (0x0128, 2, 4, b"abc\0")]
    directory = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + directory + bytes(4)
    decoded = decode_image(encoded(Image.fromarray(photo()), "PNG", exif=exif), "a")
    np.testing.assert_array_equal(decoded, UPRIGHT[6](photo()))


def test_single_pixel_is_an_image() -> None:
    data = encoded(Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)), "PNG")
    np.testing.assert_array_equal(decode_image(data, "a"), [[[1, 2, 3]]])


def test_empty_file_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match=r"holiday\.jpg: .*empty"):
        decode_image(b"", "holiday.jpg")


def test_text_is_refused_by_name() -> None:
    with pytest.raises(ImageError, match=r"notes\.jpg: not an image.*b'Dear diary"):
        decode_image(b"Dear diary, today it rained.", "notes.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_file_is_refused_by_name(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    assert decode_image(data, "whole").shape == (40, 60, 3)
    with pytest.raises(ImageError, match=r"short\.img"):
        decode_image(data[: int(share * len(data))], "short.img")


@pytest.mark.parametrize(
    ("width", "height"), [(MAX_PIXELS + 1, 1), (20_000, 10_001), (100_000, 100_000)], ids=["long", "large", "huge"]
)
def test_image_of_too_many_pixels_is_refused_by_its_header(width: int, height: int) -> None:
    for data in (png_header(width, height), f"P6 {width} {height} 255\n".encode()):
        with pytest.raises(ImageError, match=r"wall\.png: .*more than the limit.*scale it down"):
            decode_image(data, "wall.png")


def test_image_just_within_the_limit_is_not_called_too_large() -> None:
    with pytest.raises(ImageError, match="cut short"):
        decode_image(png_header(MAX_PIXELS // 1_000, 1_000), "wall.png")


def test_other_formats_are_refused_whatever_the_name() -> None:
    postscript = encoded(Image.fromarray(photo()), "EPS")
    with pytest.raises(ImageError, match=r"drawing\.jpg: not an image of a known format"):
        decode_image(postscript, "drawing.jpg")


def test_digest_is_sha256() -> None:
    # First test vector of FIPS 180-2, appendix B.
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


SAMPLES = {
    "png": encoded(Image.fromarray(photo()), "PNG"),
    "jpeg": encoded(Image.fromarray(photo()), "JPEG"),
    "tiff": encoded(Image.fromarray(photo()), "TIFF", compression="tiff_lzw"),
    "deep tiff": encoded(Image.fromarray(photo()[..., 0].astype(np.uint16) * 250), "TIFF"),
    "gif": encoded(Image.fromarray(photo()).quantize(8), "GIF"),
    "webp": encoded(Image.fromarray(photo()), "WEBP"),
    "bmp": encoded(Image.fromarray(photo()), "BMP"),
    "jpeg 2000": encoded(Image.fromarray(photo()), "JPEG2000"),
    "avif": encoded(Image.fromarray(photo()), "AVIF"),
    "heif": encoded(Image.fromarray(photo()), "HEIF"),
    "progressive jpeg": encoded(Image.fromarray(photo()), "JPEG", progressive=True),
}
SIGNATURES = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\x00", b"GIF89a", b"BM", b"P6 3 3 255\n", b"RIFF"]


def require_image_or_image_error(data: bytes) -> None:
    try:
        decoded = decode_image(data, "random.jpg")
    except ImageError as error:
        assert str(error).startswith("random.jpg: ")  # noqa: PT017
    else:
        assert decoded.dtype == np.uint8
        assert decoded.shape[2:] == (3,)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_random_bytes_only_ever_raise_image_error(data: bytes) -> None:
    require_image_or_image_error(data)


@settings(deadline=None)
@given(st.sampled_from(SIGNATURES), st.binary())
def test_random_bytes_after_a_true_signature_only_ever_raise_image_error(signature: bytes, data: bytes) -> None:
    require_image_or_image_error(signature + data)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(sorted(SAMPLES)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    st.floats(0.5, 1),
)
def test_damaged_images_only_ever_raise_image_error(sample: str, changes: list[tuple[float, int]], kept: float) -> None:
    data = bytearray(SAMPLES[sample])
    for place, value in changes:
        data[int(place * len(data))] = value
    require_image_or_image_error(bytes(data[: int(kept * len(data))]))
