"""Layers of what labelling has at hand anyway: kept in the same pass, so that nobody needs to read or make it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from labelgen.automask import ImageLabels
from shared.images import RgbImage
from shared.label_codec import encode_label
from shared.logits_codec import encode_logits
from shared.photo_codec import encode_photo
from shared.shards.dataset import IMAGES, LOGITS, Dataset, Layer, Unit, is_of_masks
from shared.shards.shard_set import LabelledImage
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
    kept = {IMAGES: [encode_photo(resized)]} if IMAGES in layers else {}
    if LOGITS in layers:
        kept[LOGITS] = encode_all_logits(labels)
    return Encoded(encode_labels(labels), kept)


def encode_all_logits(labels: ImageLabels) -> list[bytes]:
    """Return the frame of each mask in the layer of logits."""
    return [encode_logits(logits) for logits in labels.logits]


def encode_again(labels: ImageLabels, committed: Sequence[bytes]) -> list[bytes]:
    """Return the frames of logits of masks that are ``committed``, from an image that was labelled again.

    Where a mask did not come out as it is there, its logits are not known: an empty frame.
    """
    again = encode_labels(labels)
    if len(again) != len(committed):
        return [b""] * len(committed)
    logits = encode_all_logits(labels)
    return [logits[k] if again[k] == committed[k] else b"" for k in range(len(committed))]


class KeptWriter:
    """Collects a unit's data of each kept layer, in memory, and commits them."""

    def __init__(self, dataset: Dataset, layers: Sequence[Layer], unit: Unit) -> None:
        self.writers = {layer.name: UnitWriter(dataset, layer, unit) for layer in layers}

    def add(self, index: int, size: tuple[int, int], kept: Mapping[str, Sequence[bytes]]) -> None:
        """Add image ``index`` of the unit, a photo of ``size`` height, width, with its frames of each layer."""
        for name, writer in self.writers.items():
            frames = kept[name]
            columns = {"valid": [len(frame) > 0 for frame in frames]} if name == LOGITS else {}
            writer.add_image(index, size, frames, columns, columns)

    def add_failure(self, index: int, error: str, labelled: LabelledImage | None = None) -> None:
        """Add image ``index`` of the unit as one that could not be read: ``labelled``, if it was when it got masks."""
        for name, writer in self.writers.items():
            if name == LOGITS and labelled is not None and labelled.masks:
                unknown = {"valid": [False] * len(labelled.masks)}
                size = (labelled.height, labelled.width)
                writer.add_image(index, size, [b""] * len(labelled.masks), unknown, unknown, error)
            else:
                writer.add_failure(index, error)

    def commit(self, storage: Storage, masks_sha256: str) -> None:
        """Write the data of each layer, then its manifest, unless another run has committed it.

        ``masks_sha256`` is that of the masks' data that logits are of.
        """
        for name, writer in self.writers.items():
            writer.commit(storage, masks_sha256 if is_of_masks(name) else "")
