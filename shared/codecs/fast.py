"""Blobs of ``shared.codecs.label`` and ``shared.codecs.uncertainty`` to codes, many at once and fast.

``decode_label`` and ``decode_u`` say in plain NumPy what a blob holds; these give the same values, bit for bit, and
refuse what they refuse. Beyond that they refuse labels of more than 127 steps, and streams behind a header of no steps.

The compiled part is imported when something is decoded: Numba's import takes a second.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sum_factory.shared.codecs.codes import Codes, Grid, Labels, map_tables
from sum_factory.shared.codecs.label import HEADER, LARGEST_SIDE, LARGEST_TYPICAL, decode_label
from sum_factory.shared.codecs.uncertainty import HEADER as MAP_HEADER
from sum_factory.shared.codecs.uncertainty import LENGTH, cut_blob, decode_u
from sum_factory.shared.errors import ShardError

_LARGEST_STREAM = 2 * LARGEST_SIDE * LARGEST_SIDE
_TYPICAL = slice(6, 8)


def decode_labels(blobs: Sequence[bytes]) -> Labels:
    """Decode blobs of labels. Raises ``ShardError`` on damaged bytes."""
    from sum_factory.shared.codecs.kernel import SOUND, label_codes

    content, starts = _inflate(blobs, HEADER.size, decode_label)
    heads = _headers(blobs, HEADER.size)
    typical = heads[:, _TYPICAL].copy().view("<f2")[:, 0].astype(np.float32)
    for k in np.flatnonzero(~((typical > 0) & (typical <= LARGEST_TYPICAL))):
        _refuse(decode_label, blobs[int(k)])
    sizes = heads[:, :2].astype(np.int64) + 1
    grid = _empty_grid(sizes)
    damaged = label_codes(content, starts, heads[:, [0, 1, 2, 3, 4, 5, 8]].astype(np.int64), grid)
    if damaged != SOUND:
        _refuse(decode_label, blobs[damaged])
    return Labels(grid, typical, heads[:, 8].copy(), sizes)


def decode_maps(blobs: Sequence[bytes]) -> Codes:
    """Decode the maps u of blobs of an uncertainty layer. Raises ``ShardError`` on damaged bytes."""
    from sum_factory.shared.codecs.kernel import SOUND, map_codes

    sections = [cut_blob(blob)[0] for blob in blobs]
    content, starts = _inflate(sections, MAP_HEADER.size, _decode_section)
    heads = _headers(sections, MAP_HEADER.size).astype(np.int64)
    sizes = heads[:, :2] + 1
    grid = _empty_grid(sizes)
    damaged = map_codes(content, starts, heads, grid)
    if damaged != SOUND:
        _refuse(_decode_section, sections[damaged])
    return Codes(grid, map_tables(len(grid)), sizes)


def decode_refined(blobs: Sequence[bytes]) -> Labels:
    """Decode the refined labels of blobs of an uncertainty layer. Raises ``ShardError`` if one has none."""
    labels = [cut_blob(blob)[1] for blob in blobs]
    if not all(labels):
        raise ShardError("a blob of an uncertainty layer has no refined label; run `labelgen verify`")
    return decode_labels(labels)


def _inflate(
    blobs: Sequence[bytes], header: int, decode: Callable[[bytes], object]
) -> tuple[Grid, npt.NDArray[np.int64]]:
    """Inflate what follows the headers: one after the other, uint8 (N,), and where each starts, int64 (K + 1,)."""
    inflated = []
    for blob in blobs:
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            inflated.append(stream.decompress(blob[header:], _LARGEST_STREAM))
        except zlib.error:
            _refuse(decode, blob)
        if not stream.eof or stream.unused_data or len(blob) < header:
            _refuse(decode, blob)
    starts = np.zeros(len(inflated) + 1, np.int64)
    np.cumsum([len(each) for each in inflated], out=starts[1:])
    return np.frombuffer(b"".join(inflated), np.uint8), starts


def _headers(blobs: Sequence[bytes], size: int) -> Grid:
    return np.frombuffer(b"".join([blob[:size] for blob in blobs]), np.uint8).reshape(-1, size)


def _empty_grid(sizes: npt.NDArray[np.int64]) -> Grid:
    rows, columns = sizes.max(0, initial=0)
    return np.empty((len(sizes), rows, columns), np.uint8)


def _decode_section(section: bytes) -> object:
    return decode_u(LENGTH.pack(len(section)) + section)


def _refuse(decode: Callable[[bytes], object], blob: bytes) -> None:
    """Raise the ``ShardError`` in which the plain decoder says what is wrong with a damaged blob."""
    decode(blob)
    raise ShardError(
        f"a blob of {len(blob)} bytes does not decode (its header does not fit its stream); run `labelgen verify`"
    )
