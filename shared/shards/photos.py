"""The layer ``photos`` of a shard set: its photos, at the input side of the SAM that labelled them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.photo import decode_photo
from sum_factory.shared.errors import ImageError, ShardError
from sum_factory.shared.shards.dataset import PHOTOS
from sum_factory.shared.shards.manifest import UnitRecord
from sum_factory.shared.shards.reader import WHICH, UnitRows
from sum_factory.shared.shards.shard_set import ShardSet


def read_photo(shards: ShardSet, unit: int, index: int) -> npt.NDArray[np.uint8]:
    """Read and decode the photo of image ``index`` of a unit: RGB uint8 (3, h, w), its longer side SAM's input side.

    Raises ``ShardError`` if the unit is not in the layer, the photo could not be read when the layer was made, or its
    data are missing, fail their CRC-32, or do not decode.
    """
    reader = shards.reader(PHOTOS)
    first, end = reader.rows(unit).first[index : index + 2].tolist()
    where = f"{shards.storage.url}, layer {PHOTOS}, image {index} of unit {unit}"
    if first == end:
        raise ShardError(f"{where}: the photo could not be read when the layer was made (`labelgen status` says why)")
    (data,) = reader.blobs(unit, [first])
    try:
        return decode_photo(data, where)
    except ImageError as error:
        raise ShardError(str(error)) from error


def require_photos(shards: ShardSet, unit: int, masks: UnitRows | None = None) -> UnitRecord:
    """Raise ``ShardError`` if an image of a unit that has masks has no photo in the layer ``photos``.

    ``masks`` are the rows of the unit's masks, if the caller has read them. Returns what the manifest of the photos
    says of the unit as a whole.
    """
    try:
        photos = shards.read_rows(unit, PHOTOS, WHICH)
    except ShardError as error:
        raise ShardError(f"{error}; give the `labelgen run` that made the masks again, with --keep-photos") from error
    if masks is None:
        masks = shards.read_rows(unit, columns=WHICH)
    lacking = np.flatnonzero((np.diff(masks.first) > 0) & (np.diff(photos.first) == 0))
    if lacking.size:
        name = shards.unit(unit).images[lacking[0]].key
        raise ShardError(
            f"{shards.storage.url}, layer {PHOTOS}: unit {unit} lacks {len(lacking)} photos whose masks are there, the "
            f"first is {name!r} (`labelgen status` says why); restore them, delete the unit's manifest in this layer, "
            "and run `labelgen run --keep-photos` again"
        )
    return photos.record
