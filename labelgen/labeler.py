"""One worker: reads the images of a unit, labels them, and commits the unit to the shard set."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from labelgen.automask import AutomaskSettings, ImageLabels, LabelGenerator
from shared.errors import ImageError, SourceError
from shared.frame import resized_size
from shared.images import RgbImage, decode_image, digest
from shared.label_codec import encode_label
from shared.photos import photo_name, read_bytes
from shared.sam.checkpoint import load_sam
from shared.sam.runtime import Predictor, Runtime, place
from shared.shards.dataset import PlannedImage, Unit
from shared.shards.manifest import MASK_SCHEMA, UnitRecord, manifest_path, read_record, write_manifest
from shared.shards.shard_set import MASKS
from shared.shards.tar_layer import TarWriter, add_sample, tar_path
from shared.storage import Storage

READ_AHEAD = 2
"""Images that are read and decoded while another is being labelled."""


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know, besides which unit."""

    shards: str
    sam: str
    model_type: str | None
    automask: AutomaskSettings
    runtime: Runtime
    points_per_batch: int
    layer_id: str


@dataclass(frozen=True)
class Progress:
    """One image is done: how many masks it has, or why it has none."""

    masks: int
    error: str | None = None


@dataclass(frozen=True)
class UnitReport:
    """A unit is done. ``committed`` is False if another run had committed it first."""

    record: UnitRecord
    committed: bool
    errors: tuple[str, ...]


class Labeler:
    """Holds the model and labels units."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.storage = Storage(job.shards)
        sam = place(load_sam(job.sam, job.model_type).sam, job.runtime)
        self.side = int(sam.image_encoder.img_size)
        self.generator = LabelGenerator(sam, job.automask, job.points_per_batch)
        self.generator.predictor = Predictor(sam, job.runtime.bf16)

    def label_unit(self, unit: Unit) -> Iterator[Progress | UnitReport]:
        """Label the images of a unit in order and commit it: first the data, then the manifest.

        Yields the progress of each image and, last, the report.
        """
        writer, rows = TarWriter(), []
        errors: list[str] = []
        for index, (image, loaded) in enumerate(self._read_ahead(unit)):
            try:
                pixels = loaded()
                labels = self.generator.label(pixels)
            except (ImageError, SourceError) as error:
                errors.append(str(error))
                add_sample(writer, image.key, [], {"digest": image.digest, "error": str(error)})
                rows.append({"image": image.key, "image_index": index, "error": str(error)})
                yield Progress(0, str(error))
                continue
            rows += self._add_image(writer, image, index, pixels, labels)
            yield Progress(len(labels))
        yield self._commit(unit, writer.finish(), rows, errors)

    def _read_ahead(self, unit: Unit) -> Iterator[tuple[PlannedImage, Callable[[], RgbImage]]]:
        """Yield each image with a function that returns its pixels; the next ones are being read meanwhile."""
        with ThreadPoolExecutor(READ_AHEAD) as pool:
            pending: list[tuple[PlannedImage, Future[RgbImage]]] = []
            for image in unit.images:
                pending.append((image, pool.submit(self._load, image)))
                if len(pending) > READ_AHEAD:
                    first, future = pending.pop(0)
                    yield first, future.result
            for first, future in pending:
                yield first, future.result

    def _load(self, image: PlannedImage) -> RgbImage:
        name = photo_name(image)
        data = read_bytes(image)
        if digest(data) != image.digest:
            raise ImageError(
                f"{name}: changed since the run was planned; to label it, restore the file, delete the manifest "
                "of its unit and run again"
            )
        pixels = decode_image(data, name)
        height, width = pixels.shape[:2]
        if 0 in resized_size(height, width, self.side):
            raise ImageError(f"{name}: {width} x {height} is too thin for SAM's square of {self.side} px; cut it up")
        return pixels

    def _add_image(
        self, writer: TarWriter, image: PlannedImage, index: int, pixels: RgbImage, labels: ImageLabels
    ) -> list[dict[str, Any]]:
        height, width = pixels.shape[:2]
        frames = []
        for logits, frame in zip(labels.logits, labels.frames, strict=True):
            rows, columns = frame.low_res_size
            frames.append(encode_label(logits[:rows, :columns]))
        columns_of_meta = {
            "box": labels.boxes.tolist(),
            "point": labels.points.tolist(),
            "area": labels.areas.tolist(),
            "predicted_iou": np.round(labels.predicted_iou, 5).tolist(),
            "stability": np.round(labels.stability, 5).tolist(),
            "crop_box": [list(frame.crop_box) for frame in labels.frames],
        }
        meta = {"digest": image.digest, "height": height, "width": width, **columns_of_meta}
        offsets = add_sample(writer, image.key, frames, meta)
        of_image = {"image": image.key, "image_index": index, "height": height, "width": width}
        rows_of_image = [
            {
                **of_image,
                "mask": k,
                "offset": offsets[k],
                "length": len(frames[k]),
                "crc32": zlib.crc32(frames[k]),
                **dict(zip(("box_x", "box_y", "box_w", "box_h"), labels.boxes[k].tolist(), strict=True)),
                "area": int(labels.areas[k]),
                "point_x": float(labels.points[k, 0]),
                "point_y": float(labels.points[k, 1]),
                "predicted_iou": float(labels.predicted_iou[k]),
                "stability": float(labels.stability[k]),
                **dict(zip(("crop_x0", "crop_y0", "crop_x1", "crop_y1"), labels.frames[k].crop_box, strict=True)),
            }
            for k in range(len(frames))
        ]
        return rows_of_image or [of_image]

    def _commit(self, unit: Unit, data: bytes, rows: list[dict[str, Any]], errors: list[str]) -> UnitReport:
        record = UnitRecord(
            unit=unit.number,
            unit_id=unit.id,
            layer_id=self.job.layer_id,
            images=len(unit.images),
            masks=sum("mask" in row for row in rows),
            errors=len(errors),
            data_bytes=len(data),
            data_sha256=hashlib.sha256(data).hexdigest(),
        )
        manifest = write_manifest(pa.Table.from_pylist(rows, schema=MASK_SCHEMA), record)
        if self.storage.exists(manifest_path(MASKS, unit.number)):
            return UnitReport(record, False, tuple(errors))
        self.storage.write(tar_path(MASKS, unit.number), data)
        committed = self.storage.create(manifest_path(MASKS, unit.number), manifest)
        if not committed:
            self._settle(record, manifest)
        return UnitReport(record, committed, tuple(errors))

    def _settle(self, record: UnitRecord, manifest: bytes) -> None:
        """Make data and manifest agree after another run committed the unit while this one wrote its data.

        Both write equal bytes as a rule. Where they do not (two kinds of GPU, an image that only one could read), the
        data that were written last stand.
        """
        name = manifest_path(MASKS, record.unit)
        theirs = read_record(self.storage.read(name), self.storage.path(name))
        if theirs.data_sha256 == record.data_sha256:
            return
        if hashlib.sha256(self.storage.read(tar_path(MASKS, record.unit))).hexdigest() == record.data_sha256:
            self.storage.write(name, manifest)


def layer_settings(automask: AutomaskSettings, runtime: Runtime) -> dict[str, Any]:
    """Return the settings that decide what the ``masks`` layer holds."""
    return {**asdict(automask), **runtime.settings()}
