"""``embeddings``: what the image encoder made of each crop in which there are masks. A row is a crop, ``mask`` is its
number in the image. Where ``mask`` is null the image has no masks, or ``error`` says why it could not be read."""

from __future__ import annotations

from collections.abc import Iterator

from sum_factory.shared.codecs.embedding import decode_embedding, pack_embedding, unpack_embedding
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CropBox
from sum_factory.shared.shards.dataset import EMBEDDINGS, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import ZarrLayout, single_array
from sum_factory.shared.shards.kinds.kind import LayerKind, UnitUnderCheck
from sum_factory.shared.shards.manifest import CROP_COLUMNS, crop_of
from sum_factory.shared.store.records import Record, whole_number

LARGEST_AXIS = 1 << 11
"""Channels, rows or columns of an embedding, at most."""


def zarr_layout(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return the one array of embeddings, a row per crop."""
    meaning = "what the image encoder made of a crop, the manifest's rows in order; NaN: there is no such crop"
    axes = ("crop", "channel", "row", "column")
    channels, height, width = layer.settings["shape"]
    embeddings = Array("embeddings", (channels, height, width), axes, meaning, "float16", "NaN", level=3)
    return single_array(embeddings, unpack_embedding, pack_embedding)


def faults(checked: UnitUnderCheck) -> Iterator[str]:
    """Yield which embeddings do not decode, and which crops of masks have none, or not in the order of the masks."""
    shape = tuple(checked.layer.settings["shape"])
    expected: dict[int, dict[CropBox, None]] = {}
    for mask in checked.masks:
        crops = expected.setdefault(mask["image_index"], {})
        if mask["mask"] is not None:
            crops[crop_of(mask)] = None
    found: dict[int, list[CropBox]] = {}
    for row, data in checked.rows:
        if row["error"] is not None:
            expected[row["image_index"]] = {}
        crops_found = found.setdefault(row["image_index"], [])
        if row["mask"] is None:
            continue
        crops_found.append(crop_of(row))
        try:
            if decode_embedding(data).shape != shape:
                yield f"embedding {row['mask']} of image {row['image']}: it is of another size"
        except ShardError as error:
            yield f"embedding {row['mask']} of image {row['image']}: {error}"
    for index, crops in expected.items():
        if found.get(index) != list(crops):
            yield f"the embeddings of image {index} are not those of the crops of its masks"


def require_settings(layer: Layer) -> None:
    """Raise ``ValueError`` if the settings do not tell the shape of an embedding."""
    shape = Record(layer.settings, "settings").items("shape", 3)
    sizes = [whole_number(size, "settings.shape", 1, LARGEST_AXIS) for size in shape]
    if len(sizes) != 3:
        raise ValueError("settings.shape: expected three sizes")


KIND = LayerKind(
    require_settings=require_settings,
    name=EMBEDDINGS,
    per="crop",
    columns=CROP_COLUMNS,
    zarr_layout=zarr_layout,
    member=EMBEDDINGS,
    faults=faults,
    contents=EMBEDDINGS,
    counted=EMBEDDINGS,
    of_masks=True,
    is_kept=True,
    is_output=True,
)
