"""What a kind of layer says of itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from sum_factory.shared.errors import ShardError
from sum_factory.shared.shards.dataset import MASKS, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_layout import ZarrLayout

if TYPE_CHECKING:
    from sum_factory.shared.shards.shard_set import ShardSet

Plane = Literal["label", "u", "refined"]
"""What a layer holds of a mask, as grids of codes. In a Zarr layer each is an array."""
Row = Mapping[str, Any]
Per = Literal["mask", "image", "crop"]


@dataclass(frozen=True)
class UnitUnderCheck:
    """What a committed unit holds in a layer, to be checked.

    ``rows`` are the rows of its manifest, each with its blob, which is empty where there is none; ``masks`` are the
    rows of the unit's masks, for a layer that is of them.
    """

    shards: ShardSet
    unit: int
    layer: Layer
    rows: Iterable[tuple[Row, bytes]]
    masks: Sequence[Row]


def _no_planes(layer: Layer) -> tuple[Plane, ...]:
    return ()


def _any_settings(layer: Layer) -> None:
    return


@dataclass(frozen=True)
class LayerKind:
    """All that differs between kinds of layers. Each module of this package but this one has a ``KIND``.

    ``name`` is that of the layer, or the folder of the layers if there may be several (``is_family``). ``per`` says
    what each row of a manifest is of; ``columns`` are those that the kind adds to the extent of a blob. ``zarr_layout``
    says what the layer is in Zarr, ``member`` what the member of a tar is called that holds an image's blobs.
    ``faults`` yields what is wrong with what the blobs of a unit decode to.
    """

    name: str
    per: Per
    columns: tuple[tuple[str, pa.DataType], ...]
    zarr_layout: Callable[[Dataset, Layer], ZarrLayout]
    member: str
    faults: Callable[[UnitUnderCheck], Iterator[str]]
    contents: str
    """What it holds, in words: "its CONTENTS are of other masks"."""
    counted: str = "masks"
    """What its blobs are of, in words, as they are counted."""
    lacking: str = ""
    """What an image lacks that could not be read, in words; by default its name."""
    is_family: bool = False
    """Whether there may be several such layers, NAME/WHATEVER."""
    of_masks: bool = False
    """Whether its data belong to certain masks: those that were there when the data were made, to the byte."""
    is_kept: bool = False
    """Whether it holds what labelling has at hand anyway: ``labelgen run --keep-NAME`` makes it."""
    is_output: bool = False
    """Whether it holds outputs of SAM, from which maps of uncertainty can be made later (``--use-kept``)."""
    known_column: str = ""
    """The column, if there is one, that is False where nothing is known of a mask."""
    planes: Callable[[Layer], tuple[Plane, ...]] = _no_planes
    """What a layer holds of a mask as grids of codes; nothing, where blobs are read as they are."""
    has_empty_member: bool = True
    """Whether an image without blobs has an empty member in a tar, rather than none."""
    require_settings: Callable[[Layer], None] = _any_settings
    """Raises ``ValueError``, naming it, if a setting that data are read by is not what it can be."""


def faults_by_mask(checked: UnitUnderCheck, fault_of: Callable[[Row, bytes, Row, int], str | None]) -> Iterator[str]:
    """Yield what ``fault_of`` finds wrong with each mask, given its row, blob, row of the masks, and number."""
    pairs = ((*one, mask) for one, mask in zip(checked.rows, checked.masks, strict=True) if mask["mask"] is not None)
    for number, (row, blob, mask) in enumerate(pairs):
        try:
            fault = fault_of(row, blob, mask, number)
        except ShardError as error:
            fault = str(error)
        if fault is not None:
            yield f"mask {row['mask']} of image {row['image']}: {fault}"


def input_side_of(dataset: Dataset) -> int:
    """Return the side in pixels of the square input of the SAM that made the masks."""
    return int(dataset.layers[MASKS].weights["sam"]["image_size"])
