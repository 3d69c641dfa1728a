"""JPEGs that a GPU decodes are Pillow's but for a level or two; what it should not decode is left to Pillow."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torchvision.io
from PIL import Image

from sum_factory.labelgen.read_ahead import Decoding, load_photo
from sum_factory.pipelines.microworld.scene import make_scene
from sum_factory.shared.errors import ImageError
from sum_factory.shared.gpu import jpeg
from sum_factory.shared.gpu.jpeg import JpegDecoder
from sum_factory.shared.images import RgbImage
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.sam.runtime import resize

DEVICES = [torch.device("cpu"), pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
SIDE = 128


@pytest.fixture(scope="module")
def scene() -> RgbImage:
    return np.ascontiguousarray(make_scene(0, 5).image[:200, :250])


def encoded(image: RgbImage, **options: object) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(image).save(sink, "JPEG", quality=92, **options)  # type: ignore[arg-type]
    return sink.getvalue()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was decoded by the device, by name of the device."""
    found: list[str] = []
    decode = torchvision.io.decode_jpeg

    def counted(data: torch.Tensor, mode: object, device: torch.device) -> torch.Tensor:
        found.append(device.type)
        return decode(data, mode, device=device)

    monkeypatch.setattr(torchvision.io, "decode_jpeg", counted)
    return found


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_photo_is_pillows_but_for_a_level_or_two(scene: RgbImage, device: torch.device, asked: list[str]) -> None:
    data = encoded(scene, subsampling=0)
    plain = load_photo(PhotoFile("a", "a"), SIDE, lambda _: data)
    found = load_photo(PhotoFile("a", "a"), SIDE, lambda _: data, Decoding(by_gpu=JpegDecoder(device)))
    assert asked == [device.type]
    for ours, pillows in zip(found, plain, strict=True):
        assert (ours.shape, ours.dtype) == (pillows.shape, np.uint8)
        assert np.abs(ours.astype(int) - pillows).max() <= 3
    assert np.abs(found.resized.astype(int) - resize(found.pixels, SIDE)).max() <= 1


@pytest.mark.parametrize("kind", ["turned", "grey", "CMYK", "png"])
def test_other_photos_are_left_to_pillow(scene: RgbImage, kind: str, asked: list[str]) -> None:
    sink = io.BytesIO()
    image = Image.fromarray(scene)
    if kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        image.save(sink, "JPEG", exif=exif)
    else:
        image.convert({"grey": "L", "CMYK": "CMYK", "png": "RGB"}[kind]).save(sink, "PNG" if kind == "png" else "JPEG")
    data = sink.getvalue()
    found = load_photo(PhotoFile("a", "a"), SIDE, lambda _: data, Decoding(by_gpu=JpegDecoder(torch.device("cpu"))))
    assert asked == []
    np.testing.assert_array_equal(found.pixels, load_photo(PhotoFile("a", "a"), SIDE, lambda _: data).pixels)


def test_file_that_is_cut_short_is_refused_as_ever(scene: RgbImage, asked: list[str]) -> None:
    data = encoded(scene)[:-2000]
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_photo(PhotoFile("a", "a"), SIDE, lambda _: data, Decoding(by_gpu=JpegDecoder(torch.device("cpu"))))
    assert asked == []


@pytest.mark.parametrize(
    ("error", "told"), [(RuntimeError("not compiled with nvJPEG support"), 1), (torch.OutOfMemoryError(), 0)]
)
def test_pillow_goes_on_where_the_gpu_cannot(
    scene: RgbImage, error: Exception, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(jpeg.SPEAKER, "say", said.append)

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.io, "decode_jpeg", fail)
    decoding = Decoding(by_gpu=JpegDecoder(torch.device("cpu")))
    data = encoded(scene)
    for _ in range(2):
        photo = load_photo(PhotoFile("a", "a"), SIDE, lambda _: data, decoding)
        np.testing.assert_array_equal(photo.pixels, load_photo(PhotoFile("a", "a"), SIDE, lambda _: data).pixels)
    assert len(said) == told
