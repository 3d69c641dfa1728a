"""Kept layers: what labelling has at hand anyway, written in the same pass so that it need not be made again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sum_factory.shared.automask.automask import GeneratedMasks
from sum_factory.shared.codecs import label
from sum_factory.shared.codecs.embedding import encode_embedding
from sum_factory.shared.codecs.logits import encode_logits
from sum_factory.shared.codecs.photo import encode_photo
from sum_factory.shared.images import RgbImage
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import EMBEDDINGS, LOGITS, PHOTOS, Dataset, Layer, Unit
from sum_factory.shared.shards.kinds import kind_of
from sum_factory.shared.shards.manifest import CROP_BOX, crop_of
from sum_factory.shared.shards.shard_set import ImageRows
from sum_factory.shared.shards.unit_writer import UnitWriter
from sum_factory.shared.store.storage import Storage


class KeptBlobs(NamedTuple):
    """An image's blobs of a kept layer, with the layer's own columns of the manifest, and what its sample says."""

    blobs: Sequence[bytes]
    columns: Mapping[str, Sequence[Any]]
    meta: Mapping[str, Sequence[Any]]


class Encoded(NamedTuple):
    """An image's blobs for the layer of masks, one per mask, and its blobs for each kept layer."""

    labels: list[bytes]
    kept: Mapping[str, KeptBlobs]


def labels_of(generated: GeneratedMasks) -> list[bytes]:
    """Return the blob of each mask in the layer of masks."""
    return label.encode_labels(logits_of_labels(generated))


def logits_of_labels(generated: GeneratedMasks) -> list[label.Logits]:
    """Return the logits of each mask as far as its label shows them."""
    cells = [frame.interpolation_cells for frame in generated.frames]
    return [logits[:rows, :columns] for logits, (rows, columns) in zip(generated.logits, cells, strict=True)]


def encode(
    generated: GeneratedMasks,
    resized: RgbImage,
    layers: Collection[str],
    labels_of: Callable[[GeneratedMasks], list[bytes]] = labels_of,
) -> Encoded:
    """Encode an image for the layer of masks, by ``labels_of``, and for the kept ``layers``."""
    return Encoded(labels_of(generated), {layer: KEPT[layer].in_passing(generated, resized) for layer in layers})


def keep_photo(resized: RgbImage) -> KeptBlobs:
    """Return what the layer ``photos`` gets of a photo."""
    return KeptBlobs([encode_photo(resized)], {}, {})


def keep_logits(blobs: Sequence[bytes]) -> KeptBlobs:
    """Return what the layer ``logits`` gets: a blob per mask, empty where the logits are not known."""
    return KeptBlobs(blobs, {"valid": [len(blob) > 0 for blob in blobs]}, {})


def keep_logits_again(generated: GeneratedMasks, committed: Sequence[bytes]) -> KeptBlobs:
    """Return what the layer ``logits`` gets of masks that are ``committed``, from an image that was labelled again.

    Where a mask did not come out as it is there, its logits are not known.
    """
    again = labels_of(generated)
    same = [k < len(again) and again[k] == blob for k, blob in enumerate(committed)]
    return keep_logits([encode_logits(generated.logits[k]) if one else b"" for k, one in enumerate(same)])


def keep_embeddings(size: tuple[int, int], crops: Iterable[CropBox], embed: Callable[[CropBox], Tensor]) -> KeptBlobs:
    """Return what the layer ``embeddings`` gets of an image whose masks were found in ``crops``: each of these once.

    A later refiner needs the embedding of the crop that a mask is of. ``embed`` gives (1, C, g, g); ``size`` is the
    photo's height and width.
    """
    boxes = list(dict.fromkeys(crops))
    columns = {name: [box[edge] for box in boxes] for edge, name in enumerate(CROP_BOX)}
    blobs = [encode_embedding(embed(box)[0].cpu().numpy()) for box in boxes]
    whole = boxes in ([], [(0, 0, size[1], size[0])])
    return KeptBlobs(blobs, columns, {} if whole else {"crop_box": [list(box) for box in boxes]})


@dataclass(frozen=True)
class CommittedImage:
    """An image whose masks are committed: its ``rows``, what ``resize`` makes of its photo, and how to get the rest.

    ``label_blobs`` reads its labels, ``generate`` generates its masks again, ``embed`` gives the embedding of a crop,
    (1, C, g, g).
    """

    rows: ImageRows
    resized: RgbImage
    label_blobs: Callable[[], Sequence[bytes]]
    generate: Callable[[], GeneratedMasks]
    embed: Callable[[CropBox], Tensor]


class Keeping(NamedTuple):
    """How a kept layer gets its blobs of an image: in passing, while it is labelled, or again, after that."""

    in_passing: Callable[[GeneratedMasks, RgbImage], KeptBlobs]
    again: Callable[[CommittedImage], KeptBlobs]


def _logits_in_passing(generated: GeneratedMasks, resized: RgbImage) -> KeptBlobs:
    return keep_logits([encode_logits(logits) for logits in generated.logits])


def _logits_again(image: CommittedImage) -> KeptBlobs:
    committed = image.label_blobs()
    return keep_logits_again(image.generate(), committed) if committed else keep_logits([])


def _embeddings_in_passing(generated: GeneratedMasks, resized: RgbImage) -> KeptBlobs:
    crops = [frame.crop_box for frame in generated.frames]
    return keep_embeddings(generated.size, crops, generated.embeddings.__getitem__)


def _embeddings_again(image: CommittedImage) -> KeptBlobs:
    rows = image.rows
    return keep_embeddings((rows.height, rows.width), map(crop_of, rows.masks), image.embed)


KEPT: Mapping[str, Keeping] = {
    PHOTOS: Keeping(lambda generated, resized: keep_photo(resized), lambda image: keep_photo(image.resized)),
    LOGITS: Keeping(_logits_in_passing, _logits_again),
    EMBEDDINGS: Keeping(_embeddings_in_passing, _embeddings_again),
}
"""Every kept layer, by name."""


class KeptWriter:
    """Collects a unit's data of each kept layer, in memory, and commits them."""

    def __init__(
        self, dataset: Dataset, layers: Sequence[Layer], unit: Unit, digests: Mapping[str, str | None]
    ) -> None:
        self.writers = {layer.name: UnitWriter(dataset, layer, unit, digests) for layer in layers}

    def add(self, index: int, size: tuple[int, int], kept: Mapping[str, KeptBlobs]) -> None:
        """Add image ``index`` of the unit, a photo of ``size`` height, width, with what each layer gets of it."""
        for name, writer in self.writers.items():
            writer.add_image(index, size, *kept[name])

    def add_failure(self, index: int, error: str, labelled: ImageRows | None = None) -> None:
        """Add image ``index`` of the unit as one that could not be read.

        If the image has masks, ``labelled`` is what the masks layer says of it; each mask then gets a row marked
        unknown.
        """
        for name, writer in self.writers.items():
            known_column = kind_of(name).known_column
            if known_column and labelled is not None and labelled.masks:
                count = len(labelled.masks)
                size = labelled.height, labelled.width
                writer.add_image(index, size, [b""] * count, {known_column: [False] * count}, {}, error)
            else:
                writer.add_failure(index, error)

    def commit(self, storage: Storage, masks_sha256: str) -> None:
        """Write the data of each layer, then its manifest, unless another run has committed it.

        ``masks_sha256`` is that of the masks' data that logits and embeddings are of.
        """
        for name, writer in self.writers.items():
            writer.commit(storage, masks_sha256 if kind_of(name).of_masks else "")
