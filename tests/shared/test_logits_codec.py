"""Logits kept as half floats: rounded to the nearest, with their signs, and nothing else lost."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from sum_factory.shared.codecs.logits import decode_logits, encode_logits
from sum_factory.shared.errors import ShardError


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (48, 64), (256, 256)])
def test_decoded_logits_are_the_half_floats(size: tuple[int, int]) -> None:
    logits = np.random.default_rng(0).normal(0, 9, size).astype(np.float32)
    decoded = decode_logits(encode_logits(logits))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, logits.astype(np.float16).astype(np.float32))


def test_signs_are_kept_and_what_is_too_large_is_cut() -> None:
    logits = np.array([[1e-12, -1e-12, 0.0, 1e9, -1e9, np.inf, -np.inf]], np.float32)
    decoded = decode_logits(encode_logits(logits))
    np.testing.assert_array_equal(decoded > 0, logits > 0)
    assert decoded[0, 3:].tolist() == [65504, -65504, 65504, -65504]


def test_blob_reads_as_documented() -> None:
    """The last row and column, then deflated high and low bytes of differences: a plain loop as the decoder."""
    logits = np.random.default_rng(1).normal(0, 5, (5, 7)).astype(np.float32)
    data = encode_logits(logits)
    assert data[:2] == bytes([4, 6])
    planes = zlib.decompress(data[2:], -15)
    bits = np.zeros((5, 7), np.uint16)
    for cell in range(35):
        row, column = divmod(cell, 7)
        before = int(bits[row, column - 1]) if column else int(bits[row - 1, 0]) if row else 0
        bits[row, column] = (before + planes[cell] * 256 + planes[35 + cell]) % 65536
    np.testing.assert_array_equal(bits.view(np.float16), logits.astype(np.float16))


def test_damaged_blobs_are_refused() -> None:
    data = encode_logits(np.ones((6, 5), np.float32))
    for broken in (b"", data[:1], data[:2], data[:-3], bytes([9]) + data[1:], data[:2] + b"\xff" * 9):
        with pytest.raises(ShardError, match="damaged logits"):
            decode_logits(broken)
