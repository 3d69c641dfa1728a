# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""The compiled part of ``shared.codecs.fast``: inflated blobs to codes, 64 cells a word, without the GIL.

Numba compiles it at its first call; ``shared.kernel_compiler`` says where the result is kept.
"""

from __future__ import annotations

import numpy as np

from sum_factory.shared.codecs.label import LARGEST_SIDE, MOST_STEPS
from sum_factory.shared.codecs.uncertainty import STEPS
from sum_factory.shared.kernel_compiler import kernel_compiler

compiled = kernel_compiler(nogil=True, boundscheck=False)

SOUND = -1
WORDS = LARGEST_SIDE // 64
_LEVEL = 10
U = np.uint64
_ALL, _BYTE, _ONE, _TOP = U(0xFFFFFFFFFFFFFFFF), U(0xFF), U(1), U(63)
# each byte of signs as eight cells of 0 or 255
_CELLS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1) * np.uint8(255)


@compiled
def _read_words(content, start, count, words):
    """Read ``count`` bytes as words, the first byte highest, and two words of 0 behind them."""
    whole = count >> 3
    for i in range(whole):
        at = start + (i << 3)
        words[i] = (
            (U(content[at]) << U(56)) | (U(content[at + 1]) << U(48))
            | (U(content[at + 2]) << U(40)) | (U(content[at + 3]) << U(32))
            | (U(content[at + 4]) << U(24)) | (U(content[at + 5]) << U(16))
            | (U(content[at + 6]) << U(8)) | U(content[at + 7])
        )  # fmt: skip
    words[whole] = words[whole + 1] = words[whole + 2] = U(0)
    for j in range(count & 7):
        words[whole] |= U(content[start + (whole << 3) + j]) << U(56 - 8 * j)


@compiled
def _read_bits(content, start, height, width, words, inside, bits):
    """Undo ``pack_bits`` for a box: ``bits`` (h, WORDS), the leftmost cell highest. Return the words of a row.

    ``inside`` becomes the words of a row all of whose cells are set.
    """
    _read_words(content, start, (height * width + 7) >> 3, words)
    across = (width + 63) >> 6
    for j in range(across):
        inside[j] = _ALL
    if width & 63:
        inside[across - 1] = _ALL << U(64 - (width & 63))
    for y in range(height):
        for j in range(across):
            at = y * width + (j << 6)
            shift = U(at & 63)
            word = words[at >> 6]
            if shift:
                word = (word << shift) | (words[(at >> 6) + 1] >> (U(64) - shift))
            word &= inside[j]
            bits[y, j] = word ^ bits[y - 1, j] if y > 0 else word
    return across


@compiled
def _widen(row, across, mask, flip, out):
    """Set in ``out`` the cells of ``row`` (or with ``flip`` those not in it) and their neighbours to both sides."""
    before = U(0)
    word = (row[0] ^ flip) & mask[0]
    for j in range(across):
        after = (row[j + 1] ^ flip) & mask[j + 1] if j + 1 < across else U(0)
        out[j] = word | (word >> _ONE) | (before << _TOP) | (word << _ONE) | (after >> _TOP)
        before, word = word, after


@compiled
def _header_fits(head, rows, columns):
    """Whether a box lies in its grid, and the grid in (rows, columns)."""
    last_row, last_column, top, left, bottom, right = head[0], head[1], head[2], head[3], head[4], head[5]
    fits = last_row < rows and last_column < columns
    return fits and top <= bottom and bottom <= last_row and left <= right and right <= last_column


@compiled
def label_codes(content, starts, heads, out):
    """Write the codes of K labels to ``out``, uint8 (K, h, w); return the first that is damaged, or ``SOUND``.

    ``content`` uint8 (N,) holds their inflated streams, from ``starts`` (K + 1) each; ``heads`` int64 (K, 7) the six
    bytes of each header, and the steps.
    """
    words = np.empty(LARGEST_SIDE * WORDS + 3, np.uint64)
    bits = np.empty((LARGEST_SIDE, WORDS), np.uint64)
    near_set, near_unset = np.empty_like(bits), np.empty_like(bits)
    inside = np.empty(WORDS, np.uint64)
    codes = np.empty(MOST_STEPS, np.uint8)
    for k in range(len(out)):
        head, grid = heads[k], out[k]
        grid[:, :] = 0
        at, end, steps = starts[k], starts[k + 1], head[6]
        if not _header_fits(head, grid.shape[0], grid.shape[1]) or steps > MOST_STEPS:
            return k
        if steps == 0:
            if at != end:
                return k
            continue
        height, width = head[4] - head[2] + 1, head[5] - head[3] + 1
        packed = (height * width + 7) >> 3
        if end - at < packed:
            return k
        across = _read_bits(content, at, height, width, words, inside, bits)
        for q in range(steps):
            codes[q] = (2 * q + 1) * MOST_STEPS // (2 * steps)
        for y in range(height):
            _widen(bits[y], across, inside, U(0), near_set[y])
            _widen(bits[y], across, inside, _ALL, near_unset[y])
        at += packed
        for y in range(height):
            above, below = max(y - 1, 0), min(y + 1, height - 1)
            for j in range(across):
                word = bits[y, j]
                band = near_set[above, j] | near_set[y, j] | near_set[below, j]
                band &= (near_unset[above, j] | near_unset[y, j] | near_unset[below, j]) & inside[j]
                if word | band:
                    left = head[3] + (j << 6)
                    at = _write_cells(word, band, content, at, end, codes, steps, grid[head[2] + y], left, head[5] + 1)
                    if at < 0:
                        return k
        if at != end:
            return k
    return SOUND


@compiled
def _write_cells(word, band, content, at, end, codes, steps, row, left, right):
    """Write 64 cells of a label from ``left`` on, before ``right``; return where the next magnitude is, or -1."""
    for byte in range(8):
        shift = U(56 - 8 * byte)
        signs, doubtful = (word >> shift) & _BYTE, (band >> shift) & _BYTE
        x = left + 8 * byte
        if signs:
            for i in range(min(8, right - x)):
                row[x + i] = _CELLS[signs, i]
        if doubtful:
            for i in range(8):
                bit = U(7 - i)
                if (doubtful >> bit) & _ONE:
                    if at >= end or content[at] >= steps:
                        return -1
                    code = codes[content[at]]
                    row[x + i] = 128 + code if (signs >> bit) & _ONE else 127 - code
                    at += 1
    return at


@compiled
def map_codes(content, starts, heads, out):
    """Write the codes of K maps to ``out``, uint8 (K, h, w); return the first that is damaged, or ``SOUND``.

    As ``label_codes``; ``heads`` is int64 (K, 6).
    """
    words = np.empty(LARGEST_SIDE * WORDS + 3, np.uint64)
    bits = np.empty((LARGEST_SIDE, WORDS), np.uint64)
    inside = np.empty(WORDS, np.uint64)
    for k in range(len(out)):
        head, grid = heads[k], out[k]
        grid[:, :] = 0
        at, end = starts[k], starts[k + 1]
        if not _header_fits(head, grid.shape[0], grid.shape[1]):
            return k
        if at == end:
            continue
        height, width = head[4] - head[2] + 1, head[5] - head[3] + 1
        packed = (height * width + 7) >> 3
        if end - at < packed:
            return k
        across = _read_bits(content, at, height, width, words, inside, bits)
        at += packed
        for y in range(height):
            for j in range(across):
                if bits[y, j]:
                    at = _write_levels(bits[y, j], content, at, end, grid[head[2] + y], head[3] + (j << 6))
                    if at < 0:
                        return k
        if at != end:
            return k
    return SOUND


@compiled
def _write_levels(word, content, at, end, row, left):
    """Write 64 cells of a map from ``left`` on; return where the next level is, or -1."""
    for byte in range(8):
        doubtful = (word >> U(56 - 8 * byte)) & _BYTE
        if doubtful:
            for i in range(8):
                if (doubtful >> U(7 - i)) & _ONE:
                    if at >= end or content[at] >= STEPS:
                        return -1
                    row[left + 8 * byte + i] = (content[at] + 1) * _LEVEL
                    at += 1
    return at
