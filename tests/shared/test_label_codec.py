"""A label survives its encoding: signs exactly, the mask at photo size nearly, damage never unnoticed as nonsense."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import distance_transform_cdt, distance_transform_edt, gaussian_filter
from torch.nn.functional import interpolate

from sum_factory.shared.codecs.label import HEADER, decode_label, encode_label
from sum_factory.shared.errors import ShardError

Logits = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

PHOTO = (750, 1000)
finite_numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
finite_grids = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=24), elements=finite_numbers)
smooth_grids = st.builds(
    lambda seed, rows, columns, scale: smooth(seed, rows, columns, 2.0) * np.float32(scale),
    st.integers(0, 2**32 - 1),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.01, 100),
)


def smooth(seed: int, rows: int, columns: int, sigma: float, threshold: float = 0.0) -> Logits:
    """Return smooth noise of unit deviation around minus ``threshold``; ``sigma`` is in cells."""
    noise = np.random.default_rng(seed).standard_normal((rows + 80, columns + 80))
    field = gaussian_filter(noise, sigma)[40 : 40 + rows, 40 : 40 + columns]
    return (field / gaussian_filter(noise, sigma).std() - threshold).astype(np.float32)


def synthetic_logits(grid: int, kind: str, count: int) -> list[Logits]:
    """Return logits of a 4:3 photo on a square grid: "shallow", "steep", or a "plateau" with a ramp at its edge."""
    logits = []
    for seed in range(count):
        random = np.random.default_rng([grid, seed])
        sigma = random.choice([2.5, 4.0, 7.0]) * grid / 64
        field = smooth(seed, grid, grid, sigma, random.uniform(0.2, 1.2))
        if kind == "plateau":
            inside = field > 0
            distance = distance_transform_edt(inside) - distance_transform_edt(~inside)
            ramp = np.tanh(gaussian_filter(distance, 0.7) / random.uniform(1.5, 4))
            field = random.uniform(8, 16) * ramp + random.normal(0, 0.6, field.shape)
        logits.append((field * {"shallow": 5, "steep": 20, "plateau": 1}[kind]).astype(np.float32))
    return logits


def mask_at_photo_size(logits: Logits) -> Mask:
    """Return the mask that SAM means by square ``logits``: bilinear to the input, without padding, to the photo."""
    side = 4 * logits.shape[1]
    square = interpolate(torch.from_numpy(logits)[None, None], (side, side), mode="bilinear", align_corners=False)
    valid = square[..., : side * 3 // 4, :]
    whole = interpolate(valid, PHOTO, mode="bilinear", align_corners=False)
    return np.asarray(whole[0, 0].numpy() > 0)


def iou(a: Mask, b: Mask) -> float:
    """Return the IoU of two masks; empty with empty is 1."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_iou(a: Mask, b: Mask) -> float:
    """Return the IoU of the bands inside the outlines, 2 % of the diagonal wide; the image border is an outline."""
    width = max(1, round(0.02 * float(np.hypot(*a.shape))))
    bands = [mask & (distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1] <= width) for mask in (a, b)]
    return iou(*bands)


def decode_by_the_description(blob: bytes) -> Logits:
    """Decode a blob cell by cell, as the module's description says and as slowly as that takes."""
    last_row, last_column, top, left, bottom, right = blob[:6]
    (typical,) = struct.unpack("<e", blob[6:8])
    steps = blob[8]
    stream = zlib.decompress(blob[9:], wbits=-15)
    positive = {}
    height, width = bottom - top + 1, right - left + 1
    if steps:
        bits = [int(bit) for byte in stream[: -(-height * width // 8)] for bit in f"{byte:08b}"]
        for row in range(height):
            for column in range(width):
                above = positive.get((top + row - 1, left + column), 0) if row else 0
                positive[top + row, left + column] = bits[row * width + column] ^ above
    codes = iter(stream[-(-height * width // 8) :] if steps else b"")
    logits = np.zeros((last_row + 1, last_column + 1), np.float32)
    for row in range(last_row + 1):
        for column in range(last_column + 1):
            own = positive.get((row, column), 0)
            near = [
                positive.get((y, x), 0)
                for y in range(max(0, row - 1), min(last_row, row + 1) + 1)
                for x in range(max(0, column - 1), min(last_column, column + 1) + 1)
            ]
            magnitude = 3 * typical
            if 0 < sum(near) < len(near):
                position = (next(codes) + 0.5) / steps
                magnitude = typical * position / (1 - position)
            logits[row, column] = magnitude if own else -magnitude
    assert next(codes, None) is None
    return logits


@given(finite_grids)
def test_signs_are_exact_for_any_finite_logits(logits: Logits) -> None:
    decoded = decode_label(encode_label(logits))
    assert decoded.dtype == np.float32
    assert decoded.shape == logits.shape
    assert np.isfinite(decoded).all()
    np.testing.assert_array_equal(np.sign(decoded), np.where(logits > 0, 1, -1))


@settings(max_examples=60)
@given(smooth_grids)
def test_blobs_decode_as_the_format_is_described(logits: Logits) -> None:
    blob = encode_label(logits)
    np.testing.assert_allclose(decode_label(blob), decode_by_the_description(blob), rtol=1e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_boundary_between_two_cells_stays_where_it_is_to_a_step(seed: int, scale: float) -> None:
    logits = smooth(seed, 40, 50, 3.0) * np.float32(scale)
    blob = encode_label(logits)
    steps = blob[8]
    for before, after in ((logits, decode_label(blob)), (logits.T, decode_label(blob).T)):
        crossed = before[:-1] * before[1:] < 0
        places = [np.abs(grid[:-1]) / (np.abs(grid[:-1]) + np.abs(grid[1:])) for grid in (before, after)]
        assert crossed.sum() > 20
        assert np.abs(places[0] - places[1])[crossed].mean() < 1 / steps


@pytest.mark.parametrize("kind", ["shallow", "steep", "plateau"])
@pytest.mark.parametrize("grid", [64, 256])
def test_masks_at_photo_size_keep_their_area_and_boundary(grid: int, kind: str) -> None:
    scores, sizes = [], []
    rows = grid * 3 // 4 + 1  # what a 4:3 photo's pixels are interpolated from
    for logits in synthetic_logits(grid, kind, 12):
        blob = encode_label(logits[:rows])
        decoded = np.full_like(logits, -1)
        decoded[:rows] = decode_label(blob)
        masks = mask_at_photo_size(logits), mask_at_photo_size(decoded)
        scores.append((iou(*masks), boundary_iou(*masks)))
        sizes.append(len(blob))
    mean_iou, mean_boundary_iou = np.mean(scores, axis=0)
    assert mean_iou >= 0.998
    assert mean_boundary_iou >= 0.99
    assert np.min(scores) >= 0.98


@pytest.mark.parametrize("kind", ["shallow", "steep", "plateau"])
def test_blob_takes_fewer_bytes_than_the_probabilities(kind: str) -> None:
    for logits in synthetic_logits(256, kind, 6):
        probabilities = np.rint(255 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.uint8)
        assert len(encode_label(logits)) < len(zlib.compress(probabilities.tobytes(), 9))


@settings(max_examples=40)
@given(smooth_grids, st.sampled_from([0.25, 4.0, 64.0]))
def test_scaling_the_logits_does_not_move_the_boundary(logits: Logits, scale: float) -> None:
    assume((logits > 0).any() and (logits < 0).any() and np.abs(logits).max() > 0.1)
    plain, scaled = (decode_label(encode_label(values)) for values in (logits, logits * np.float32(scale)))
    np.testing.assert_array_equal(plain * np.float32(scale), scaled)


def corners(positive: bool) -> dict[str, Logits]:
    """Return grids with one cell of the other sign."""
    grids = {}
    for name, cell in {"corner": (0, 0), "far corner": (-1, -1), "edge": (0, 9), "inside": (7, 9)}.items():
        logits = np.full((16, 20), 6.0 if positive else -6.0, np.float32)
        logits[cell] *= -0.5
        grids[f"one {'negative' if positive else 'positive'} cell, {name}"] = logits
    return grids


def column(*values: float) -> Logits:
    """Return logits of one column."""
    return np.array(values, np.float32)[:, None]


EDGE_CASES = {
    "all negative": np.full((49, 64), -3, np.float32),
    "all positive": np.full((49, 64), 3, np.float32),
    "all zero": np.zeros((5, 6), np.float32),
    "one negative cell alone": column(-2),
    "one positive cell alone": column(2),
    "one column": column(1, 2, -3, -4, 5),
    "one row": column(1, 2, -3, -4, 5).T.copy(),
    "largest grid": smooth(0, 256, 256, 20.0),
    "left half": np.repeat(np.array([[4, 4, 2, -2, -4]], np.float32), 30, axis=0),
    "top half": np.repeat(np.array([[4], [2], [-1], [-4]], np.float32), 30, axis=1),
    "blob along the border": np.pad(np.full((20, 30), -4, np.float32), 2, constant_values=4),
    "checkerboard": np.where(np.indices((9, 11)).sum(0) % 2, 2, -3).astype(np.float32),
    "barely positive beside extremes": column(1e-30, -3e38, 1e-45, 3e38, -1e-45),
    **corners(positive=True),
    **corners(positive=False),
}


@pytest.mark.parametrize("logits", EDGE_CASES.values(), ids=EDGE_CASES.keys())
def test_edge_cases_keep_their_shape_and_signs(logits: Logits) -> None:
    blob = encode_label(logits)
    decoded = decode_label(blob)
    np.testing.assert_array_equal(decoded > 0, logits > 0)
    assert (decoded != 0).all()
    np.testing.assert_allclose(decoded, decode_by_the_description(blob), rtol=1e-5)


def test_empty_mask_takes_a_dozen_bytes() -> None:
    assert len(encode_label(np.full((193, 256), -8, np.float32))) <= 12


def test_logits_are_not_changed_by_encoding() -> None:
    logits = smooth(3, 20, 30, 2.0)
    before = logits.copy()
    encode_label(logits)
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("shape", [(257, 10), (10, 257), (0, 5), (5, 0)])
def test_grid_of_another_model_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=f"not {shape[0]} x {shape[1]}"):
        encode_label(np.zeros(shape, np.float32))


@pytest.fixture(scope="module", params=["blobs", "all positive", "all negative"])
def blob(request: pytest.FixtureRequest) -> bytes:
    """A blob of a 49 x 64 grid."""
    logits = {
        "blobs": smooth(4, 49, 64, 4.0, 0.5) * 9,
        "all positive": EDGE_CASES["all positive"],
        "all negative": EDGE_CASES["all negative"],
    }
    return encode_label(logits[request.param])


def test_truncated_blob_is_an_error_at_every_length(blob: bytes) -> None:
    for length in range(len(blob)):
        with pytest.raises(ShardError, match=f"blob of {length} bytes does not decode"):
            decode_label(blob[:length])


def test_blob_with_bytes_after_its_end_is_an_error(blob: bytes) -> None:
    with pytest.raises(ShardError, match="does not decode"):
        decode_label(blob + b"\0")


def test_empty_file_is_an_error() -> None:
    with pytest.raises(ShardError, match="blob of 0 bytes"):
        decode_label(b"")


def test_flipped_bits_give_an_error_or_logits_of_the_shape_that_the_header_says(blob: bytes) -> None:
    outcomes = set()
    for position in range(len(blob)):
        for mask in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(blob)
            damaged[position] ^= mask
            try:
                logits = decode_label(bytes(damaged))
            except ShardError:
                outcomes.add("refused")
                continue
            outcomes.add("decoded")
            assert logits.shape == (damaged[0] + 1, damaged[1] + 1)
            assert logits.dtype == np.float32
            assert np.isfinite(logits).all()
    assert "refused" in outcomes


@given(st.binary(max_size=60))
def test_noise_is_an_error_or_decodes_to_a_grid(noise: bytes) -> None:
    try:
        logits = decode_label(noise)
    except ShardError:
        return
    assert logits.shape == (noise[0] + 1, noise[1] + 1)


def test_stream_that_inflates_to_far_more_than_the_box_is_refused_early() -> None:
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    stream = bomb.compress(bytes(1 << 24)) + bomb.flush()
    with pytest.raises(ShardError, match="cut short or too long"):
        decode_label(HEADER.pack(9, 9, 0, 0, 9, 9, 1.0, 8) + stream)


@pytest.mark.parametrize(("codes", "steps"), [(b"\1" * 1, 8), (b"\1" * 99, 8), (b"\1" * 101, 8), (b"\x09" * 100, 8)])
def test_wrong_number_of_magnitudes_or_codes_beyond_the_scale_are_refused(codes: bytes, steps: int) -> None:
    chequered = np.indices((10, 10)).sum(0) % 2
    rows = np.vstack([chequered[:1], chequered[1:] ^ chequered[:-1]])
    assert all((a ^ b).all() for a, b in pairwise(chequered))
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = stream.compress(np.packbits(rows.astype(np.uint8)).tobytes() + codes) + stream.flush()
    with pytest.raises(ShardError, match="does not decode"):
        decode_label(HEADER.pack(9, 9, 0, 0, 9, 9, 1.0, steps) + data)
    good = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = good.compress(np.packbits(rows.astype(np.uint8)).tobytes() + b"\1" * 100) + good.flush()
    np.testing.assert_array_equal(decode_label(HEADER.pack(9, 9, 0, 0, 9, 9, 1.0, steps) + data) > 0, chequered)


def test_steps_leave_room_for_a_sign_and_the_far_cells_in_a_byte() -> None:
    specks = np.where((np.indices((64, 64)) % 3 == 1).all(0), 2.0, -2.0).astype(np.float32)
    assert encode_label(specks)[8] == 127
