"""Codes are what the plain decoders say, bit for bit; no damaged blob becomes codes; codes become the same blob."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter

from sum_factory.shared.codecs.codes import FAR_NEGATIVE, FAR_POSITIVE, Labels, map_blob, map_tables
from sum_factory.shared.codecs.fast import decode_labels, decode_maps, decode_refined
from sum_factory.shared.codecs.label import HEADER, decode_label, deflate, encode_label
from sum_factory.shared.codecs.uncertainty import LENGTH, decode_u, decode_uncertainty, encode_uncertainty
from sum_factory.shared.errors import ShardError

Grid = npt.NDArray[np.float32]

SIZES = ((1, 1), (1, 70), (70, 1), (7, 63), (64, 64), (65, 129), (43, 64), (256, 256), (171, 256), (256, 3))
small = array_shapes(min_dims=2, max_dims=2, max_side=24)
any_logits = arrays(np.float32, small, elements=st.floats(-30, 30, width=32))
wide_logits = arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(60, 70)), elements=st.sampled_from([-4, 0, 3])
)
any_maps = arrays(np.float32, small, elements=st.sampled_from([0.0, 0.0, 0.0, 0.03, 0.5, 1.0]))


def smooth(seed: int, rows: int, columns: int, sigma: float = 3.0) -> Grid:
    """Return smooth noise around minus a half; ``sigma`` is in cells."""
    noise = np.random.default_rng(seed).standard_normal((rows + 40, columns + 40))
    field = gaussian_filter(noise, sigma)[20 : 20 + rows, 20 : 20 + columns]
    return (field / field.std() if field.size > 1 else field).astype(np.float32) * 7 - np.float32(0.5)


def labels_of_all_kinds() -> list[bytes]:
    """Return blobs of grids of many sizes: smooth, jagged, full, empty."""
    blobs = []
    for seed, (rows, columns) in enumerate(SIZES):
        blobs += [encode_label(smooth(seed, rows, columns, sigma)) for sigma in (0.3, 2.0, 8.0)]
        blobs += [encode_label(np.full((rows, columns), value, np.float32)) for value in (-1, 1)]
    return blobs


def maps_of_all_kinds() -> list[bytes]:
    """Return blobs of maps of many sizes, with refined labels."""
    blobs = []
    for seed, (rows, columns) in enumerate(SIZES):
        noise = smooth(seed, rows, columns)
        for u in (np.abs(noise) / 30, np.clip(noise, 0, 1), np.zeros_like(noise), np.ones_like(noise)):
            blobs.append(encode_uncertainty(np.clip(u, 0, 1).astype(np.float32), encode_label(noise)))
    return blobs


def assert_equal_bits(found: Grid, expected: Grid) -> None:
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_labels_of_all_kinds_are_those_of_the_plain_decoder() -> None:
    blobs = labels_of_all_kinds()
    codes = decode_labels(blobs).codes()
    assert codes.grid.shape == (len(blobs), 256, 256)
    for k, blob in enumerate(blobs):
        assert_equal_bits(codes.values(k), decode_label(blob))
        rows, columns = codes.sizes[k]
        assert not codes.grid[k, rows:].any()
        assert not codes.grid[k, :, columns:].any()


@settings(max_examples=300)
@given(st.one_of(any_logits, wide_logits))
def test_any_label_is_that_of_the_plain_decoder(logits: Grid) -> None:
    blob = encode_label(logits)
    (decoded,) = decode_labels([blob]).codes().all_values()
    assert_equal_bits(decoded, decode_label(blob))


def test_maps_and_refined_labels_of_all_kinds_are_those_of_the_plain_decoder() -> None:
    blobs = maps_of_all_kinds()
    maps, refined = decode_maps(blobs), decode_refined(blobs).codes()
    for k, blob in enumerate(blobs):
        assert_equal_bits(maps.values(k), decode_u(blob))
        expected = decode_uncertainty(blob).refined
        assert expected is not None
        assert_equal_bits(refined.values(k), expected)


@settings(max_examples=200)
@given(any_maps)
def test_any_map_is_that_of_the_plain_decoder(u: Grid) -> None:
    blob = encode_uncertainty(u)
    (decoded,) = decode_maps([blob]).all_values()
    assert_equal_bits(decoded, decode_u(blob))


@pytest.mark.parametrize("steps", range(1, 128))
def test_every_step_of_every_number_of_steps_has_its_own_code(steps: int) -> None:
    q = np.arange(steps, dtype=np.uint8)
    signs = np.zeros((2 * steps, 2), np.uint8)
    signs[:, 0] = 1
    levels = np.repeat(q, 4)  # both cells of both rows
    blob = HEADER.pack(2 * steps - 1, 1, 0, 0, 2 * steps - 1, 1, 1.5, steps)
    changes = signs.copy()
    changes[1:] ^= signs[:-1]
    blob += deflate(np.packbits(changes).tobytes(), levels.tobytes())
    labels = decode_labels([blob])
    assert len(np.unique(labels.grid[0, :, 0])) == len(np.unique(labels.grid[0, :, 1])) == steps
    assert labels.grid[0, :, 0].min() >= 128 > labels.grid[0, :, 1].max()
    assert {FAR_NEGATIVE, FAR_POSITIVE}.isdisjoint(np.unique(labels.grid).tolist())
    assert_equal_bits(labels.codes().values(0), decode_label(blob))
    assert labels.blob(0) == blob


def test_codes_say_without_a_table_what_is_in_the_mask_and_how_surely() -> None:
    blob = encode_label(smooth(3, 60, 64))
    codes, logits = decode_labels([blob]).grid[0], decode_label(blob)
    np.testing.assert_array_equal(codes >= 128, logits > 0)
    band = (codes > 0) & (codes < 255)
    order = np.argsort(codes[band], kind="stable")
    assert (np.diff(logits[band][order]) >= 0).all()


def test_code_that_no_level_of_a_map_has_does_not_read_as_certain() -> None:
    levels = [10 * level for level in range(26)]
    (table,) = map_tables(1)
    assert_equal_bits(table[levels], np.arange(26, dtype=np.float32) / np.float32(25))
    assert (np.delete(table, levels) == 1).all()


def test_codes_become_the_blob_that_they_were() -> None:
    blobs = labels_of_all_kinds()
    labels = decode_labels(blobs)
    assert [labels.blob(k) for k in range(len(blobs))] == blobs
    blobs = maps_of_all_kinds()
    maps, refined = decode_maps(blobs), decode_refined(blobs)
    for k, blob in enumerate(blobs):
        rows, columns = maps.sizes[k]
        assert map_blob(maps.grid[k, :rows, :columns], refined.blob(k)) == blob


@pytest.mark.parametrize("change", ["band", "far", "step", "steps", "typical"])
def test_codes_of_no_label_become_no_blob(change: str) -> None:
    labels = decode_labels([encode_label(smooth(1, 40, 50, 4.0))])
    grid, typical, steps = labels.grid.copy(), labels.typical.copy(), labels.steps.copy()
    band = tuple(np.argwhere((grid > 127) & (grid < 255))[0])
    if change == "band":
        grid[tuple(np.argwhere(grid == 0)[0])] = 127
    elif change == "far":
        grid[band] = 255
    elif change == "step":
        unused = set(range(128, 255)) - {128 + (2 * q + 1) * 127 // (2 * int(steps[0])) for q in range(int(steps[0]))}
        grid[band] = unused.pop()
    elif change == "steps":
        steps[0] = 0
    else:
        typical[0] = np.nan
    with pytest.raises(ShardError, match="not those of a label"):
        Labels(grid, typical, steps, labels.sizes).blob(0)
    with pytest.raises(ShardError, match="not those of a map"):
        map_blob(np.full((3, 3), 255, np.uint8))


def test_nothing_decodes_to_nothing() -> None:
    assert len(decode_labels([]).codes()) == len(decode_maps([])) == len(decode_refined([]).codes()) == 0
    assert decode_labels([]).codes().all_values().shape == (0, 0, 0)


def refused(decode: object, blob: bytes) -> bool:
    try:
        decode(blob)  # type: ignore[operator]
    except ShardError:
        return True
    return False


@pytest.mark.parametrize(("rows", "columns"), [(30, 40), (1, 3), (5, 130)])
def test_damaged_labels_are_refused_as_the_plain_decoder_refuses_them(rows: int, columns: int) -> None:
    good, blob = encode_label(smooth(9, rows, columns)), encode_label(smooth(8, rows, columns))
    for length in range(len(blob)):
        with pytest.raises(ShardError, match="does not decode"):
            decode_labels([good, blob[:length]])
    for place in range(len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[place] ^= 1 << bit
            try:
                found = decode_labels([good, bytes(damaged)]).codes()
            except ShardError:
                if 0 < damaged[8] < 128:
                    assert refused(decode_label, bytes(damaged))
            else:
                assert_equal_bits(found.values(1), decode_label(bytes(damaged)))


@pytest.mark.parametrize(("rows", "columns"), [(30, 40), (1, 3), (5, 130)])
def test_damaged_maps_are_refused_as_the_plain_decoder_refuses_them(rows: int, columns: int) -> None:
    blob = encode_uncertainty(np.clip(smooth(8, rows, columns), 0, 1))
    for length in range(len(blob)):
        with pytest.raises(ShardError):
            decode_maps([blob, blob[:length]])
    for place in range(LENGTH.size, len(blob)):
        for bit in range(8):
            damaged = bytearray(blob)
            damaged[place] ^= 1 << bit
            try:
                found = decode_maps([blob, bytes(damaged)])
            except ShardError:
                assert refused(decode_u, bytes(damaged))
            else:
                assert_equal_bits(found.values(1), decode_u(bytes(damaged)))


def test_label_with_more_steps_than_a_byte_has_room_for_is_refused() -> None:
    blob = bytearray(encode_label(smooth(1, 20, 20)))
    blob[8] = 128
    with pytest.raises(ShardError, match="does not fit its stream"):
        decode_labels([bytes(blob)])


def test_blob_without_a_refined_label_has_none_to_give() -> None:
    with pytest.raises(ShardError, match="no refined label"):
        decode_refined([encode_uncertainty(np.zeros((3, 3), np.float32))])
