"""Write labelled photos as a shard set, as ``labelgen`` does, and load them as ``trainer`` does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from segment_anything.utils.transforms import ResizeLongestSide

from sum_factory.pipelines.bench.parts.shard_material import Floats, LabelledPhoto
from sum_factory.shared.codecs.label import encode_label
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.codecs.uncertainty import encode_uncertainty
from sum_factory.shared.images import RgbImage, decode_image, digest
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.shards.dataset import (
    DATASET,
    MASKS,
    PHOTOS,
    REFINEMENT,
    TAR,
    Dataset,
    Layer,
    Unit,
    uncertainty_layer,
    unit_path,
)
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.manifest import CROP_BOX
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage
from sum_factory.trainer.data.coded import CodedSample
from sum_factory.trainer.data.pseudo import PseudoSet
from sum_factory.trainer.data.samples import SampleId, SampleSettings
from sum_factory.trainer.methods import METHODS

MAPS = uncertainty_layer(REFINEMENT)
NOWHERE = "0" * 64


@dataclass(frozen=True)
class Plan:
    """What is written before any unit is: ``dataset.json``, the plan of the one unit, and what layers share."""

    storage: Storage
    dataset: Dataset
    unit: Unit


def plan_set(folder: Path, photos: Sequence[LabelledPhoto], encoding: str) -> Plan:
    """Plan a shard set of one unit of all photos, with the layers masks, uncertainty/refinement and images."""
    side = photos[0].frame.side
    sam = {"model_type": "benchmark", "image_size": side, "sha256": NOWHERE}
    unit = Unit(0, tuple(PhotoFile(p.key, f"/photos/{p.key}.jpg", size=len(p.original)) for p in photos))
    layers = [
        Layer(MASKS, encoding, {}, {"sam": sam}),
        Layer(MAPS, encoding, {}, {"sam": sam, "refiner": {"sha256": NOWHERE}}),
        Layer(PHOTOS, TAR, {}, {}),
    ]
    plan = Plan(
        Storage(str(folder)), Dataset(len(photos), (unit.id,), len(photos), {one.name: one for one in layers}), unit
    )
    plan.storage.write(DATASET, plan.dataset.to_json())
    plan.storage.write(unit_path(0), unit.to_json())
    write_shared_files(plan.storage)
    return plan


class Blobs(NamedTuple):
    """The masks of a photo, and their maps, encoded, with the mean of each map."""

    masks: list[bytes]
    maps: list[bytes]
    means: list[float]


def encode(photo: LabelledPhoto) -> Blobs:
    """Encode the masks and maps of a photo."""
    (s, r, u), (rows, columns) = photo.grids, photo.frame.photo_cells
    maps = [encode_uncertainty(one, encode_label(logits)) for one, logits in zip(u, r, strict=True)]
    means = u[:, :rows, :columns].mean((1, 2), np.float64).tolist()
    return Blobs([encode_label(logits) for logits in s], maps, means)


def write_labels(plan: Plan, photos: Sequence[LabelledPhoto]) -> None:
    """Encode the masks and maps of all photos and commit them."""
    write_blobs(plan, photos, [encode(photo) for photo in photos])


def write_blobs(plan: Plan, photos: Sequence[LabelledPhoto], encoded: Sequence[Blobs]) -> None:
    """Commit the masks and maps of photos, which are ``encoded``."""
    masks, maps = (_writer(plan, name, photos) for name in (MASKS, MAPS))
    for index, (photo, blobs) in enumerate(zip(photos, encoded, strict=True)):
        masks.add_image(index, photo.frame.crop_size, blobs.masks, _columns(photo), {})
        known: dict[str, Sequence[float]] = {"mean_u": blobs.means, "u_valid": [True] * len(photo)}
        maps.add_image(index, photo.frame.crop_size, blobs.maps, known, {})
    record, _ = masks.commit(plan.storage)
    maps.commit(plan.storage, record.data_sha256)


def _writer(plan: Plan, layer: str, photos: Sequence[LabelledPhoto]) -> UnitWriter:
    digests = {photo.key: digest(photo.original) for photo in photos}
    return UnitWriter(plan.dataset, plan.dataset.layers[layer], plan.unit, digests)


def write_photos(plan: Plan, photos: Sequence[LabelledPhoto], side: int) -> None:
    """Keep the photos, their longer side scaled to ``side``."""
    writer = _writer(plan, PHOTOS, photos)
    for index, photo in enumerate(photos):
        resized = ResizeLongestSide(side).apply_image(decode_image(photo.original, photo.key))
        writer.add_image(index, photo.frame.crop_size, [encode_photo(resized)], {}, {})
    writer.commit(plan.storage)


def _columns(photo: LabelledPhoto) -> dict[str, list[float]]:
    """Return the columns of the manifest that are the masks layer's own."""
    return {
        **dict(zip(("box_x", "box_y", "box_w", "box_h"), photo.boxes.T.tolist(), strict=True)),
        "area": photo.areas.tolist(),
        **dict(zip(("point_x", "point_y"), photo.points.T.tolist(), strict=True)),
        "predicted_iou": photo.predicted_iou.tolist(),
        "stability": photo.stability.tolist(),
        **dict(zip(CROP_BOX, np.tile(photo.frame.crop_box, (len(photo), 1)).T.tolist(), strict=True)),
    }


def bytes_of_labels(folder: Path) -> int:
    """Return the bytes of a shard set, all files but the photos and their manifest."""
    photos = (f"{PHOTOS}/", f"manifest/{PHOTOS}/")
    files = (path for path in folder.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if not str(path.relative_to(folder)).startswith(photos))


@dataclass(frozen=True)
class Labels:
    """Labels and maps of masks as they are decoded: codes, uint8 (K, h, w), and the tables of their values."""

    masks: npt.NDArray[np.uint8]
    maps: npt.NDArray[np.uint8]
    values: Callable[[], tuple[Floats, Floats]]
    """Returns the logits and the maps, float32 (K, h, w)."""


class Loader:
    """Loads labels by the reader of the layers, and samples by the trainer's own path."""

    def __init__(self, folder: Path, stride: int = 4, masks: int = 30) -> None:
        self.shards = ShardSet.open(str(folder))
        settings = SampleSettings(self.shards.input_side, stride, masks, 0)
        self.set = PseudoSet(self.shards, REFINEMENT, METHODS["sum"], settings)
        self.first = self.shards.reader(MASKS).rows(0).first

    def labels(self, index: int, picked: npt.NDArray[np.int64]) -> Labels:
        """Read and decode the masks ``picked`` of a photo, and their maps."""
        rows = self.first[index] + picked
        masks, maps = self.shards.reader(MASKS).read(0, rows, "label"), self.shards.reader(MAPS).read(0, rows, "u")
        return Labels(masks.grid, maps.grid, lambda: (masks.all_values(), maps.all_values()))

    def sample(self, index: int, epoch: int) -> CodedSample:
        """Load a photo with as many of its masks as its settings say, drawn at random: the work of a loading thread."""
        return self.set.load(index, SampleId("benchmark", epoch, index))


def decode_original(original: bytes, side: int) -> RgbImage:
    """Decode and scale a photo as upstream does: Pillow, then ``ResizeLongestSide``."""
    return np.asarray(ResizeLongestSide(side).apply_image(np.asarray(Image.open(io.BytesIO(original)).convert("RGB"))))
