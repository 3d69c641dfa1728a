"""One worker: makes what a unit lacks of a job's layers, and commits it to the shard set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sum_factory.labelgen.job import Event, Job, Progress, UncertaintyTask, UnitReport
from sum_factory.labelgen.kept import (
    Encoded,
    KeptBlobs,
    KeptWriter,
    encode,
    keep_embeddings,
    keep_logits,
    keep_logits_again,
    keep_photo,
)
from sum_factory.labelgen.lanes import take_cores
from sum_factory.labelgen.masks.automask import ImageLabels, LabelGenerator
from sum_factory.labelgen.read_ahead import Photo, read_ahead, read_planned
from sum_factory.labelgen.threads import GeneratorPool
from sum_factory.labelgen.uncertainty import UNKNOWN, LabelledMask, UncertaintyMaker, UncertaintyMap
from sum_factory.shared.errors import ImageError, SourceError
from sum_factory.shared.placement import CropBox
from sum_factory.shared.sam.checkpoint import load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.sam.runtime import Embedder, place
from sum_factory.shared.shards.dataset import EMBEDDINGS, IMAGES, LOGITS, Layer, PlannedImage, Unit
from sum_factory.shared.shards.manifest import UnitRecord, crop_of, manifest_path
from sum_factory.shared.shards.originals import read_original
from sum_factory.shared.shards.sam_outputs import (
    are_logits_known,
    kept_crops,
    read_embedding,
    read_kept_logits,
)
from sum_factory.shared.shards.shard_set import MASKS, LabelledImage, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter


class _Begun(NamedTuple):
    """The masks of a photo, with the columns of their manifest, while another thread encodes them."""

    labels: ImageLabels
    columns: Mapping[str, Sequence[Any]]
    encoded: Future[Encoded]


class _Labelled(NamedTuple):
    """The masks of a photo, encoded, and their maps if the job is to make them."""

    labels: ImageLabels
    columns: Mapping[str, Sequence[Any]]
    encoded: Encoded
    maps: Sequence[UncertaintyMap]


class Labeler:
    """Holds the models and works on units; on a CPU, on as many images at once as ``cores`` (``labelgen.lanes``)."""

    def __init__(self, job: Job, cores: int = 1) -> None:
        self.job = job
        self.shards = ShardSet.open(job.shards, photos_from=job.photos_from)
        self.read = partial(read_original, self.shards) if job.masks is None else read_planned
        self.refused: Mapping[str, str] = {}
        loaded = load_sam(job.sam, job.model_type)
        sam = place(loaded.sam, job.runtime)
        self.side = loaded.architecture.image_size
        precision = job.runtime.resolve().name
        self.embedder = Embedder(sam, precision)
        self.lanes = take_cores(sam.device, cores)
        if job.masks is not None:
            self.generator = LabelGenerator(
                sam, job.masks.settings, job.points_per_batch, precision=precision, lanes=self.lanes
            )
        if job.uncertainty is not None:
            path, settings = job.uncertainty.refiner, job.uncertainty.settings
            refiner = None if path is None else load_refiner(path, loaded).to(sam.device)
            self.maker = UncertaintyMaker(sam, refiner, settings, job.points_per_batch)

    def label_unit(self, unit: Unit, refused: Mapping[str, str] | None = None) -> Iterator[Event]:
        """Make the masks of a unit, if the job is to and they are not there; then what it lacks of the other layers.

        Each layer is committed on its own: first the data, then the manifest. Yields the progress of each image and,
        last, the report. ``refused`` says of images, by key, why they are not even to be read.
        """
        self.refused = refused or {}
        masks, uncertainty = self.job.masks, self.job.uncertainty
        if masks is not None and not self._has(unit, MASKS):
            yield from self._label(unit, uncertainty)
            return
        kept = [layer for layer in self.job.kept if not self._has(unit, layer.name)]
        errors: tuple[str, ...] = ()
        if kept:
            errors = yield from self._add_kept(unit, kept)
        if uncertainty is not None and not (kept and self._has(unit, uncertainty.layer.name)):
            events = self._add_maps(unit, uncertainty)
            yield from (event for event in events if not kept or isinstance(event, UnitReport))
        else:  # without layers to add: another run has made it, or a worker that died before it could tell
            images = self.shards.images(unit.number)
            if not kept:
                errors = tuple(image.error for image in images if image.error is not None)
            yield UnitReport(unit.number, len(images), sum(len(image.masks) for image in images), errors)

    def try_unit(self, unit: Unit, refused: Mapping[str, str]) -> None:
        """Do for the images of a unit that are not ``refused`` what ``label_unit`` would do, but commit nothing."""
        self.refused = refused
        masks, uncertainty = self.job.masks, self.job.uncertainty
        if masks is not None and not self._has(unit, MASKS):
            passes: list[Iterator[Event]] = [self._label(unit, uncertainty)]
        else:
            kept = [layer for layer in self.job.kept if not self._has(unit, layer.name)]
            passes = [self._add_kept(unit, kept)] if kept else []
            if uncertainty is not None:
                passes.append(self._add_maps(unit, uncertainty))
        for events in passes:
            for _ in zip(unit.images, events, strict=False):  # whoever commits does so after the last image
                pass

    def _photos(self, images: Iterable[PlannedImage]) -> Iterator[Callable[[], Photo]]:
        return read_ahead(images, self.side, self.read, self.refused)

    def _has(self, unit: Unit, layer: str) -> bool:
        """Whether a unit is committed in a layer."""
        return self.shards.storage.exists(manifest_path(layer, unit.number))

    def _label(self, unit: Unit, uncertainty: UncertaintyTask | None) -> Iterator[Event]:
        """Label the images of a unit, keep what is to be kept, and make maps with the same embeddings if asked to."""
        masks = UnitWriter(self.shards.dataset, self.shards.layer(MASKS), unit)
        kept = KeptWriter(self.shards.dataset, self.job.kept, unit)
        maps = None if uncertainty is None else UnitWriter(self.shards.dataset, uncertainty.layer, unit)
        for index, made in enumerate(self._label_photos(unit)):
            if isinstance(made, str):
                masks.add_failure(index, made)
                kept.add_failure(index, made)
                if maps is not None:
                    maps.add_failure(index, made)
                yield Progress(0, made)
                continue
            labels = made.labels
            masks.add_image(index, labels.size, made.encoded.labels, made.columns, _meta(labels))
            kept.add(index, labels.size, made.encoded.kept)
            if maps is not None:
                _add_maps_of(maps, index, labels.size, made.maps)
            yield Progress(len(labels))
        record, ours = masks.commit(self.shards.storage)
        if ours:
            kept.commit(self.shards.storage, record.data_sha256)
        elif self.job.kept:  # another run was first, and its masks differ: these logits are not of them
            deque(self._add_kept(unit, self.job.kept), maxlen=0)
        if maps is None or uncertainty is None:
            yield UnitReport(unit.number, record.images, record.masks, tuple(masks.errors))
        elif ours:
            yield self._commit_maps(maps, record)
        else:  # another run was first, and its masks differ: these maps are not of them
            yield from (event for event in self._add_maps(unit, uncertainty) if isinstance(event, UnitReport))

    def _label_photos(self, unit: Unit) -> Iterator[_Labelled | str]:
        """Yield what comes of the images of a unit, in order, or why they cannot be labelled.

        The blobs of an image are encoded by another thread, while the next one is labelled if that is in turn.
        """
        layers = {layer.name for layer in self.job.kept}

        def begin(photo: Callable[[], Photo]) -> _Begun | str:
            try:
                pixels, resized = photo()
                labels = self.generator.label(pixels, resized)
            except (ImageError, SourceError) as error:
                return str(error)
            return _Begun(labels, _columns(labels), encoder.submit(encode, labels, resized, layers))

        def finish(begun: _Begun | str) -> _Labelled | str:
            if isinstance(begun, str):
                return begun
            labels, columns, encoded = begun.labels, begun.columns, begun.encoded.result()
            if self.job.uncertainty is None:
                return _Labelled(labels, columns, encoded, ())
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            maps = self.maker.make(self._masks(rows, encoded.labels), labels.embeddings.__getitem__)
            return _Labelled(labels, columns, encoded, maps)

        with GeneratorPool(self.lanes.count) as encoder:
            yield from self.lanes.in_order(begin, self._photos(unit.images), finish)

    def _add_kept(self, unit: Unit, layers: Sequence[Layer]) -> Generator[Event, None, tuple[str, ...]]:
        """Make layers to be kept beside committed masks, from the photos where the unit says they are.

        Returns why photos could not be read.
        """
        _, record = self.shards.manifest(unit.number)
        labelled = self.shards.images(unit.number)
        kept, errors = KeptWriter(self.shards.dataset, layers, unit), []

        def keep(
            work: tuple[LabelledImage, Callable[[], Photo]],
        ) -> tuple[tuple[int, int], dict[str, KeptBlobs]] | str:
            try:
                photo = work[1]()
            except (ImageError, SourceError) as error:
                return str(error)
            size = (photo.pixels.shape[0], photo.pixels.shape[1])
            return size, self._keep_again(unit.number, work[0], photo, kept.writers)

        images = zip(labelled, self._photos(unit.images), strict=True)
        for index, made in enumerate(self.lanes.in_order(keep, images)):
            if isinstance(made, str):
                kept.add_failure(index, made, labelled[index])
                errors.append(made)
                yield Progress(0, made)
            else:
                kept.add(index, *made)
                yield Progress(0)
        kept.commit(self.shards.storage, record.data_sha256)
        return tuple(errors)

    def _keep_again(
        self, number: int, image: LabelledImage, photo: Photo, layers: Collection[str]
    ) -> dict[str, KeptBlobs]:
        """Return what kept ``layers`` get of a committed image, from its photo."""

        def logits() -> KeptBlobs:
            committed = self.shards.label_blobs(number, image)
            return keep_logits_again(self.generator.label(*photo), committed) if committed else keep_logits([])

        def embeddings() -> KeptBlobs:
            embed = partial(self.embedder.embed_crop, photo.pixels, resized=photo.resized)
            return keep_embeddings((image.height, image.width), map(crop_of, image.masks), embed)

        keep = {IMAGES: lambda: keep_photo(photo.resized), LOGITS: logits, EMBEDDINGS: embeddings}
        return {layer: keep[layer]() for layer in layers}

    def _add_maps(self, unit: Unit, task: UncertaintyTask) -> Iterator[Event]:
        """Make the maps of masks that are committed, from the photos where the unit says they are."""
        _, record = self.shards.manifest(unit.number)
        maps = UnitWriter(self.shards.dataset, task.layer, unit)
        images = self.shards.images(unit.number)
        needing = {image.index for image in images if self._needs_photo(unit.number, image, task)}
        photos = self._photos(unit.images[index] for index in sorted(needing))

        def make(work: tuple[LabelledImage, Callable[[], Photo] | None]) -> tuple[Sequence[UncertaintyMap], str | None]:
            return self._maps_of_committed(unit.number, *work, task)

        works = ((image, next(photos) if image.index in needing else None) for image in images)
        for image, (made, error) in zip(images, self.lanes.in_order(make, works), strict=True):
            if image.error is not None:
                maps.add_failure(image.index, image.error)
            else:
                _add_maps_of(maps, image.index, (image.height, image.width), made, error)
            yield Progress(len(image.masks), image.error or error)
        yield self._commit_maps(maps, record)

    def _needs_photo(self, number: int, image: LabelledImage, task: UncertaintyTask) -> bool:
        """Whether the maps of a committed image cannot be made from kept layers alone."""
        masks: Iterable[Mapping[str, Any]] = image.masks
        if task.refiner is None and LOGITS in task.use_kept:
            masks = compress(masks, ~are_logits_known(self.shards, number, image))
        crops = set(map(crop_of, masks))
        if EMBEDDINGS in task.use_kept:
            crops -= kept_crops(self.shards, number, image.index).keys()
        return len(crops) > 0

    def _maps_of_committed(
        self, number: int, image: LabelledImage, photo: Callable[[], Photo] | None, task: UncertaintyTask
    ) -> tuple[list[UncertaintyMap], str | None]:
        """Make the maps of a committed image, of ``photo`` if that is needed.

        Where it is and cannot be read, or the image is refused, they are unknown: also return why.
        """
        if not image.masks:
            return [], None
        if image.key in self.refused:
            return [UNKNOWN] * len(image.masks), self.refused[image.key]
        masks = self._masks(image.masks, self.shards.label_blobs(number, image))
        if LOGITS in task.use_kept:
            pairs = zip(masks, read_kept_logits(self.shards, number, image), strict=True)
            masks = [replace(mask, logits=logits) for mask, logits in pairs]
        loaded, error = None, None
        try:
            loaded = None if photo is None else photo()
        except (ImageError, SourceError) as caught:
            error = str(caught)

        def embed(crop_box: CropBox) -> Tensor | None:
            if EMBEDDINGS in task.use_kept:
                embedding = read_embedding(self.shards, number, image.index, crop_box)
                if embedding is not None:
                    return torch.from_numpy(embedding)[None].to(self.embedder.sam.device)
            return None if loaded is None else self.embedder.embed_crop(loaded.pixels, crop_box, loaded.resized)

        return self.maker.make(masks, embed), error

    def _masks(self, rows: Sequence[Mapping[str, Any]], blobs: Sequence[bytes]) -> list[LabelledMask]:
        """Return the masks of an image as the maker of maps takes them."""
        return [LabelledMask.from_row(row, blob, self.side) for row, blob in zip(rows, blobs, strict=True)]

    def _commit_maps(self, maps: UnitWriter, masks: UnitRecord) -> UnitReport:
        record, _ = maps.commit(self.shards.storage, masks.data_sha256)
        return UnitReport(record.unit, record.images, record.masks, tuple(maps.errors), record.unknown)


def _columns(labels: ImageLabels) -> dict[str, list[Any]]:
    """Return the columns of the manifest that are the masks layer's own."""
    crops = np.array([frame.crop_box for frame in labels.frames], np.int64).reshape(-1, 4)
    return {
        **dict(zip(("box_x", "box_y", "box_w", "box_h"), labels.boxes.T.tolist(), strict=True)),
        "area": labels.areas.tolist(),
        **dict(zip(("point_x", "point_y"), labels.points.T.tolist(), strict=True)),
        "predicted_iou": labels.predicted_iou.tolist(),
        "stability": labels.stability.tolist(),
        **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), crops.T.tolist(), strict=True)),
    }


def _meta(labels: ImageLabels) -> dict[str, Any]:
    """Return what the sample of an image says of its masks: the crop of each, unless all are of the whole photo.

    It is what their blobs do not tell, and a reader needs to place them; the manifest knows the rest.
    """
    height, width = labels.size
    boxes = [frame.crop_box for frame in labels.frames]
    return {} if all(box == (0, 0, width, height) for box in boxes) else {"crop_box": boxes}


def _add_maps_of(
    maps: UnitWriter, index: int, size: tuple[int, int], made: Sequence[UncertaintyMap], error: str | None = None
) -> None:
    """Add the maps of one image; ``error`` says why they are unknown."""
    mean_u, u_valid = [one.mean_u for one in made], [one.valid for one in made]
    columns: dict[str, Sequence[Any]] = {"mean_u": mean_u, "u_valid": u_valid}
    blobs = [one.blob for one in made]
    maps.add_image(index, size, blobs, columns, {}, error)
