"""An uncertainty map survives its encoding to within 0.02 everywhere; damage is never unnoticed as nonsense."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import gaussian_filter
from scipy.special import expit

from sum_factory.shared.codecs.label import band_of, blob_of_steps, decode_label, encode_label
from sum_factory.shared.codecs.uncertainty import (
    HEADER,
    LENGTH,
    decode_u,
    decode_uncertainty,
    encode_uncertainty,
    refined_label,
)
from sum_factory.shared.errors import ShardError

Map = npt.NDArray[np.float32]

TOLERANCE = 0.02 + 1e-6
probabilities = st.floats(0, 1, width=32)
any_maps = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=probabilities)
sparse_maps = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.sampled_from([0.0, 0.0, 0.0, 0.005, 0.5, 1.0]),
)
maps = st.one_of(any_maps, sparse_maps)


def smooth(seed: int, rows: int, columns: int, sigma: float = 3.0) -> Map:
    """Return smooth noise of unit deviation; ``sigma`` is in cells."""
    noise = gaussian_filter(np.random.default_rng(seed).standard_normal((rows + 40, columns + 40)), sigma)
    return (noise[20 : 20 + rows, 20 : 20 + columns] / noise.std()).astype(np.float32)


def logits_and_refined(seed: int, rows: int, columns: int) -> tuple[Map, Map]:
    """Return logits with a boundary, and others that differ from them a little."""
    s = smooth(seed, rows, columns, 6.0) * 8
    return s, s + smooth(seed + 1000, rows, columns, 3.0) * 2


def plausible(seed: int, rows: int, columns: int) -> Map:
    """Return the difference of two predictions."""
    s, r = logits_and_refined(seed, rows, columns)
    return np.abs(expit(s) - expit(r)).astype(np.float32)


def decode_by_the_description(blob: bytes) -> list[list[float]]:
    """Decode the map of a blob cell by cell, as the module's description says and as slowly as that takes."""
    length = int.from_bytes(blob[:4], "little")
    last_row, last_column, top, left, bottom, right = blob[4:10]
    stream = zlib.decompress(blob[10 : 4 + length], wbits=-15)
    height, width = bottom - top + 1, right - left + 1
    bits = [int(bit) for byte in stream[: -(-height * width // 8)] for bit in f"{byte:08b}"]
    levels = iter(stream[-(-height * width // 8) :])
    u = [[0.0] * (last_column + 1) for _ in range(last_row + 1)]
    above = [0] * width
    for row in range(height if stream else 0):
        above = [a ^ b for a, b in zip(above, bits[row * width : (row + 1) * width], strict=True)]
        for column, positive in enumerate(above):
            if positive:
                u[top + row][left + column] = (next(levels) + 1) / 25
    assert next(levels, None) is None
    return u


@given(maps)
def test_no_cell_is_off_by_more_than_a_fiftieth(u: Map) -> None:
    decoded = decode_u(encode_uncertainty(u))
    assert decoded.dtype == np.float32
    assert decoded.shape == u.shape
    assert np.abs(decoded - u).max() <= TOLERANCE


@given(maps)
def test_little_uncertainty_becomes_none(u: Map) -> None:
    decoded = decode_u(encode_uncertainty(u))
    assert (decoded[u < 2 / 255] == 0).all()
    assert ((decoded >= 0) & (decoded <= 1)).all()


@settings(max_examples=60)
@given(maps)
def test_maps_decode_as_the_format_is_described(u: Map) -> None:
    blob = encode_uncertainty(u)
    np.testing.assert_allclose(decode_u(blob), decode_by_the_description(blob), rtol=1e-6)


@pytest.mark.parametrize(("rows", "columns"), [(49, 64), (193, 256)])
def test_plausible_maps_keep_their_values_and_mean(rows: int, columns: int) -> None:
    for seed in range(6):
        u = plausible(seed, rows, columns)
        decoded = decode_u(encode_uncertainty(u))
        assert np.abs(decoded - u).max() <= TOLERANCE
        assert abs(decoded.mean() - u.mean()) < 0.005
        assert (decoded > 0).sum() > 50


def test_blob_takes_fewer_bytes_than_the_map_in_eight_bits() -> None:
    for seed in range(6):
        u = plausible(seed, 193, 256)
        assert len(encode_uncertainty(u)) < 0.6 * len(zlib.compress(np.rint(255 * u).astype(np.uint8).tobytes(), 9))


def test_map_without_doubt_takes_a_dozen_bytes() -> None:
    assert len(encode_uncertainty(np.full((193, 256), 0.007, np.float32))) <= 12


def test_refined_label_comes_back_as_the_label_codec_makes_it() -> None:
    s, r = logits_and_refined(1, 49, 64)
    u = np.abs(expit(s) - expit(r)).astype(np.float32)
    label = encode_label(r)
    blob = encode_uncertainty(u, label)
    assert blob.endswith(label)
    assert refined_label(blob) == label
    decoded = decode_uncertainty(blob)
    assert decoded.refined is not None
    np.testing.assert_array_equal(decoded.refined, decode_label(label))
    np.testing.assert_array_equal(decoded.u, decode_u(blob))


@pytest.mark.parametrize("steps", [1, 4])
def test_refined_label_of_few_steps_is_read(steps: int) -> None:
    """Sets hold such labels: of 4 steps on a grid of 64 cells, of 1 on one of 256."""
    r = smooth(5, 49, 64) * 5
    positive = (r > 0).astype(np.uint8)
    magnitudes = np.abs(r[band_of(positive)])
    typical = float(np.float16(np.median(magnitudes)))
    label = blob_of_steps(positive, typical, steps, (steps * magnitudes / (magnitudes + typical)).astype(np.uint8))
    decoded = decode_uncertainty(encode_uncertainty(plausible(5, 49, 64), label)).refined
    assert decoded is not None
    np.testing.assert_array_equal(decoded > 0, r > 0)
    assert len(np.unique(np.abs(decoded))) == steps + 1


def test_first_four_bytes_say_how_long_the_map_is() -> None:
    u, label = plausible(2, 20, 30), encode_label(smooth(3, 20, 30))
    alone, blob = encode_uncertainty(u), encode_uncertainty(u, label)
    assert int.from_bytes(blob[:4], "little") == len(alone) - 4 == len(blob) - len(label) - 4


def test_map_without_a_refiner_has_no_refined_logits() -> None:
    decoded = decode_uncertainty(encode_uncertainty(plausible(4, 20, 30)))
    assert decoded.refined is None


EDGE_CASES = {
    "certain everywhere": np.zeros((49, 64), np.float32),
    "undecided everywhere": np.ones((49, 64), np.float32),
    "one certain cell alone": np.zeros((1, 1), np.float32),
    "one undecided cell alone": np.ones((1, 1), np.float32),
    "one row": np.array([[0, 0.3, 0.3, 0, 1]], np.float32),
    "one column": np.array([[0, 0.3, 0.3, 0, 1]], np.float32).T.copy(),
    "first cell": np.pad(np.ones((1, 1), np.float32), ((0, 9), (0, 9))),
    "last cell": np.pad(np.ones((1, 1), np.float32), ((9, 0), (9, 0))),
    "checkerboard": (np.indices((9, 11)).sum(0) % 2).astype(np.float32),
    "largest grid": np.random.default_rng(0).random((256, 256), np.float32),
    "every level": (np.arange(26, dtype=np.float32) / 25).reshape(2, 13),
    "not contiguous": np.random.default_rng(1).random((20, 40), np.float32)[::2, 1::2],
}


@pytest.mark.parametrize("u", EDGE_CASES.values(), ids=EDGE_CASES.keys())
def test_edge_cases_keep_their_shape_and_values(u: Map) -> None:
    blob = encode_uncertainty(u)
    assert np.abs(decode_u(blob) - u).max() <= TOLERANCE
    np.testing.assert_allclose(decode_u(blob), decode_by_the_description(blob), rtol=1e-6)


def test_map_is_not_changed_by_encoding() -> None:
    u = plausible(5, 20, 30)
    before = u.copy()
    encode_uncertainty(u)
    np.testing.assert_array_equal(u, before)


@pytest.mark.parametrize("shape", [(257, 10), (10, 257), (0, 5), (5, 0)])
def test_grid_of_another_model_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"not {shape[0]} x {shape[1]}"):
        encode_uncertainty(np.zeros(shape, np.float32))


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_what_is_no_uncertainty_is_refused(value: float) -> None:
    u = np.zeros((5, 5), np.float32)
    u[2, 2] = value
    with pytest.raises(ValueError, match="between 0 and 1"):
        encode_uncertainty(u)


FRAMES = {
    "map alone": encode_uncertainty(plausible(6, 30, 40)),
    "map and label": encode_uncertainty(plausible(6, 30, 40), encode_label(smooth(7, 30, 40) * 5)),
    "certain, with label": encode_uncertainty(np.zeros((30, 40), np.float32), encode_label(smooth(7, 30, 40) * 5)),
}


@pytest.fixture(params=FRAMES.values(), ids=FRAMES.keys())
def blob(request: pytest.FixtureRequest) -> bytes:
    """A blob of a 30 x 40 grid."""
    made: bytes = request.param
    return made


def test_truncated_blob_is_an_error_unless_just_the_label_is_missing(blob: bytes) -> None:
    end_of_map = 4 + int.from_bytes(blob[:4], "little")
    for length in set(range(len(blob))) - {end_of_map}:
        with pytest.raises(ShardError, match="labelgen verify"):
            decode_uncertainty(blob[:length])


def test_truncated_map_is_an_error_when_the_map_alone_is_decoded(blob: bytes) -> None:
    for length in range(4 + int.from_bytes(blob[:4], "little")):
        with pytest.raises(ShardError, match="labelgen verify"):
            decode_u(blob[:length])


def test_blob_with_bytes_after_its_end_is_an_error(blob: bytes) -> None:
    with pytest.raises(ShardError):
        decode_uncertainty(blob + b"\0")


def test_flipped_bits_give_an_error_or_a_map_of_the_shape_that_the_header_says(blob: bytes) -> None:
    outcomes = set()
    for position in range(len(blob)):
        for mask in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(blob)
            damaged[position] ^= mask
            try:
                u, refined = decode_uncertainty(bytes(damaged))
            except ShardError:
                outcomes.add("refused")
                continue
            outcomes.add("decoded")
            assert u.shape == (damaged[4] + 1, damaged[5] + 1)
            assert ((u >= 0) & (u <= 1)).all()
            assert refined is None or (refined.shape == u.shape and np.isfinite(refined).all())
    assert "refused" in outcomes


@given(st.binary(max_size=60))
def test_noise_is_an_error_or_decodes_to_a_grid(noise: bytes) -> None:
    try:
        u = decode_u(noise)
    except ShardError:
        return
    assert u.shape == (noise[4] + 1, noise[5] + 1)


def test_label_of_another_grid_is_an_error() -> None:
    blob = encode_uncertainty(plausible(8, 30, 40), encode_label(smooth(8, 30, 41)))
    with pytest.raises(ShardError, match="grids of two sizes"):
        decode_uncertainty(blob)


def as_blob(header: tuple[int, ...], content: bytes) -> bytes:
    """Return a blob whose stream holds ``content``."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    part = HEADER.pack(*header) + stream.compress(content) + stream.flush()
    return LENGTH.pack(len(part)) + part


def test_stream_that_inflates_to_far_more_than_the_box_is_refused_early() -> None:
    with pytest.raises(ShardError, match="cut short or too long"):
        decode_u(as_blob((9, 9, 0, 0, 9, 9), bytes(1 << 24)))


@pytest.mark.parametrize(
    ("header", "content", "reason"),
    [
        ((9, 9, 5, 0, 4, 9), b"", "contradicts itself"),
        ((9, 9, 0, 0, 10, 9), b"", "contradicts itself"),
        ((9, 9, 0, 0, 0, 7), b"\xc0\x03", "as many levels as cells"),
        ((9, 9, 0, 0, 0, 7), b"\xc0\x03\x03\x03", "as many levels as cells"),
        ((9, 9, 0, 0, 0, 7), b"\xc0\x03\x19", "beyond the scale"),
        ((9, 9, 0, 0, 7, 7), b"\xc0", "too short"),
    ],
)
def test_contradictions_are_refused(header: tuple[int, ...], content: bytes, reason: str) -> None:
    with pytest.raises(ShardError, match=reason):
        decode_u(as_blob(header, content))
    good = decode_u(as_blob((9, 9, 0, 0, 0, 7), b"\xc0\x03\x18"))
    assert good[0, :2].tolist() == pytest.approx([4 / 25, 1])
