"""Embeddings kept as half floats: rounded to the nearest, and nothing else lost."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from sum_factory.shared.codecs.embedding import decode_embedding, encode_embedding
from sum_factory.shared.errors import ShardError


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 2, 3), (192, 16, 16), (256, 64, 64)])
def test_decoded_embeddings_are_the_half_floats(shape: tuple[int, int, int]) -> None:
    embedding = np.random.default_rng(0).normal(0, 2, shape).astype(np.float32)
    decoded = decode_embedding(encode_embedding(embedding))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, embedding.astype(np.float16).astype(np.float32))


def test_what_is_too_large_is_cut_and_what_is_no_number_stays_none() -> None:
    embedding = np.array([[[1e9, -np.inf, np.nan]]], np.float32)
    np.testing.assert_array_equal(decode_embedding(encode_embedding(embedding)), [[[65504, -65504, np.nan]]])


def test_blob_reads_as_documented() -> None:
    """The shape, then deflated high and low bytes, channel by channel: a plain loop as the decoder."""
    embedding = np.random.default_rng(1).normal(0, 2, (3, 2, 4)).astype(np.float32)
    data = encode_embedding(embedding)
    assert struct.unpack_from("<3H", data) == (3, 2, 4)
    planes = zlib.decompress(data[6:], -15)
    halves = [struct.unpack("<e", bytes([planes[24 + k], planes[k]]))[0] for k in range(24)]
    np.testing.assert_array_equal(halves, embedding.astype(np.float16).ravel())


def test_damaged_blobs_are_refused() -> None:
    data = encode_embedding(np.ones((6, 5, 5), np.float32))
    for broken in (b"", data[:5], data[:6], data[:-3], b"\x07" + data[1:], data[:6] + b"\xff" * 9):
        with pytest.raises(ShardError, match="damaged embedding"):
            decode_embedding(broken)
