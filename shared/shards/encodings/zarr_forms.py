"""What a layer is in Zarr: its arrays, and how a frame becomes a row of each and is made of them again.

This is the one place that knows a layer's arrays: a new layer gets a function here that returns its ``Form``. Frames
are those that every encoding takes and gives back; a form must give back the very bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sum_factory.shared.codecs.codes import Grid, Labels, map_frame
from sum_factory.shared.codecs.embedding import pack_embedding, unpack_embedding
from sum_factory.shared.codecs.fast import decode_labels, decode_maps, decode_refined
from sum_factory.shared.codecs.logits import pack_halves, unpack_halves
from sum_factory.shared.codecs.uncertainty import refined_label
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CELL
from sum_factory.shared.shards.dataset import EMBEDDINGS, IMAGES, LOGITS, MASKS, Dataset, Layer, is_uncertainty
from sum_factory.shared.shards.encodings.zarr_format import Array

MASK_AXES = ("mask", "row", "column")
UNKNOWN = 255
"""Code of the cells of a map that is not there: what is unknown does not read as certain."""
PHOTO_BYTES = "photo_bytes"
"""Column of the manifest: the length of a photo's JPEG."""
_MASK = "128 or more: in the mask. 0 and 255: far from its boundary"
_GRID = (("grid_height", pa.int32()), ("grid_width", pa.int32()))
_STEPS = (("typical", pa.float32()), ("steps", pa.uint8()))

Cells = Sequence[npt.NDArray[Any]]
"""For each of a form's arrays the cells of one row, cut to what the frame fills; a reader gives them uncut, unless the
array has a ``length``."""
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Form:
    """The arrays of a layer, the columns that its manifests have in Zarr besides places, and the way there and back.

    ``split`` makes of a frame the cells of each array, and the columns; ``join`` makes the frame of these again. Both
    raise ``ShardError`` for what does not fit. If ``per_image``, row i of a unit is that of its image i, and an image
    without data has an absent row; else a unit's masks are its first rows, in the order of the manifest.
    """

    arrays: tuple[Array, ...]
    columns: tuple[tuple[str, pa.DataType], ...]
    split: Callable[[bytes], tuple[Cells, Columns]]
    join: Callable[[Cells, Columns], bytes]
    per_image: bool = False


def form_of(dataset: Dataset, layer: Layer) -> Form:
    """Return what a layer is in Zarr. Raises ``ShardError`` for a layer of a kind that is kept in tars alone."""
    input_side = int(dataset.layers[MASKS].weights["sam"]["image_size"])
    if layer.name == MASKS:
        return _labels(input_side // CELL)
    if is_uncertainty(layer.name):
        return _refined_maps(input_side // CELL) if "refined" in layer.parts else _maps(input_side // CELL)
    if layer.name == IMAGES:
        return _photos(input_side)
    if layer.name == LOGITS:
        return _logits(input_side // CELL)
    if layer.name == EMBEDDINGS:
        return _embeddings(*layer.settings["shape"])
    raise ShardError(f"layer {layer.name} cannot be kept in Zarr; make it with the encoding tar")


def _labels(side: int) -> Form:
    label = Array("label", (side, side), MASK_AXES, _MASK)

    def split(frame: bytes) -> tuple[Cells, Columns]:
        labels = decode_labels([frame])
        return [labels.grid[0]], {**_size(labels.grid[0]), **_steps(labels, "")}

    def join(cells: Cells, row: Columns) -> bytes:
        return _label_frame(cells[0], row, "")

    return Form((label,), (*_GRID, *_STEPS), split, join)


def _maps(side: int) -> Form:
    def split(frame: bytes) -> tuple[Cells, Columns]:
        if refined_label(frame):
            raise ShardError("a map of a layer without a refiner has a refined label")
        grid = decode_maps([frame]).grid[0]
        return [grid], _size(grid)

    def join(cells: Cells, row: Columns) -> bytes:
        return map_frame(_cut(cells[0], row))

    return Form((_u(side),), _GRID, split, join)


def _refined_maps(side: int) -> Form:
    refined = Array("refined", (side, side), MASK_AXES, _MASK.replace("the mask", "the refined mask"))

    def split(frame: bytes) -> tuple[Cells, Columns]:
        grid, labels = decode_maps([frame]).grid[0], decode_refined([frame])
        if labels.grid[0].shape != grid.shape:
            raise ShardError("a map and its refined label are of two sizes")
        return [grid, labels.grid[0]], {**_size(grid), **_steps(labels, "refined_")}

    def join(cells: Cells, row: Columns) -> bytes:
        return map_frame(_cut(cells[0], row), _label_frame(cells[1], row, "refined_"))

    columns = (*_GRID, *((f"refined_{name}", kind) for name, kind in _STEPS))
    return Form((_u(side), refined), columns, split, join)


def _photos(input_side: int) -> Form:
    # Not even noise takes as many bytes in JPEG as its pixels do: every photo fits, and zeros behind it cost nothing.
    length = 1 << (3 * input_side * input_side - 1).bit_length()
    meaning = "a JPEG, and zeros behind it; a row of zeros: the photo could not be read"
    jpeg = Array("jpeg", (length,), ("image", "byte"), meaning, level=1, length=PHOTO_BYTES)

    def split(frame: bytes) -> tuple[Cells, Columns]:
        return [np.frombuffer(frame, np.uint8)], {PHOTO_BYTES: len(frame)}

    def join(cells: Cells, row: Columns) -> bytes:
        return cells[0].tobytes()

    return Form((jpeg,), ((PHOTO_BYTES, pa.int32()),), split, join, per_image=True)


def _logits(side: int) -> Form:
    meaning = "SAM's logits, padding included; NaN: they are not known, or there is no such mask"
    logits = Array("logits", (side, side), MASK_AXES, meaning, "float16", "NaN", level=3)

    def split(frame: bytes) -> tuple[Cells, Columns]:
        return [unpack_halves(frame)], {}

    def join(cells: Cells, row: Columns) -> bytes:
        return pack_halves(cells[0])

    return Form((logits,), (), split, join)


def _embeddings(channels: int, height: int, width: int) -> Form:
    meaning = "what the image encoder made of a crop, the manifest's rows in order; NaN: there is no such crop"
    axes = ("crop", "channel", "row", "column")
    embeddings = Array("embeddings", (channels, height, width), axes, meaning, "float16", "NaN", level=3)

    def split(frame: bytes) -> tuple[Cells, Columns]:
        return [unpack_embedding(frame)], {}

    def join(cells: Cells, row: Columns) -> bytes:
        return pack_embedding(cells[0])

    return Form((embeddings,), (), split, join)


def _u(side: int) -> Array:
    meaning = f"u = code / 250; {UNKNOWN}: nothing is known of this mask, or there is none"
    return Array("u", (side, side), MASK_AXES, meaning, fill=UNKNOWN)


def _size(grid: Grid) -> dict[str, Any]:
    return {"grid_height": grid.shape[0], "grid_width": grid.shape[1]}


def _steps(labels: Labels, prefix: str) -> dict[str, Any]:
    """Return the columns without which the codes of one label are no logits."""
    return {f"{prefix}typical": float(labels.typical[0]), f"{prefix}steps": int(labels.steps[0])}


def _cut(grid: Grid, row: Columns) -> Grid:
    """Return the part of a square of codes that a mask fills. Raises ``ShardError`` if there are codes beyond."""
    height, width = int(row["grid_height"]), int(row["grid_width"])
    if grid[height:].any() or grid[:, width:].any():
        raise ShardError("its codes go beyond its grid; run `labelgen verify`")
    return grid[:height, :width]


def _label_frame(grid: Grid, row: Columns, prefix: str) -> bytes:
    cut = _cut(grid, row)
    typical = np.array([row[f"{prefix}typical"]], np.float32)
    steps = np.array([row[f"{prefix}steps"]], np.uint8)
    return Labels(cut[None], typical, steps, np.array([cut.shape], np.int64)).frame(0)
