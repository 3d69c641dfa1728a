"""The photos that a shard set was made of: where its plans say that a run found them, or where they lie now."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sum_factory.shared.errors import ImageError, InputError, SettingsError
from sum_factory.shared.images import RgbImage, decode_image, digest
from sum_factory.shared.photo_files import PhotoFile, read_bytes
from sum_factory.shared.places import links_of, parent_of
from sum_factory.shared.shards.shard_set import MASKS, ShardSet

STRETCH = "stretch"
"""The setting of layers of masks and of photos which says that deep photos were stretched; else it is not there."""


def original_of(shards: ShardSet, image: PhotoFile) -> PhotoFile:
    """Return an image of a plan with the place where its photo lies now."""
    return replace(image, url=shards.photos_from.moved(image.url))


def read_original(shards: ShardSet, image: PhotoFile, expected_sha256: str | None) -> bytes:
    """Read the file of an image of a plan, from where it lies now.

    ``expected_sha256`` is that of the file that was labelled, as the manifest of the masks has it: None if there was
    none to be read. Raises ``InputError`` if it is not there, which says how to tell where it is, ``ImageError`` if it
    is another file than the one that was labelled, and ``UnreachableError`` if its store or disk fails.
    """
    original = original_of(shards, image)
    try:
        data = read_bytes(original)
    except InputError as error:
        raise InputError(f"{error}; {_where(original, image)}") from error
    if digest(data) != expected_sha256:
        raise ImageError(
            f"{original.name}: changed since it was labelled, or another photo than image {image.key!r}; "
            "restore it, or label the photos anew"
        )
    return data


def decode_original(shards: ShardSet, image: PhotoFile, labelled: str | None) -> RgbImage:
    """Return the photo of an image of a plan, RGB uint8 (H, W, 3), upright, as it was labelled.

    Raises as ``read_original``, and ``ImageError`` if it cannot be decoded.
    """
    data = read_original(shards, image, labelled)
    return decode_image(data, original_of(shards, image).name, is_stretched(shards))


def is_stretched(shards: ShardSet) -> bool:
    """Whether photos of more than 8 bits were stretched before they were labelled."""
    return bool(shards.layer(MASKS).settings.get(STRETCH, False))


def _where(original: PhotoFile, image: PhotoFile) -> str:
    """Say where a photo is recorded, and how to tell where it is now."""
    folder = parent_of(links_of(image.url)[-1]) or "."
    recorded = f"image {image.key!r} is recorded there"
    if original.url != image.url:
        recorded = f"image {image.key!r} is recorded at {image.name}"
    return f"{recorded}: if it lies elsewhere now, say where with --photos-from OLD=NEW, such as {folder}=NEW"


def require_old_places(shards: ShardSet) -> None:
    """Raise ``SettingsError`` if an old place of ``photos_from`` is that of no photo in the plans."""
    unseen = {old for old, _ in shards.photos_from.pairs}
    recorded = ""
    for number in range(shards.unit_count):
        if not unseen:
            return
        for image in shards.unit(number).images:
            recorded = recorded or image.url
            unseen -= shards.photos_from.olds_of(image.url)
    if unseen:
        raise SettingsError(
            f"--photos-from: no photo of {shards.storage.url} is recorded at or below {min(unseen)}; the first is "
            f"recorded at {recorded}"
        )


def require_originals(shards: ShardSet, images: Iterable[tuple[PhotoFile, str | None]]) -> None:
    """Raise ``InputError`` if the photo of not a single one of these images, each with its digest, can be found.

    One that is found ends the search. A file with another digest counts as not found, so that a folder of other photos
    with the same names is refused.
    """
    missing: list[InputError | ImageError] = []
    for image, expected_sha256 in images:
        try:
            read_original(shards, image, expected_sha256)
        except (ImageError, InputError) as error:
            missing.append(error)
        else:
            return
    if missing:
        raise InputError(f"none of the {len(missing)} photos that were looked for is there; the first: {missing[0]}")
