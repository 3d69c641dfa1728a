"""``logits``: the full low-resolution logits of each mask, row for row the masks. Where ``valid`` is false they are not
known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from sum_factory.shared.codecs.logits import decode_logits, pack_halves, unpack_halves
from sum_factory.shared.errors import ShardError
from sum_factory.shared.placement import CELL
from sum_factory.shared.shards.dataset import LOGITS, MASKS, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import MASK_AXES, ZarrLayout, single_array
from sum_factory.shared.shards.kinds.kind import LayerKind, Row, UnitUnderCheck, faults_by_mask, input_side_of


def zarr_layout(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return the one array of logits."""
    side = input_side_of(dataset) // CELL
    meaning = "SAM's logits, padding included; NaN: they are not known, or there is no such mask"
    logits = Array("logits", (side, side), MASK_AXES, meaning, "float16", "NaN", level=3)
    return single_array(logits, unpack_halves, pack_halves)


def faults(checked: UnitUnderCheck) -> Iterator[str]:
    """Yield which logits do not decode, or have other signs than their label.

    A label that is damaged is left to the check of the masks.
    """
    cells = checked.shards.input_side // CELL

    def fault_of(row: Row, data: bytes, mask: Row, number: int) -> str | None:
        if not row["valid"]:
            return "its logits are not known, but there are some" if data else None
        logits = decode_logits(data)
        if logits.shape != (cells, cells):
            return "its logits are of another size"
        try:
            label = checked.shards.reader(MASKS).read(checked.unit, [number], "label").values(0)
        except ShardError:
            return None
        agree = np.array_equal(logits[: label.shape[0], : label.shape[1]] > 0, label > 0)
        return None if agree else "its logits and its label do not agree"

    return faults_by_mask(checked, fault_of)


KIND = LayerKind(
    name=LOGITS,
    per="mask",
    columns=(("valid", pa.bool_()),),
    zarr_layout=zarr_layout,
    member=LOGITS,
    faults=faults,
    contents=LOGITS,
    of_masks=True,
    is_kept=True,
    is_output=True,
    known_column="valid",
)
