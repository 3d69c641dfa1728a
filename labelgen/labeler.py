"""One worker: makes what a unit lacks of a job's layers, and commits it to the shard set."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from labelgen.automask import ImageLabels, LabelGenerator
from labelgen.job import Job, MasksTask, Progress, UncertaintyTask, UnitReport
from labelgen.read_ahead import Photo, read_ahead
from labelgen.uncertainty import UNKNOWN, Embed, LabelledMask, UncertaintyMaker, UncertaintyMap
from shared.errors import ImageError, SourceError
from shared.label_codec import encode_label
from shared.sam.checkpoint import load_sam
from shared.sam.refiner import load_refiner
from shared.sam.runtime import CropBox, Predictor, place
from shared.shards.dataset import Unit
from shared.shards.manifest import UnitRecord, manifest_path
from shared.shards.shard_set import MASKS, LabelledImage, ShardSet
from shared.shards.unit_writer import UnitWriter

Event = Progress | UnitReport

ENCODE_BEHIND = 2
"""Images whose labels are encoded, or wait for it, while another is being labelled."""


class Labeler:
    """Holds the models and works on units."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.shards = ShardSet.open(job.shards)
        loaded = load_sam(job.sam, job.model_type)
        sam = place(loaded.sam, job.runtime)
        self.side = loaded.architecture.image_size
        self.predictor = Predictor(sam, job.runtime.bf16)
        if job.masks is not None:
            self.generator = LabelGenerator(sam, job.masks.settings, job.points_per_batch, bf16=job.runtime.bf16)
        if job.uncertainty is not None:
            path, settings = job.uncertainty.refiner, job.uncertainty.settings
            refiner = None if path is None else load_refiner(Path(path), loaded).to(self.predictor.device)
            self.maker = UncertaintyMaker(sam, refiner, settings, job.points_per_batch)

    def label_unit(self, unit: Unit) -> Iterator[Event]:
        """Make the masks of a unit, if the job is to and they are not there; then their uncertainty maps.

        Each layer is committed on its own: first the data, then the manifest. Yields the progress of each image and,
        last, the report.
        """
        masks, uncertainty = self.job.masks, self.job.uncertainty
        if masks is not None and not self.shards.storage.exists(manifest_path(MASKS, unit.number)):
            yield from self._label(unit, masks, uncertainty)
        elif uncertainty is not None:
            yield from self._add_maps(unit, uncertainty)
        else:  # another run has made it meanwhile, or a worker that died before it could tell
            images = self.shards.images(unit.number)
            errors = tuple(image.error for image in images if image.error is not None)
            yield UnitReport(unit.number, len(images), sum(len(image.masks) for image in images), errors)

    def _label(self, unit: Unit, task: MasksTask, uncertainty: UncertaintyTask | None) -> Iterator[Event]:
        """Label the images of a unit, and make maps with the same embeddings if the job asks for them."""
        masks = UnitWriter(MASKS, task.layer_id, unit)
        maps = None if uncertainty is None else UnitWriter(uncertainty.layer.name, uncertainty.layer_id, unit)
        for index, labels, frames in self._label_and_encode(unit):
            if isinstance(labels, str):
                masks.add_failure(index, labels)
                if maps is not None:
                    maps.add_failure(index, labels)
                yield Progress(0, labels)
                continue
            rows = masks.add_image(index, labels.size, frames, _columns(labels), _meta(labels))
            if maps is not None:
                made = self._make_maps(rows, frames, labels.embeddings.__getitem__)
                _add_maps_of(maps, index, labels.size, made)
            yield Progress(len(labels))
        record, ours = masks.commit(self.shards.storage)
        if maps is None or uncertainty is None:
            yield UnitReport(unit.number, record.images, record.masks, tuple(masks.errors))
        elif ours:
            yield self._commit_maps(maps, record)
        else:  # another run was first, and its masks differ: these maps are not of them
            yield from (event for event in self._add_maps(unit, uncertainty) if isinstance(event, UnitReport))

    def _label_and_encode(self, unit: Unit) -> Iterator[tuple[int, ImageLabels | str, list[bytes]]]:
        """Yield the images of a unit in order: number, labels and their frames; or why there are none.

        The frames of an image are encoded by another thread while the next one is labelled.
        """
        waiting: deque[tuple[int, ImageLabels | str, Future[list[bytes]]]] = deque()
        with ThreadPoolExecutor(1) as encoder:
            for index, photo in enumerate(read_ahead(unit.images, self.side)):
                try:
                    labels = self.generator.label(*photo())
                except (ImageError, SourceError) as error:
                    waiting.append((index, str(error), encoder.submit(list)))
                else:
                    waiting.append((index, labels, encoder.submit(_encode, labels)))
                if len(waiting) > ENCODE_BEHIND:
                    index, done, frames = waiting.popleft()
                    yield index, done, frames.result()
            for index, done, frames in waiting:
                yield index, done, frames.result()

    def _add_maps(self, unit: Unit, task: UncertaintyTask) -> Iterator[Event]:
        """Make the maps of masks that are committed, from the photos where the unit says they are."""
        _, record = self.shards.manifest(unit.number)
        maps = UnitWriter(task.layer.name, task.layer_id, unit)
        images = self.shards.images(unit.number)
        photos = read_ahead((unit.images[image.index] for image in images if image.masks), self.side)
        for image in images:
            error = image.error
            if error is not None:
                maps.add_failure(image.index, error)
            else:
                photo = next(photos) if image.masks else None
                made, error = self._maps_of_committed(unit.number, image, photo)
                _add_maps_of(maps, image.index, (image.height, image.width), made, error)
            yield Progress(len(image.masks), error)
        yield self._commit_maps(maps, record)

    def _maps_of_committed(
        self, number: int, image: LabelledImage, photo: Callable[[], Photo] | None
    ) -> tuple[list[UncertaintyMap], str | None]:
        """Make the maps of a committed image; where its photo cannot be read they are unknown: also return why."""
        if photo is None:
            return [], None
        frames = self.shards.label_frames(number, image)
        try:
            pixels, resized = photo()
        except (ImageError, SourceError) as error:
            return [UNKNOWN] * len(frames), str(error)

        def embed(crop_box: CropBox) -> Tensor:
            return self.predictor.embed_crop(pixels, crop_box, resized)

        return self._make_maps(image.masks, frames, embed), None

    def _make_maps(
        self, rows: Sequence[Mapping[str, Any]], frames: Sequence[bytes], embed: Embed
    ) -> list[UncertaintyMap]:
        masks = [LabelledMask.from_row(row, frame, self.side) for row, frame in zip(rows, frames, strict=True)]
        return self.maker.make(masks, embed)

    def _commit_maps(self, maps: UnitWriter, masks: UnitRecord) -> UnitReport:
        record, _ = maps.commit(self.shards.storage, masks.data_sha256)
        return UnitReport(record.unit, record.images, record.masks, tuple(maps.errors), record.unknown)


def _encode(labels: ImageLabels) -> list[bytes]:
    """Return the frame of each mask."""
    frames = []
    for logits, frame in zip(labels.logits, labels.frames, strict=True):
        rows, columns = frame.low_res_size
        frames.append(encode_label(logits[:rows, :columns]))
    return frames


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
    """Return what the sample of an image says of its masks."""
    return {
        "box": labels.boxes.tolist(),
        "point": labels.points.tolist(),
        "area": labels.areas.tolist(),
        "predicted_iou": np.round(labels.predicted_iou, 5).tolist(),
        "stability": np.round(labels.stability, 5).tolist(),
        "crop_box": [list(frame.crop_box) for frame in labels.frames],
    }


def _add_maps_of(
    maps: UnitWriter, index: int, size: tuple[int, int], made: Sequence[UncertaintyMap], error: str | None = None
) -> None:
    """Add the maps of one image; ``error`` says why they are unknown."""
    mean_u, u_valid = [one.mean_u for one in made], [one.valid for one in made]
    rounded = [None if mean is None else round(mean, 5) for mean in mean_u]
    columns: dict[str, Sequence[Any]] = {"mean_u": mean_u, "u_valid": u_valid}
    frames = [one.frame for one in made]
    maps.add_image(index, size, frames, columns, {"mean_u": rounded, "u_valid": u_valid}, error)
