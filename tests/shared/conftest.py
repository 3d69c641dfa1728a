"""What tests of shard sets share: one with masks of all kinds, made by hand, in any encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

from sum_factory.shared.codecs.embedding import encode_embedding
from sum_factory.shared.codecs.label import encode_label
from sum_factory.shared.codecs.logits import encode_logits
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.codecs.uncertainty import encode_uncertainty
from sum_factory.shared.photo_files import PhotoFile
from sum_factory.shared.placement import CELL, Frame
from sum_factory.shared.shards.dataset import (
    DATASET,
    EMBEDDINGS,
    LOGITS,
    MASKS,
    PHOTOS,
    Dataset,
    Layer,
    Unit,
    uncertainty_layer,
    unit_path,
)
from sum_factory.shared.shards.encoding import write_shared_files
from sum_factory.shared.shards.shard_set import ShardSet
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage

SIDE = 128
SHAPE = (24, 8, 8)
"""Of an embedding."""
HEIGHT, WIDTH = 96, 128
COUNTS = ((2, 70, 0), (3, "a photo that nobody could read", 4), (0, 0))
"""For each image of each unit the number of its masks, or why it has none."""
CROPS = ((0, 0, WIDTH, HEIGHT), (0, 0, 80, 64), (40, 0, WIDTH, HEIGHT))


@dataclass(frozen=True)
class KnownMask:
    """One mask as it was given to be written; blobs of maps and logits are empty where nothing is known."""

    crop_box: tuple[int, int, int, int]
    label: bytes
    by_refiner: bytes
    by_entropy: bytes
    logits: bytes
    mean_u: float


@dataclass(frozen=True)
class KnownSet:
    """A shard set with the layers ``masks``, two of ``uncertainty``, ``logits``, ``embeddings`` and ``photos``.

    ``units`` are the masks of each unit, ``photos`` the JPEGs of each, one for every image that could be read,
    ``embeddings`` one for every crop that masks of an image were found in.
    """

    folder: Path
    units: list[list[KnownMask]]
    photos: list[list[bytes]]
    embeddings: list[list[bytes]]

    def open(self) -> ShardSet:
        """Open the shard set."""
        return ShardSet.open(str(self.folder))

    def blobs(self, layer: str, unit: int) -> list[bytes]:
        """Return the blobs of a layer as they were given."""
        if layer == PHOTOS:
            return self.photos[unit]
        if layer == EMBEDDINGS:
            return self.embeddings[unit]
        names = {
            MASKS: "label",
            "uncertainty/refinement": "by_refiner",
            "uncertainty/entropy": "by_entropy",
            LOGITS: "logits",
        }
        return [getattr(mask, names[layer]) for mask in self.units[unit]]


def make_mask(unit: int, number: int) -> KnownMask:
    """Return a mask; every fifth is empty, every seventh has no known map, some were found in a crop."""
    random = np.random.default_rng([unit, number])
    crop_box = CROPS[number % 3 if number % 4 == 1 else 0]
    frame = Frame(SIDE, crop_box)

    def smooth() -> npt.NDArray[np.float32]:
        noise = gaussian_filter(random.standard_normal((SIDE // 4 + 20, SIDE // 4 + 20)), 3.0)[10:-10, 10:-10]
        rows, columns = frame.interpolation_cells
        return np.asarray((noise / noise.std())[:rows, :columns], np.float32)

    logits = smooth() * 6 - 2 if number % 5 else np.full(frame.interpolation_cells, -4, np.float32)
    u = np.clip(smooth() - 1, 0, 1) if number % 6 else np.zeros(frame.interpolation_cells, np.float32)
    refined = encode_label(logits + smooth())
    rows, columns = frame.photo_cells
    square = random.normal(-3, 6, (SIDE // CELL, SIDE // CELL)).astype(np.float32)
    square[: frame.interpolation_cells[0], : frame.interpolation_cells[1]] = logits
    return KnownMask(
        crop_box=crop_box,
        label=encode_label(logits),
        by_refiner=encode_uncertainty(u, refined) if number % 7 != 3 else b"",
        by_entropy=encode_uncertainty(u) if number % 7 != 2 else b"",
        logits=encode_logits(square) if number % 7 != 4 else b"",
        mean_u=float(u[:rows, :columns].mean()),
    )


def make_embedding(unit: int, number: int) -> bytes:
    """Return the embedding of a crop."""
    return encode_embedding(np.random.default_rng([unit, number, 9]).normal(0, 1, SHAPE).astype(np.float32))


def make_photo(unit: int, index: int) -> bytes:
    """Return the JPEG of a photo; the second of a unit is of the noise that takes the most bytes."""
    random = np.random.default_rng([unit, index])
    pixels = random.integers(0, 2, (HEIGHT, WIDTH, 3)) * 255
    if index != 1:
        pixels = 128 + 60 * gaussian_filter(random.standard_normal((HEIGHT, WIDTH, 3)), (6, 6, 0)) * 6
    return encode_photo(np.clip(pixels, 0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def write_known() -> Callable[[Path, str], KnownSet]:
    """``write_known(folder, encoding)`` makes the known shard set."""
    return write


Counts = Sequence[Sequence[int | str]]


def write(folder: Path, encoding: str, of_units: Counts = COUNTS) -> KnownSet:
    """Make the known shard set in ``folder``."""
    planned = [
        Unit(n, tuple(PhotoFile(f"unit{n}/photo.{i}", "/nowhere", size=10 * n + i) for i in range(len(counts))))
        for n, counts in enumerate(of_units)
    ]
    sam = {"model_type": "tiny", "image_size": SIDE, "sha256": "0" * 64}
    layers = [
        Layer(MASKS, encoding, {}, {"sam": sam}),
        Layer(uncertainty_layer("refinement"), encoding, {}, {"sam": sam, "refiner": {"sha256": "1" * 64}}),
        Layer(uncertainty_layer("entropy"), encoding, {}, {"sam": sam}),
        Layer(LOGITS, encoding, {}, {"sam": sam}),
        Layer(EMBEDDINGS, encoding, {"shape": SHAPE}, {"sam": sam}),
        Layer(PHOTOS, encoding, {}, {}),
    ]
    total = sum(len(unit.images) for unit in planned)
    dataset = Dataset(
        len(of_units[0]), tuple(unit.id for unit in planned), total, {layer.name: layer for layer in layers}
    )
    storage = Storage(str(folder))
    storage.write(DATASET, dataset.to_json())
    write_shared_files(storage)
    known = KnownSet(folder, [], [], [])
    for unit in planned:
        storage.write(unit_path(unit.number), unit.to_json())
        masks, photos, embeddings = write_unit(storage, dataset, unit, of_units[unit.number])
        known.units.append(masks)
        known.photos.append(photos)
        known.embeddings.append(embeddings)
    return known


def write_unit(
    storage: Storage, dataset: Dataset, unit: Unit, counts: Sequence[int | str]
) -> tuple[list[KnownMask], list[bytes], list[bytes]]:
    """Commit a unit in every layer and return its masks, photos and embeddings."""
    digests = {image.key: f"{unit.number}{index}" * 32 for index, image in enumerate(unit.images)}
    *writers, photo_writer = [UnitWriter(dataset, layer, unit, digests) for layer in dataset.layers.values()]
    masks: list[KnownMask] = []
    photos: list[bytes] = []
    embeddings: list[bytes] = []
    for index, count in enumerate(counts):
        if isinstance(count, str):
            for writer in (*writers, photo_writer):
                writer.add_failure(index, count)
            continue
        photos.append(make_photo(unit.number, index))
        photo_writer.add_image(index, (HEIGHT, WIDTH), photos[-1:], {}, {})
        mine = [make_mask(unit.number, len(masks) + k) for k in range(count)]
        masks += mine
        numbers = {name: [7] * count for name in ("box_x", "box_y", "box_w", "box_h", "area")}
        numbers |= {name: [0.5] * count for name in ("point_x", "point_y", "predicted_iou", "stability")}
        numbers |= {
            f"crop_{edge}": [mask.crop_box[n] for mask in mine] for n, edge in enumerate(("x0", "y0", "x1", "y1"))
        }
        writers[0].add_image(index, (HEIGHT, WIDTH), [mask.label for mask in mine], numbers, {})
        for writer, blobs in zip(
            writers[1:3], ([m.by_refiner for m in mine], [m.by_entropy for m in mine]), strict=True
        ):
            means = [mask.mean_u if blob else None for mask, blob in zip(mine, blobs, strict=True)]
            known = {"mean_u": means, "u_valid": [bool(blob) for blob in blobs]}
            writer.add_image(index, (HEIGHT, WIDTH), blobs, known, {})
        crops = list(dict.fromkeys(mask.crop_box for mask in mine))
        made = [make_embedding(unit.number, len(embeddings) + k) for k in range(len(crops))]
        embeddings += made
        boxes = {f"crop_{edge}": [box[n] for box in crops] for n, edge in enumerate(("x0", "y0", "x1", "y1"))}
        writers[4].add_image(index, (HEIGHT, WIDTH), made, boxes, {})
        writers[3].add_image(
            index, (HEIGHT, WIDTH), [m.logits for m in mine], {"valid": [bool(m.logits) for m in mine]}, {}
        )
    record, _ = writers[0].commit(storage)
    for writer in writers[1:]:
        writer.commit(storage, record.data_sha256)
    photo_writer.commit(storage)
    return masks, photos, embeddings


@pytest.fixture(scope="session", params=["tar", "zarr"])
def known_set(
    request: pytest.FixtureRequest,
    write_known: Callable[[Path, str], KnownSet],
    tmp_path_factory: pytest.TempPathFactory,
) -> KnownSet:
    """The known shard set in each encoding, which no test may change."""
    return write_known(tmp_path_factory.mktemp(request.param) / "labels", request.param)
