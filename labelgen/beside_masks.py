"""Layers that are made beside masks which are committed: kept layers, and maps of uncertainty, of these very masks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from sum_factory.labelgen.job import ImageDone, MapsWork, UnitReport
from sum_factory.labelgen.kept import KEPT, CommittedImage, KeptBlobs, KeptWriter
from sum_factory.labelgen.read_ahead import LoadedPhoto, read_ahead
from sum_factory.labelgen.uncertainty import NO_MAP, UncertaintyMap
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, Layer, Unit
from sum_factory.shared.shards.manifest import UnitRecord, crop_of
from sum_factory.shared.shards.originals import original_of, read_original
from sum_factory.shared.shards.sam_outputs import are_logits_known, kept_crops, read_embedding, read_full_logits
from sum_factory.shared.shards.shard_set import ImageRows
from sum_factory.shared.shards.unit_writer import UnitWriter

if TYPE_CHECKING:
    from sum_factory.labelgen.labeler import Labeler


class Makes(Protocol):
    """Makes layers of a unit, image by image. Nothing is written before it commits them."""

    def make(self) -> Iterator[ImageDone]:
        """Make them, and yield the progress of each image."""

    def commit(self) -> UnitReport:
        """Write the data, then the manifests, once all is made."""


class _OfCommitted:
    """What is common to layers that are made beside committed masks: they need the very photos of these masks."""

    def __init__(self, labeler: Labeler, unit: Unit, refused: Mapping[str, str]) -> None:
        self.labeler, self.unit, self.refused = labeler, unit, refused
        self.labelled = labeler.shards.images(unit.number)
        self.digests = {image.key: image.digest for image in self.labelled}
        self.errors = {image.key: image.error for image in self.labelled}

    def read(self, photo: PhotoFile) -> bytes:
        """Read a photo, whose digest must be that of what was labelled; if that could not be read, raise why."""
        if self.digests[photo.key] is None:
            raise ImageError(str(self.errors[photo.key]))
        shards, images = self.labeler.shards, self.unit.images
        read = partial(read_original, shards, photo, self.digests[photo.key])
        neighbours = [original_of(shards, image) for image in images]
        return self.labeler.outages.read(original_of(shards, photo), neighbours, read)

    def photos(self, images: Iterable[PhotoFile]) -> Iterator[Callable[[], LoadedPhoto]]:
        """Yield what gives each photo."""
        return read_ahead(images, self.labeler.side, self.read, self.refused, self.labeler.decoding)


class MakingKept(_OfCommitted):
    """Makes kept layers beside committed masks."""

    def __init__(self, labeler: Labeler, unit: Unit, refused: Mapping[str, str], layers: Sequence[Layer]) -> None:
        super().__init__(labeler, unit, refused)
        self.kept = KeptWriter(labeler.shards.dataset, layers, unit, self.digests)
        self.failed: list[str] = []

    def make(self) -> Iterator[ImageDone]:
        """Make them image by image."""

        def keep(
            item: tuple[ImageRows, Callable[[], LoadedPhoto]],
        ) -> tuple[tuple[int, int], dict[str, KeptBlobs]] | str:
            image, load = item
            try:
                photo = load()
            except (ImageError, InputError) as error:
                return str(error)
            size = (photo.pixels.shape[0], photo.pixels.shape[1])
            return size, self._keep_again(image, photo)

        images = zip(self.labelled, self.photos(self.unit.images), strict=True)
        for index, made in enumerate(self.labeler.lanes.in_order(keep, images)):
            if isinstance(made, str):
                self.kept.add_failure(index, made, self.labelled[index])
                self.failed.append(made)
                yield ImageDone(len(self.labelled[index].masks), made)
            else:
                self.kept.add(index, *made)
                yield ImageDone(len(self.labelled[index].masks))

    def commit(self) -> UnitReport:
        """Commit each layer."""
        _, record = self.labeler.shards.manifest(self.unit.number)
        self.kept.commit(self.labeler.shards.storage, record.data_sha256)
        masks = sum(len(image.masks) for image in self.labelled)
        return UnitReport(self.unit.number, len(self.labelled), masks, tuple(self.failed))

    def _keep_again(self, image: ImageRows, photo: LoadedPhoto) -> dict[str, KeptBlobs]:
        """Return what the layers get of a committed image, from its photo."""
        labeler = self.labeler
        committed = CommittedImage(
            rows=image,
            resized=photo.resized,
            label_blobs=partial(labeler.shards.label_blobs, self.unit.number, image),
            generate=lambda: labeler.generator.label(*photo),
            embed=partial(labeler.embed, photo),
        )
        return {layer: KEPT[layer].again(committed) for layer in self.kept.writers}


class MakingMaps(_OfCommitted):
    """Makes the maps of masks that are committed, from kept layers as far as these go, else from their photos."""

    def __init__(self, labeler: Labeler, unit: Unit, refused: Mapping[str, str], work: MapsWork) -> None:
        super().__init__(labeler, unit, refused)
        self.work = work
        self.maps = UnitWriter(labeler.shards.dataset, work.layer, unit, self.digests)

    def make(self) -> Iterator[ImageDone]:
        """Make them image by image."""
        needing = {image.index for image in self.labelled if self._needs_photo(image)}
        photos = self.photos(self.unit.images[index] for index in sorted(needing))

        def make(
            item: tuple[ImageRows, Callable[[], LoadedPhoto] | None],
        ) -> tuple[Sequence[UncertaintyMap], str | None]:
            return self._maps_of(*item)

        works = ((image, next(photos) if image.index in needing else None) for image in self.labelled)
        for image, (made, error) in zip(self.labelled, self.labeler.lanes.in_order(make, works), strict=True):
            if image.error is not None:
                self.maps.add_failure(image.index, image.error)
            else:
                add_maps_of(self.maps, image.index, (image.height, image.width), made, error)
            yield ImageDone(len(image.masks), image.error or error)

    def commit(self) -> UnitReport:
        """Commit the maps, as those of the masks that are there."""
        return commit_maps(self.labeler, self.maps, self.labeler.shards.manifest(self.unit.number)[1])

    def _needs_photo(self, image: ImageRows) -> bool:
        """Whether the maps of a committed image cannot be made from kept layers alone."""
        shards, number, work = self.labeler.shards, self.unit.number, self.work
        if work.settings.reads_labels or work.teacher is not None:
            return bool(image.masks) and work.teacher is not None
        masks: Iterable[Mapping[str, Any]] = image.masks
        if work.refiner is None and LOGITS in work.use_kept:
            masks = compress(masks, ~are_logits_known(shards, number, image))
        crops = set(map(crop_of, masks))
        if EMBEDDINGS in work.use_kept:
            crops -= kept_crops(shards, number, image.index).keys()
        return len(crops) > 0

    def _maps_of(
        self, image: ImageRows, load: Callable[[], LoadedPhoto] | None
    ) -> tuple[list[UncertaintyMap], str | None]:
        """Make the maps of a committed image, from the photo that ``load`` gives if one is needed.

        The maps are unknown if the photo is needed and cannot be read, or if the image is refused: also return why.
        """
        if not image.masks:
            return [], None
        if image.key in self.refused:
            return [NO_MAP] * len(image.masks), self.refused[image.key]
        labeler, number = self.labeler, self.unit.number
        masks = labeler.masks_of(image.masks, labeler.shards.label_blobs(number, image))
        if LOGITS in self.work.use_kept:
            pairs = zip(masks, read_full_logits(labeler.shards, number, image), strict=True)
            masks = [replace(mask, logits=logits) for mask, logits in pairs]
        photo, error = None, None
        try:
            photo = None if load is None else load()
        except (ImageError, InputError) as caught:
            error = str(caught)

        def embed(crop_box: CropBox) -> Tensor | None:
            if EMBEDDINGS in self.work.use_kept:
                embedding = read_embedding(labeler.shards, number, image.index, crop_box)
                if embedding is not None:
                    return torch.from_numpy(embedding)[None].to(labeler.embedder.sam.device)
            return None if photo is None else labeler.embed(photo, crop_box)

        def embed_for_teacher(crop_box: CropBox) -> Tensor | None:
            return None if photo is None else labeler.embed_for_teacher(photo, crop_box)

        return labeler.maker.make(masks, embed, embed_for_teacher), error


def all_of(makes: Makes) -> UnitReport:
    """Make layers and commit them."""
    deque(makes.make(), maxlen=0)
    return makes.commit()


def commit_maps(labeler: Labeler, maps: UnitWriter, masks: UnitRecord) -> UnitReport:
    """Commit the maps of a unit, as those of ``masks``, and report what is committed then."""
    record, _ = maps.commit(labeler.shards.storage, masks.data_sha256)
    return UnitReport(record.unit, record.images, record.masks, tuple(maps.errors), record.unknown)


def add_maps_of(
    maps: UnitWriter, index: int, size: tuple[int, int], made: Sequence[UncertaintyMap], error: str | None = None
) -> None:
    """Add the maps of one image; ``error`` says why they are unknown."""
    mean_u, u_valid = [one.mean_u for one in made], [one.is_known for one in made]
    columns: dict[str, Sequence[Any]] = {"mean_u": mean_u, "u_valid": u_valid}
    blobs = [one.blob for one in made]
    maps.add_image(index, size, blobs, columns, {}, error)
