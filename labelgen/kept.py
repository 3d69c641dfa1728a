"""Layers of what labelling has at hand anyway: kept in the same pass, so that nobody needs to read or make it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from labelgen.automask import ImageLabels
from shared.images import RgbImage
from shared.label_codec import encode_label
from shared.photo_codec import encode_photo
from shared.shards.dataset import IMAGES, Dataset, Layer, Unit
from shared.shards.unit_writer import UnitWriter
from shared.storage import Storage


class Encoded(NamedTuple):
    """An image's frames of the layer of masks, one a mask, and its frames of each layer that is kept."""

    labels: list[bytes]
    kept: Mapping[str, Sequence[bytes]]


def encode_labels(labels: ImageLabels) -> list[bytes]:
    """Return the frame of each mask in the layer of masks."""
    frames = []
    for logits, frame in zip(labels.logits, labels.frames, strict=True):
        rows, columns = frame.low_res_size
        frames.append(encode_label(logits[:rows, :columns]))
    return frames


def encode(labels: ImageLabels, resized: RgbImage, layers: Collection[str]) -> Encoded:
    """Encode an image for the layer of masks and for the kept ``layers``."""
    return Encoded(encode_labels(labels), {IMAGES: [encode_photo(resized)]} if IMAGES in layers else {})


class KeptWriter:
    """Collects a unit's data of each kept layer, in memory, and commits them."""

    def __init__(self, dataset: Dataset, layers: Sequence[Layer], unit: Unit) -> None:
        self.writers = {layer.name: UnitWriter(dataset, layer, unit) for layer in layers}

    def add(self, index: int, size: tuple[int, int], kept: Mapping[str, Sequence[bytes]]) -> None:
        """Add image ``index`` of the unit, a photo of ``size`` height, width, with its frames of each layer."""
        for name, writer in self.writers.items():
            writer.add_image(index, size, kept[name], {}, {})

    def add_failure(self, index: int, error: str) -> None:
        """Add image ``index`` of the unit as one that could not be read."""
        for writer in self.writers.values():
            writer.add_failure(index, error)

    def commit(self, storage: Storage) -> None:
        """Write the data of each layer, then its manifest, unless another run has committed it."""
        for writer in self.writers.values():
            writer.commit(storage)
