"""What the manifests of a unit say of its images: their masks, and what is known of the maps of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from sum_factory.shared.placement import Frame
from sum_factory.shared.shards.manifest import rows_of_images


@dataclass(frozen=True)
class ImageRows:
    """One image of the ``masks`` layer: its size in pixels, its rows of the manifest, or why it has none.

    ``digest`` is the SHA-256 of the file that was labelled, None if it could not be read.
    """

    key: str
    index: int
    height: int
    width: int
    error: str | None
    digest: str | None
    masks: tuple[dict[str, Any], ...]
    first: int = 0
    """The number of its first mask in the unit."""

    def frame(self, mask: int, side: int) -> Frame:
        """Return the frame of one mask for a SAM of input ``side``."""
        row = self.masks[mask]
        return Frame(side, (row["crop_x0"], row["crop_y0"], row["crop_x1"], row["crop_y1"]))


@dataclass(frozen=True)
class UncertaintyRow:
    """What the manifest of an uncertainty layer says of one mask, the ``mask``-th of its image.

    Where ``u_valid`` is False nothing is known of the mask: there is no map, and ``mean_u`` is None. Else ``mean_u``
    is the mean of the map over ``Frame.photo_cells``, before it was quantised. ``row`` is the mask's number in the
    unit.
    """

    row: int
    mask: int
    u_valid: bool
    mean_u: float | None


def image_rows(table: pa.Table) -> list[ImageRows]:
    """Return the images of a unit, in order, from the manifest of its masks."""
    labelled, first = [], 0
    for rows in rows_of_images(table):
        masks = tuple(row for row in rows if row["mask"] is not None)
        told = {name: rows[0][name] for name in ("height", "width", "error", "digest")}
        labelled.append(ImageRows(rows[0]["image"], rows[0]["image_index"], masks=masks, first=first, **told))
        first += len(masks)
    return labelled


def digests_of(table: pa.Table) -> dict[str, str | None]:
    """Return the SHA-256 of each image's file, by its key, from the manifest of masks; None where none was read."""
    _, first = np.unique(table["image_index"].to_numpy(), return_index=True)
    images = table.select(["image", "digest"]).take(pa.array(first))
    return dict(zip(images["image"].to_pylist(), images["digest"].to_pylist(), strict=True))


def uncertainty_rows(table: pa.Table, images: int) -> tuple[tuple[UncertaintyRow, ...], ...]:
    """Return what the manifest of a unit of ``images`` images says of its maps: rows[image_index][mask]."""
    rows: list[list[UncertaintyRow]] = [[] for _ in range(images)]
    columns = (table[name].to_pylist() for name in ("image_index", "mask", "u_valid", "mean_u"))
    masks = (values for values in zip(*columns, strict=True) if values[1] is not None)
    for number_in_unit, (index, *values) in enumerate(masks):
        rows[index].append(UncertaintyRow(number_in_unit, *values))
    return tuple(tuple(of_image) for of_image in rows)
