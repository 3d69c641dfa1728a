"""Export a shard set to the formats of other software: photo by photo, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sum_factory.labelgen.keys import safe_path
from sum_factory.labelgen.sets.export_settings import ExportSettings
from sum_factory.labelgen.sets.file_names import names_of
from sum_factory.labelgen.sets.formats.format import (
    ExportedImage,
    ExportedMask,
    Format,
    Head,
    Writer,
    format_of,
    require_possible,
)
from sum_factory.labelgen.sets.formats.photos import copy_of, name_of
from sum_factory.shared.credentials import without_credentials
from sum_factory.shared.names import printable
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import at_full_size as at_full_size
from sum_factory.shared.progress import track
from sum_factory.shared.shards.originals import original_of
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ImageRows, ShardSet
from sum_factory.shared.store.local_files import require_absent, whole_file, whole_folder


@dataclass(frozen=True)
class ExportSummary:
    """What was written: the numbers of images and masks, and a sentence for each thing that the format cannot hold."""

    images: int
    masks: int
    lost: tuple[str, ...] = ()


def full_size_masks(shards: ShardSet, unit: int, image: ImageRows) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield the masks of an image at the photo's own size, bool (H, W), one at a time."""
    for k, logits in enumerate(shards.read_label_logits(unit, image, list(range(len(image.masks))))):
        yield at_full_size(logits, image.frame(k, shards.input_side), image.height, image.width) > 0


def export(shards: ShardSet, out: Path, settings: ExportSettings | None = None) -> ExportSummary:
    """Write all committed masks to ``out``, a file or a folder as the format has it; by default COCO instances.

    With ``max_images_per_file`` a format of one file writes a folder of several. What is written appears when it is
    whole, and nothing is written over. Memory holds a photo and its masks, whatever the size of the set, and a few
    bytes for each photo. Raises ``SettingsError`` for what the format cannot do, ``StorageError`` if something is there
    already or cannot be written, ``ShardError`` for damaged masks, and as ``decode_original`` for photos that are to be
    copied.
    """
    settings = settings or ExportSettings()
    format = format_of(settings.format)
    require_possible(settings, format)
    require_absent(out)
    settings = replace(settings, photos=settings.photos or format.photos)
    root, name = ("", name_of) if format.folder is not None else names_of(partial(_originals, shards))
    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        head = Head(settings, settings.shapes or format.shapes[0], root, shards.layer(MASKS), stack)
        writer = _opened(format, head, out)
        for image in _images(shards, head, name, counts):
            writer.add(image)
        writer.close()
    lost = (f"{count:,} {words}" for words, count in sorted(head.lost.items()) if count)
    return ExportSummary(counts["images"], counts["masks"], tuple(lost))


def _opened(format: Format, head: Head, out: Path) -> Writer:
    """Return what writes to ``out``, which becomes visible when the stack is unwound without an error."""
    stack = head.stack
    if format.folder is not None:
        return format.folder(stack.enter_context(whole_folder(out)), head)
    assert format.file is not None, "a format writes one or the other"
    if head.settings.max_images_per_file is not None:
        return _Several(format, head, stack.enter_context(whole_folder(out)), head.settings.max_images_per_file)
    return format.file(stack.enter_context(whole_file(out)), head)


class _Several:
    """Writes files of so many photos each, ``00000.json`` and so on, into a folder."""

    def __init__(self, format: Format, head: Head, folder: Path, each: int) -> None:
        self.format, self.head, self.folder, self.each = format, head, folder, each
        self.stack = head.stack.enter_context(ExitStack())
        self.writer: Writer | None = None
        self.files = self.images = 0

    def add(self, image: ExportedImage) -> None:
        """Write a photo into the last file, or into another one if that is full."""
        if self.writer is None or self.images == self.each:
            self._begin()
        assert self.writer is not None, "it was just opened"
        self.images += 1
        self.writer.add(image)

    def close(self) -> None:
        """End the last file; there is one in any case."""
        if self.writer is None:
            self._begin()
        self._end()

    def _begin(self) -> None:
        self._end()
        path = self.folder / f"{self.files:05d}{self.format.suffix}"
        assert self.format.file is not None, "only formats of a file are cut"
        self.writer = self.format.file(self.stack.enter_context(whole_file(path)), self.head)
        self.files, self.images = self.files + 1, 0

    def _end(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.stack.close()


def _originals(shards: ShardSet) -> Iterator[PhotoFile]:
    """Yield the photos that were labelled, where they lie now, without credentials."""
    for number in shards.committed():
        table = shards.manifest(number, MASKS, (*WHICH, "error"))[0]
        errors = dict(zip(table["image_index"].to_pylist(), table["error"].to_pylist(), strict=True))
        planned = shards.unit(number).images
        for index in sorted(index for index, error in errors.items() if error is None):
            yield _original(shards, planned[index])


def _original(shards: ShardSet, planned: PhotoFile) -> PhotoFile:
    original = original_of(shards, planned)
    return replace(original, url=without_credentials(original.url))


def _images(
    shards: ShardSet, head: Head, name: Callable[[PhotoFile], str], counts: Counter[str]
) -> Iterator[ExportedImage]:
    """Yield the photos that were labelled, in the order of the set; ``counts`` are images and masks."""
    copies, is_voc = head.settings.photos == "copy", head.settings.format == "voc"
    for unit in track(shards.committed(), "exporting", "unit"):
        planned = shards.unit(unit).images
        for image in shards.images(unit):
            if image.error is not None:
                continue
            photo = planned[image.index]
            original = _original(shards, photo)
            counts.update(images=1, masks=len(image.masks))
            yield ExportedImage(
                number=counts["images"],
                key=printable(image.key),
                name=printable(name(original)),
                stem=safe_path(image.key),
                source=printable(original.url),
                height=image.height,
                width=image.width,
                masks=_masks(shards, unit, image, head.settings.tolerance),
                copy=partial(copy_of, shards, photo, image.digest, head.lost, is_voc) if copies else None,
            )


def _masks(shards: ShardSet, unit: int, image: ImageRows, tolerance: float) -> Iterator[ExportedMask]:
    pairs = zip(image.masks, full_size_masks(shards, unit, image), strict=True)
    for index, (row, pixels) in enumerate(pairs):
        yield ExportedMask(index, pixels, row, tolerance)
