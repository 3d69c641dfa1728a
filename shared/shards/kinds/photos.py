"""``photos``: the photos at the input side of the SAM that labels them. A photo, a JPEG, is the one blob of its image,
``mask`` 0. Where ``mask`` is null, ``error`` says why the photo could not be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from sum_factory.shared.errors import ImageError
from sum_factory.shared.placement import resized_size
from sum_factory.shared.shards.dataset import PHOTOS, Dataset, Layer
from sum_factory.shared.shards.encodings.zarr_array import Array
from sum_factory.shared.shards.encodings.zarr_layout import PHOTO_BYTES, ArrayRows, Columns, RowCells, ZarrLayout
from sum_factory.shared.shards.kinds.kind import LayerKind, UnitUnderCheck, input_side_of


def zarr_layout(dataset: Dataset, layer: Layer) -> ZarrLayout:
    """Return the one array of photos, a row per image."""
    # Not even noise takes as many bytes in JPEG as its pixels do: every photo fits, and zeros behind it cost nothing.
    length = 1 << (3 * input_side_of(dataset) ** 2 - 1).bit_length()
    meaning = "a JPEG, and zeros behind it; a row of zeros: the photo could not be read"
    jpeg = Array("jpeg", (length,), ("image", "byte"), meaning, length=PHOTO_BYTES)

    def split(blobs: Sequence[bytes]) -> tuple[ArrayRows, Columns]:
        return [[np.frombuffer(blob, np.uint8) for blob in blobs]], {PHOTO_BYTES: [*map(len, blobs)]}

    def join(cells: RowCells, row: Columns) -> bytes:
        return cells[0].tobytes()

    return ZarrLayout((jpeg,), ((PHOTO_BYTES, pa.int32()),), split, join, per_image=True)


def faults(checked: UnitUnderCheck) -> Iterator[str]:
    """Yield which photos do not decode or have another size than their row of the manifest says."""
    from sum_factory.shared.codecs.photo import decode_photo  # brings OpenCV, which most who read manifests do without

    for row, data in checked.rows:
        if row["mask"] is None:
            if row["error"] is None:
                yield f"image {row['image']} has neither a photo nor an error"
            continue
        try:
            size = tuple(decode_photo(data, f"image {row['image']}").shape[1:])
        except ImageError as error:
            yield str(error)
            continue
        expected = resized_size(row["height"], row["width"], checked.shards.input_side)
        if size != expected:
            yield f"image {row['image']}: {size[1]} x {size[0]} pixels, expected {expected[1]} x {expected[0]}"


KIND = LayerKind(
    name=PHOTOS,
    per="image",
    columns=(),
    zarr_layout=zarr_layout,
    member="jpg",
    faults=faults,
    contents=PHOTOS,
    counted="photos",
    lacking="photo",
    is_kept=True,
    has_empty_member=False,  # a reader would take an empty one for a photo
)
