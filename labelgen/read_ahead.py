"""Read, decode and scale the photos of a unit while the ones before them are being worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from typing import NamedTuple

from sum_factory.labelgen.threads import GeneratorPool
from sum_factory.shared.errors import ImageError
from sum_factory.shared.images import RgbImage, decode_image
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import resized_size
from sum_factory.shared.sam.runtime import resize

READ_AHEAD = 2
"""Images that are read, decoded and scaled while another is being worked on."""


class LoadedPhoto(NamedTuple):
    """The pixels of a photo, RGB uint8 (H, W, 3), and what ``resize`` makes of them for a SAM."""

    pixels: RgbImage
    resized: RgbImage


def read_ahead(
    images: Iterable[PhotoFile],
    side: int,
    read: Callable[[PhotoFile], bytes],
    refused: Mapping[str, str] | None = None,
) -> Iterator[Callable[[], LoadedPhoto]]:
    """Yield for each image a function that returns the photo, whose file ``read`` gives, or raises as ``load_photo``.

    Those that ``refused`` has, by key, are not read: their function raises ``ImageError`` with what it says of them.
    """

    def load(image: PhotoFile) -> LoadedPhoto:
        if refused and image.key in refused:
            raise ImageError(refused[image.key])
        return load_photo(image, side, read)

    with GeneratorPool(READ_AHEAD) as pool:
        pending: list[Future[LoadedPhoto]] = []
        for image in images:
            pending.append(pool.submit(load, image))
            if len(pending) > READ_AHEAD:
                yield pending.pop(0).result
        for future in pending:
            yield future.result
        wait(pending)  # the pool gives up what is not begun, and these may be asked for when there is no next one


def load_photo(image: PhotoFile, side: int, read: Callable[[PhotoFile], bytes]) -> LoadedPhoto:
    """Return an image, whose file ``read`` gives, for a SAM of input ``side``.

    Raises what ``read`` does, and ``ImageError`` if the photo cannot be used.
    """
    name, data = image.name, read(image)
    pixels = decode_image(data, name)
    height, width = pixels.shape[:2]
    if 0 in resized_size(height, width, side):
        raise ImageError(f"{name}: {width} x {height} is too thin for SAM's square of {side} px; cut it up")
    return LoadedPhoto(pixels, resize(pixels, side))
