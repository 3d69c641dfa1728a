"""Masks as Label Studio's brush has them: runs of the bytes of an RGBA picture, packed to bits.

    32 bits         how many values there are: 4 per pixel
    5 bits          bits of a value, less 1
    4 times 4 bits  how many bits the length of a run takes, less 1, of four classes
    then, until there are enough values:
    1 bit           1: one value that is repeated; 0: as many values as follow
    2 bits          the class
    by the class    the length, less 1
    value(s)

A pixel belongs to the mask where its fourth byte, the opacity, is not 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sum_factory.shared.errors import InputError

CHANNELS = 4
VALUE_BITS = 8
CLASS_BITS = (3, 6, 11, 16)
"""Bits of the length of a run in each class, as they are written here."""
Mask = npt.NDArray[np.bool_]


def encode_brush(mask: Mask) -> list[int]:
    """Return the bytes of a mask, bool (H, W)."""
    flat = mask.ravel()
    starts = np.flatnonzero(np.diff(flat, prepend=~flat[:1]))
    lengths = CHANNELS * np.diff(starts, append=len(flat))
    head = f"{CHANNELS * len(flat):032b}{VALUE_BITS - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in CLASS_BITS)
    runs = (_run(int(length), bool(flat[start])) for start, length in zip(starts, lengths, strict=True))
    bits = np.frombuffer((head + "".join(runs)).encode(), np.uint8) - ord("0")
    return np.packbits(bits).tolist()


def _run(length: int, value: bool) -> str:
    longest = 1 << CLASS_BITS[-1]
    written = ""
    for start in range(0, length, longest):
        left = min(longest, length - start) - 1
        kind = next(number for number, bits in enumerate(CLASS_BITS) if left < 1 << bits)
        written += f"1{kind:02b}{left:0{CLASS_BITS[kind]}b}{255 * value:0{VALUE_BITS}b}"
    return written


def decode_brush(packed: Any, height: int, width: int) -> Mask:
    """Return the mask of packed bytes, bool (height, width). Raises ``InputError`` if they are not of such a mask."""
    if not isinstance(packed, Sequence) or not all(type(each) is int and 0 <= each < 256 for each in packed):
        raise InputError("has an rle that is no list of bytes")
    stream = _Bits("".join(f"{each:08b}" for each in packed))
    count, value_bits = stream.take(32), stream.take(5) + 1
    sizes = [stream.take(4) + 1 for _ in range(4)]
    if count != height * width * CHANNELS:
        raise InputError(f"has an rle of {count} values, and {width} x {height} pixels have {CHANNELS} each")
    values = np.zeros(count, bool)
    at = 0
    while at < count:
        is_run = stream.take(1)
        length = stream.take(sizes[stream.take(2)]) + 1
        if at + length > count:
            raise InputError("has an rle that is longer than its size")
        values[at : at + length] = (
            stream.take(value_bits) if is_run else [stream.take(value_bits) for _ in range(length)]
        )
        at += length
    return values.reshape(height, width, CHANNELS)[..., -1]


class _Bits:
    """A text of bits, read from its beginning."""

    def __init__(self, bits: str) -> None:
        self.bits, self.at = bits, 0

    def take(self, count: int) -> int:
        """Return the next bits as a number. Raises ``InputError`` at the end."""
        if self.at + count > len(self.bits):
            raise InputError("has an rle that ends too soon")
        self.at += count
        return int(self.bits[self.at - count : self.at], 2)
