"""Photos kept as JPEG: what Pillow decodes, in RGB order, near the pixels that went in."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sum_factory.shared.codecs.photo import FULL_COLOUR_BELOW, QUALITY, chroma_of, decode_photo, encode_photo
from sum_factory.shared.errors import ImageError


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return smooth RGB pixels whose channels differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 200 / height, columns * 200 / width, 255 - rows * 100 / height], 2).astype(np.uint8)


@pytest.mark.parametrize("size", [(128, 96), (85, 128), (1, 128), (128, 1), (33, 77), (1024, 683), (681, 1024)])
def test_decoded_pixels_are_those_of_pillow_and_near_the_original(size: tuple[int, int]) -> None:
    pixels = photo(*size)
    data = encode_photo(pixels)
    decoded = decode_photo(data, "photo").transpose(1, 2, 0)
    np.testing.assert_array_equal(decoded, np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(decoded.astype(int) - pixels).mean() < 3


def test_channels_are_red_green_blue() -> None:
    for channel in range(3):
        pixels = np.zeros((16, 16, 3), np.uint8)
        pixels[..., channel] = 200
        means = decode_photo(encode_photo(pixels), "photo").mean((1, 2))
        assert int(means.argmax()) == channel
        assert float(means[channel]) > 190


def test_equal_pixels_give_equal_bytes() -> None:
    assert encode_photo(photo(64, 48)) == encode_photo(photo(64, 48))


@pytest.mark.parametrize(
    ("size", "chroma", "sampling"),
    [
        ((64, 48), "4:4:4", (1, 1)),
        ((48, FULL_COLOUR_BELOW - 1), "4:4:4", (1, 1)),
        ((48, FULL_COLOUR_BELOW), "4:2:0", (2, 2)),
        ((FULL_COLOUR_BELOW, 48), "4:2:0", (2, 2)),
    ],
)
def test_quality_and_chroma_are_those_that_the_layer_names(
    size: tuple[int, int], chroma: str, sampling: tuple[int, int]
) -> None:
    image = Image.open(io.BytesIO(encode_photo(photo(*size))))
    assert image.format == "JPEG"
    assert chroma_of(max(size)) == chroma
    assert [layer[1:3] for layer in image.layer] == [sampling, (1, 1), (1, 1)]
    sink = io.BytesIO()
    Image.fromarray(photo(*size)).save(sink, "JPEG", quality=QUALITY)
    assert image.quantization == Image.open(io.BytesIO(sink.getvalue())).quantization


@pytest.mark.parametrize("data", [b"", b"no JPEG", encode_photo(photo(64, 48))[:300], b"GIF\xff\xd9"])
def test_damaged_data_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ImageError, match="that photo: damaged"):
        decode_photo(data, "that photo")
