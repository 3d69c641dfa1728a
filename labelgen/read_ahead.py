"""Read, decode and scale the photos of a unit while the ones before them are being worked on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from functools import partial
from itertools import count
from typing import NamedTuple

from sum_factory.labelgen.room import Room
from sum_factory.shared.errors import ImageError
from sum_factory.shared.gpu.jpeg import JpegDecoder
from sum_factory.shared.images import MAX_MEMORY, RgbImage, open_photo
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import resized_size
from sum_factory.shared.sam.runtime import resize
from sum_factory.shared.threads import GeneratorPool

READ_AHEAD = 2
"""Images that are read, decoded and scaled while another is being worked on."""

LARGE_FILE = 64 << 20
"""Bytes of a file from which it is read alone: nobody knows before what decoding it takes."""
RESIZE_BYTES = 8
"""Bytes per pixel that a decoded photo takes while it is scaled: Pillow has a copy of it."""


class LoadedPhoto(NamedTuple):
    """The pixels of a photo, RGB uint8 (H, W, 3), and what ``resize`` makes of them for a SAM."""

    pixels: RgbImage
    resized: RgbImage


class Decoding:
    """How photos are decoded, and the first of them that came out dim.

    With ``stretch``, photos of more than 8 bits are stretched. ``dim`` is the name of the first photo of more than 8
    bits in which nothing is bright, as if its data were in the lower bits. ``by_gpu`` decodes JPEGs, if it is given.
    """

    def __init__(self, stretch: bool = False, by_gpu: JpegDecoder | None = None) -> None:
        self.stretch, self.by_gpu = stretch, by_gpu
        self.dim: str | None = None


def read_ahead(
    images: Iterable[PhotoFile],
    side: int,
    read: Callable[[PhotoFile], bytes],
    refused: Mapping[str, str] | None = None,
    decoding: Decoding | None = None,
    ahead: int = READ_AHEAD,
) -> Iterator[Callable[[], LoadedPhoto]]:
    """Yield for each image a function that returns the photo, whose file ``read`` gives, or raises as ``load_photo``.

    Those that ``refused`` has, by key, are not read: their function raises ``ImageError`` with what it says of them.
    Photos that are being decoded, or are decoded and not asked for yet, share the memory that one may take alone. So
    call each function as it comes, or in another thread: asking for the end before calling those that came before may
    wait for ever. ``ahead`` photos are read, decoded and scaled beside the one that is worked on.
    """
    decoding, room = decoding or Decoding(), Room(MAX_MEMORY)

    def load(turn: int, image: PhotoFile) -> LoadedPhoto:
        try:
            if refused and image.key in refused:
                raise ImageError(refused[image.key])
            photo = load_photo(image, side, read, decoding, partial(room.enter, turn))
        except BaseException:
            room.leave(turn)
            raise
        room.keep(turn, photo.pixels.nbytes + photo.resized.nbytes)
        return photo

    def take(turn: int, future: Future[LoadedPhoto]) -> LoadedPhoto:
        try:
            return future.result()
        finally:
            room.leave(turn)

    try:
        with GeneratorPool(ahead) as pool:
            pending: list[Future[LoadedPhoto]] = []
            turns = count()
            for turn, image in enumerate(images):
                pending.append(pool.submit(load, turn, image))
                if len(pending) > ahead:
                    yield partial(take, next(turns), pending.pop(0))
            for future in pending:
                yield partial(take, next(turns), future)
            wait(pending)  # the pool drops what is not begun, and functions may be called after the last is yielded
    finally:
        room.close()


def load_photo(
    image: PhotoFile,
    side: int,
    read: Callable[[PhotoFile], bytes],
    decoding: Decoding | None = None,
    enter: Callable[[int], object] = lambda size: None,
) -> LoadedPhoto:
    """Return an image, whose file ``read`` gives, for a SAM of input ``side``.

    ``enter`` is called with the bytes that are needed before any pixel is decoded, and may wait. For a large file it is
    also called before reading, as unpacking may take much. Raises what ``read`` does, and ``ImageError`` if the photo
    cannot be used.
    """
    decoding = decoding or Decoding()
    if (image.size or 0) > LARGE_FILE:
        enter(MAX_MEMORY)
    name, data = image.name, read(image)
    opened = open_photo(data, name, decoding.stretch)
    if 0 in resized_size(opened.height, opened.width, side):
        raise ImageError(
            f"{name}: {opened.width} x {opened.height} is too thin for SAM's square of {side} px; cut it up"
        )
    enter(max(opened.bytes_needed + len(data), RESIZE_BYTES * opened.height * opened.width))
    if decoding.by_gpu is not None and opened.is_plain_jpeg:
        decoded = decoding.by_gpu.decode(data, side)
        if decoded is not None:
            return LoadedPhoto(*decoded)
    pixels, is_dim = opened.decode()
    del opened, data  # Pillow's own picture is as large, and is needed no more
    if is_dim and decoding.dim is None:
        decoding.dim = name
    return LoadedPhoto(pixels, resize(pixels, side))
