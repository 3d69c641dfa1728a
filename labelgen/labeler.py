"""What a worker does, or the run's own process where there are none: it makes what a unit lacks of a job's layers, and
commits it to the shard set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sum_factory.labelgen.beside_masks import Makes, MakingKept, MakingMaps, add_maps_of, all_of, commit_maps
from sum_factory.labelgen.coding import LabelCoder, coding_processes
from sum_factory.labelgen.gpu_record import GpuRecord
from sum_factory.labelgen.job import Event, ImageDone, Job, UnitReport
from sum_factory.labelgen.kept import Encoded, KeptWriter, encode
from sum_factory.labelgen.outages import Outages
from sum_factory.labelgen.read_ahead import READ_AHEAD, Decoding, LoadedPhoto, read_ahead
from sum_factory.labelgen.uncertainty import MaskToRefine, UncertaintyMaker, UncertaintyMap
from sum_factory.shared.automask.automask import POINTS_PER_BATCH, GeneratedMasks, LabelGenerator
from sum_factory.shared.automask.lanes import take_cores
from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.gpu.clock import clock_of
from sum_factory.shared.gpu.jpeg import JpegDecoder
from sum_factory.shared.gpu.sizes import AtOnce, bound_memory, fitting
from sum_factory.shared.images import RgbImage, digest
from sum_factory.shared.photo_files import PhotoFile, read_listed
from sum_factory.shared.placement import CropBox
from sum_factory.shared.sam.checkpoint import SamWeights, load_sam
from sum_factory.shared.sam.refiner import load_refiner
from sum_factory.shared.sam.runtime import Embedder, move_to_device
from sum_factory.shared.sam.settings import TASKS
from sum_factory.shared.sam.upstream import Sam
from sum_factory.shared.shards.dataset import Layer, Unit
from sum_factory.shared.shards.manifest import manifest_path
from sum_factory.shared.shards.originals import is_stretched
from sum_factory.shared.shards.reader import WHICH
from sum_factory.shared.shards.shard_set import MASKS, ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.threads import GeneratorPool

Item = TypeVar("Item")
DIM_NOTE = (
    "has more than 8 bits, and nothing in it is brighter than a quarter of white, as if its data were in the lower "
    "bits; to have such photos stretched from their darkest to their brightest value, label into another folder with "
    "--stretch"
)


class _GeneratedImage(NamedTuple):
    """The masks of a photo, with the columns of their manifest, while another thread encodes them."""

    generated: GeneratedMasks
    columns: Mapping[str, Sequence[Any]]
    encoded: Future[Encoded]


class _EncodedImage(NamedTuple):
    """The masks of a photo, encoded, and their maps if the job is to make them."""

    generated: GeneratedMasks
    columns: Mapping[str, Sequence[Any]]
    encoded: Encoded
    maps: Sequence[UncertaintyMap]


class Labeler:
    """Holds the models and works on units; on a CPU, on as many images at once as ``cores`` (see
    ``shared.automask.lanes``)."""

    def __init__(self, job: Job, cores: int = 1, weights: SamWeights | None = None) -> None:
        """``weights`` are those of the job, if this process has read them already; the labeler takes them over."""
        self.job = job
        self.shards = ShardSet.open(job.shards, photos_from=job.photos_from)
        self.outages = Outages(job.wait_for_photos, job.missing_photos)
        loaded = load_sam(weights or job.sam, job.model_type, job.task)
        loaded.require_recorded(self.shards.layer(MASKS).weights["sam"], job.sam)
        sam = move_to_device(loaded.sam, job.runtime)
        self.side = loaded.architecture.image_size
        exactness = job.runtime.exactness
        self.embedder = Embedder(sam, job.runtime.level.encoder)
        self.has_noted = False
        self.lanes = take_cores(sam.device, cores)
        on_gpu = sam.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(sam.device)
        self.at_once = _at_once(sam, job)
        by_gpu = JpegDecoder(sam.device) if on_gpu and exactness == "fast" else None
        self.decoding = Decoding(is_stretched(self.shards), by_gpu)
        self.gpu: GpuRecord | None = None
        if on_gpu and job.masks is not None:
            called = torch.cuda.get_device_name(sam.device)
            self.gpu = GpuRecord(self.shards.storage, called, clock_of(sam.device))
        self.coder = LabelCoder(coding_processes(on_gpu, cores))
        self.ahead = max(READ_AHEAD, min(cores, 2 * self.at_once.photos)) if on_gpu else READ_AHEAD
        if job.masks is not None:
            self.generator = LabelGenerator(
                sam,
                job.masks.settings,
                self.at_once.points,
                photos_per_batch=self.at_once.photos,
                exactness=exactness,
                lanes=self.lanes,
                clock=None if self.gpu is None else self.gpu.clock,
                compile=job.runtime.compile,
            )
        if job.uncertainty is not None:
            path, settings = job.uncertainty.refiner, job.uncertainty.settings
            refiner = None if path is None else load_refiner(path, loaded).to(sam.device)
            self.second = self._second_embedder(job)
            teacher = None if self.second is None else self.second.sam
            self.maker = UncertaintyMaker(sam, refiner, settings, self.at_once.points, teacher, exactness)

    def _second_embedder(self, job: Job) -> Embedder | None:
        """Return the embedder of the teacher that maps are made with, if they are."""
        if job.uncertainty is None or job.uncertainty.teacher is None:
            return None
        loaded = load_sam(job.uncertainty.teacher, None, job.task or TASKS[0])
        return Embedder(move_to_device(loaded.sam, job.runtime), job.runtime.level.encoder)

    def label_unit(self, unit: Unit, refused: Mapping[str, str] | None = None) -> Iterator[Event]:
        """Make what a unit lacks of the job's layers: the masks, then the others.

        Each layer is committed on its own: first the data, then the manifest. Yields the progress of each image and,
        last, the report. ``refused`` says of images, by key, why they are not even to be read.
        """
        report = None
        for makes in self._lacking(unit, refused or {}):
            for progress in makes.make():
                if report is None:  # an image counts once
                    yield self._with_note(progress)
            report = makes.commit()
        report = report or self._report_of_committed(unit)
        yield report if self.gpu is None else replace(report, gpu=self.gpu.take())

    def _with_note(self, progress: ImageDone) -> ImageDone:
        """Say with the progress of one image that there are photos too dim to be labelled well; this is said once."""
        if self.decoding.dim is None or self.has_noted:
            return progress
        self.has_noted = True
        return replace(progress, note=f"{self.decoding.dim}: {DIM_NOTE}")

    def try_unit(self, unit: Unit, refused: Mapping[str, str]) -> None:
        """Do for the images of a unit that are not ``refused`` what ``label_unit`` would do, but commit nothing."""
        for makes in self._lacking(unit, refused):
            deque(makes.make(), maxlen=0)

    def embed(self, photo: LoadedPhoto, crop_box: CropBox) -> Tensor:
        """Return the embedding, (1, C, g, g), of a crop of a photo."""
        embedding = self.embedder.embed_crop(photo.pixels, crop_box, photo.resized)
        self.lanes.on_step()
        return embedding

    def embed_for_teacher(self, photo: LoadedPhoto, crop_box: CropBox) -> Tensor | None:
        """Return the teacher's embedding of a crop of a photo; None if maps are made without one."""
        return None if self.second is None else self.second.embed_crop(photo.pixels, crop_box, photo.resized)

    def _lacking(self, unit: Unit, refused: Mapping[str, str]) -> Iterator[Makes]:
        """Yield what makes the layers that a unit lacks, in the order in which they are to be committed.

        Masks are made with all that belongs to them in one pass. Yields nothing if the unit is complete: another run,
        or a worker that died before reporting, made it.
        """
        masks, uncertainty = self.job.masks, self.job.uncertainty
        if masks is not None and not self._has(unit, MASKS):
            yield _MakingMasks(self, unit, refused)
            return
        kept = [layer for layer in self.job.kept if not self._has(unit, layer.name)]
        if kept:
            yield MakingKept(self, unit, refused, kept)
        if uncertainty is not None and not self._has_own_maps(unit, uncertainty.layer):
            yield MakingMaps(self, unit, refused, uncertainty)

    def _has(self, unit: Unit, layer: str) -> bool:
        """Whether a unit is committed in a layer."""
        return self.shards.storage.exists(manifest_path(layer, unit.number))

    def _has_own_maps(self, unit: Unit, layer: Layer) -> bool:
        """Whether a unit is committed in a layer of maps, and these are of the masks that are there."""
        if not self._has(unit, layer.name):
            return False
        (_, maps), (_, masks) = (self.shards.manifest(unit.number, name, WHICH) for name in (layer.name, MASKS))
        return maps.masks_sha256 == masks.data_sha256

    def _report_of_committed(self, unit: Unit) -> UnitReport:
        """Return the report of a unit that another run or worker has committed."""
        work = self.job.uncertainty
        layer = MASKS if work is None else work.layer.name
        table, record = self.shards.manifest(unit.number, layer, ("image_index", "error"))
        errors = dict(zip(table["image_index"].to_pylist(), table["error"].to_pylist(), strict=True))
        found = tuple(error for error in errors.values() if error is not None)
        return UnitReport(unit.number, record.images, record.masks, found, record.unknown)

    def masks_of(self, rows: Sequence[Mapping[str, Any]], blobs: Sequence[bytes]) -> list[MaskToRefine]:
        """Return the masks of an image, given their rows of the manifest, as the maker of maps takes them."""
        return [MaskToRefine.from_row(row, blob, self.side) for row, blob in zip(rows, blobs, strict=True)]


class _MakingMasks:
    """Labels the images of a unit, keeps what is to be kept, and makes maps with the same embeddings if asked to."""

    def __init__(self, labeler: Labeler, unit: Unit, refused: Mapping[str, str]) -> None:
        self.labeler, self.unit, self.refused = labeler, unit, refused
        dataset, job = labeler.shards.dataset, labeler.job
        self.digests: dict[str, str | None] = {}
        self.masks = UnitWriter(dataset, labeler.shards.layer(MASKS), unit, self.digests)
        self.kept = KeptWriter(dataset, job.kept, unit, self.digests)
        work = job.uncertainty
        self.maps = None if work is None else UnitWriter(dataset, work.layer, unit, self.digests)

    def make(self) -> Iterator[ImageDone]:
        """Label image by image."""
        for index, made in enumerate(self._label_photos()):
            if isinstance(made, str):
                self.masks.add_failure(index, made)
                self.kept.add_failure(index, made)
                if self.maps is not None:
                    self.maps.add_failure(index, made)
                yield ImageDone(0, made)
                continue
            generated = made.generated
            self.masks.add_image(index, generated.size, made.encoded.labels, made.columns, _meta(generated))
            self.kept.add(index, generated.size, made.encoded.kept)
            if self.maps is not None:
                add_maps_of(self.maps, index, generated.size, made.maps)
            yield ImageDone(len(generated))

    def commit(self) -> UnitReport:
        """Commit the masks, then the other layers: made of another run's masks, if it was first with other ones."""
        labeler, work = self.labeler, self.labeler.job.uncertainty
        record, ours = self.masks.commit(labeler.shards.storage)
        if ours:
            self.kept.commit(labeler.shards.storage, record.data_sha256)
        elif labeler.job.kept:
            all_of(MakingKept(labeler, self.unit, self.refused, labeler.job.kept))
        if self.maps is None or work is None:
            return UnitReport(self.unit.number, record.images, record.masks, tuple(self.masks.errors))
        if ours:
            return commit_maps(labeler, self.maps, record)
        return all_of(MakingMaps(labeler, self.unit, self.refused, work))

    def _read(self, photo: PhotoFile) -> bytes:
        """Read a photo, once: the manifest tells of which bytes its masks are."""
        data = self.labeler.outages.read(photo, self.unit.images, partial(read_listed, photo))
        self.digests[photo.key] = digest(data)
        return data

    def _label_photos(self) -> Iterator[_EncodedImage | str]:
        """Yield what comes of the images of the unit, in order, or why they cannot be labelled.

        A lane takes as many images as the encoder takes together. Other threads encode the blobs. With a single lane,
        the next images are labelled meanwhile.
        """
        labeler = self.labeler
        layers = {layer.name for layer in labeler.job.kept}

        def begin(loads: Sequence[Callable[[], LoadedPhoto]]) -> list[_GeneratedImage | str]:
            loaded = [_photo_of(load) for load in loads]
            found = iter(labeler.generator.label_all([photo for photo in loaded if not isinstance(photo, str)]))
            return [photo if isinstance(photo, str) else code(next(found), photo.resized) for photo in loaded]

        def code(generated: GeneratedMasks, resized: RgbImage) -> _GeneratedImage:
            encoded = codec_pool.submit(encode, generated, resized, layers, labeler.coder.encode)
            return _GeneratedImage(generated, _columns(generated), encoded)

        def finish_all(begun: Sequence[_GeneratedImage | str]) -> list[_EncodedImage | str]:
            return [finish(each) for each in begun]

        def finish(begun: _GeneratedImage | str) -> _EncodedImage | str:
            if isinstance(begun, str):
                return begun
            generated, columns, encoded = begun.generated, begun.columns, begun.encoded.result()
            if labeler.job.uncertainty is None:
                return _EncodedImage(generated, columns, encoded, ())
            with labeler.generator.stage("maps"):
                maps = maps_of(generated, encoded.labels, labeler.maker, labeler.side)
            return _EncodedImage(generated, columns, encoded, maps)

        photos = read_ahead(self.unit.images, labeler.side, self._read, self.refused, labeler.decoding, labeler.ahead)
        batches = _in_batches(photos, len(self.unit.images), labeler.at_once.photos)
        with GeneratorPool(max(labeler.lanes.count, labeler.coder.processes)) as codec_pool:
            for batch in labeler.lanes.in_order(begin, batches, finish_all):
                yield from batch


def _at_once(sam: Sam, job: Job) -> AtOnce:
    """Return how much is worked on at once: what the job says, else as much as a GPU's memory allows."""
    fits = AtOnce(1, POINTS_PER_BATCH)
    if sam.device.type == "cuda":
        fits = fitting(sam, bound_memory(sam.device, job.runtime.gpu_memory))
    return AtOnce(job.photos_per_batch or fits.photos, job.points_per_batch or fits.points)


def _photo_of(load: Callable[[], LoadedPhoto]) -> LoadedPhoto | str:
    """Return a photo, or why it cannot be labelled."""
    try:
        return load()
    except (ImageError, InputError) as error:
        return str(error)


def _in_batches(items: Iterator[Item], count: int, size: int) -> Iterator[list[Item]]:
    """Yield ``count`` items in batches of ``size``, without asking for the end before the last batch is taken."""
    for start in range(0, count, size):
        yield list(islice(items, min(size, count - start)))


def maps_of(
    generated: GeneratedMasks, labels: Sequence[bytes], maker: UncertaintyMaker, side: int
) -> list[UncertaintyMap]:
    """Return the maps of an image's masks, whose blobs are ``labels``, on the embeddings that they were found with."""
    rows = rows_of(generated)
    masks = [MaskToRefine.from_row(row, blob, side) for row, blob in zip(rows, labels, strict=True)]
    return maker.make(masks, generated.embeddings.__getitem__)


def rows_of(generated: GeneratedMasks) -> list[dict[str, Any]]:
    """Return what the manifest says of each mask of an image, before values are rounded to its types."""
    columns = _columns(generated)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _columns(generated: GeneratedMasks) -> dict[str, list[Any]]:
    """Return the columns of the manifest that are the masks layer's own."""
    crops = np.array([frame.crop_box for frame in generated.frames], np.int64).reshape(-1, 4)
    return {
        **dict(zip(("box_x", "box_y", "box_w", "box_h"), generated.boxes.T.tolist(), strict=True)),
        "area": generated.areas.tolist(),
        **dict(zip(("point_x", "point_y"), generated.points.T.tolist(), strict=True)),
        "predicted_iou": generated.predicted_iou.tolist(),
        "stability": generated.stability.tolist(),
        **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), crops.T.tolist(), strict=True)),
    }


def _meta(generated: GeneratedMasks) -> dict[str, Any]:
    """Return what the sample of an image says of its masks: the crop of each, unless all are of the whole photo.

    It is what their blobs do not tell, and a reader needs it to paste them; the manifest knows the rest.
    """
    height, width = generated.size
    boxes = [frame.crop_box for frame in generated.frames]
    return {} if all(box == (0, 0, width, height) for box in boxes) else {"crop_box": boxes}
