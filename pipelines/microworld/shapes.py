"""Outlines and thin structures, drawn as uint8 masks of 0 and 1 on the scene's canvas.

Every function takes the canvas side in pixels, a centre ``(x, y)`` and a radius in pixels, and a random
generator; it returns a (side, side) uint8 mask. Thin structures are as wide as one of the ``widths``
in pixels that it is given, and drawn without anti-aliasing, so that masks are exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.uint8]
Point = tuple[float, float]

Widths = Sequence[int]


def empty(side: int) -> Mask:
    """Return an all-zero mask."""
    return np.zeros((side, side), np.uint8)


def fill(side: int, points: npt.NDArray[np.float64]) -> Mask:
    """Fill the closed polygon ``points`` (N, 2) in (x, y) pixels."""
    mask = empty(side)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 1)
    return mask


def rotate(points: npt.NDArray[np.float64], centre: Point, angle: float) -> npt.NDArray[np.float64]:
    """Rotate ``points`` (N, 2), given around the origin, by ``angle`` radians and move them to ``centre``."""
    cos, sin = np.cos(angle), np.sin(angle)
    turned = points @ np.array([[cos, sin], [-sin, cos]])
    return np.asarray(turned + np.asarray(centre), dtype=np.float64)


def body(side: int, centre: Point, radius: float, rng: np.random.Generator) -> Mask:
    """Draw a solid outline: blob, polygon, star, ellipse, box or gear."""
    kind = int(rng.integers(6))
    angles = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    if kind == 0:  # blob: a few low Fourier terms
        radii = np.ones_like(angles)
        for order in range(2, 6):
            radii += rng.uniform(0.04, 0.16) * np.cos(order * angles + rng.uniform(0, 2 * np.pi))
    elif kind == 1:  # polygon
        angles = np.sort(np.arange(n := int(rng.integers(3, 8))) + rng.uniform(-0.25, 0.25, n)) * 2 * np.pi / n
        radii = rng.uniform(0.85, 1.15, n)
    elif kind == 2:  # star
        n = int(rng.integers(4, 9))
        angles = np.arange(2 * n) * np.pi / n
        radii = np.where(np.arange(2 * n) % 2 == 0, 1.15, rng.uniform(0.45, 0.75))
    elif kind == 3:  # ellipse
        radii = np.ones_like(angles)
    elif kind == 4:  # superellipse: a box with rounded corners
        power = rng.uniform(3, 8)
        radii = (np.abs(np.cos(angles)) ** power + np.abs(np.sin(angles)) ** power) ** (-1 / power)
    else:  # gear: a fine wave that coarse masks smooth away
        radii = 1 + rng.uniform(0.06, 0.14) * np.sign(np.cos(rng.integers(8, 17) * angles))
    stretch = np.array([1.0, rng.uniform(0.55, 1.0)])
    points = radius * radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1) * stretch
    return fill(side, rotate(points, centre, rng.uniform(0, 2 * np.pi)))


def rods(side: int, centre: Point, radius: float, widths: Widths, rng: np.random.Generator) -> Mask:
    """Draw 1 to 5 straight rods from near the centre outwards, some with a knob at the tip."""
    mask = empty(side)
    for _ in range(int(rng.integers(1, 6))):
        angle = rng.uniform(0, 2 * np.pi)
        tip = np.asarray(centre) + radius * rng.uniform(1.3, 2.1) * np.array([np.cos(angle), np.sin(angle)])
        _line(mask, np.asarray(centre), tip, int(rng.choice(widths)))
        if rng.random() < 0.3:
            cv2.circle(mask, _pixel(tip), int(rng.integers(2, 5)), 1, -1)
    return mask


def tendrils(side: int, centre: Point, radius: float, widths: Widths, rng: np.random.Generator) -> Mask:
    """Draw 1 to 3 wavy threads from the centre outwards."""
    mask = empty(side)
    for _ in range(int(rng.integers(1, 4))):
        along = np.linspace(0, radius * rng.uniform(1.5, 2.3), 40)
        wave = rng.uniform(2, 7) * np.sin(along / rng.uniform(4, 9) + rng.uniform(0, 2 * np.pi))
        points = rotate(np.stack([along, wave], 1), centre, rng.uniform(0, 2 * np.pi))
        cv2.polylines(mask, [np.rint(points).astype(np.int32)], False, 1, int(rng.choice(widths)))
    return mask


def ring(side: int, centre: Point, radius: float, widths: Widths, rng: np.random.Generator) -> Mask:
    """Draw one thin ring, or a handle that is centred on the rim of the object."""
    mask = empty(side)
    angle = rng.uniform(0, 2 * np.pi)
    rim = np.asarray(centre) + radius * rng.uniform(0.8, 1.1) * np.array([np.cos(angle), np.sin(angle)])
    axes = (int(radius * rng.uniform(0.35, 0.8)) + 3, int(radius * rng.uniform(0.35, 0.8)) + 3)
    cv2.ellipse(mask, _pixel(rim), axes, float(rng.uniform(0, 180)), 0, 360, 1, int(rng.choice(widths)))
    return mask


def lattice(side: int, centre: Point, radius: float, widths: Widths, rng: np.random.Generator) -> Mask:
    """Draw a rotated panel of crossing bars, 6 to 10 px apart if bars are 2 px wide on average, else so much more."""
    mask = empty(side)
    extra = float(np.mean(widths)) - 2
    angle, step, width = rng.uniform(0, np.pi), rng.uniform(6, 10) + extra, int(rng.choice(widths))
    half_width, half_height = radius * rng.uniform(0.5, 1.1), radius * rng.uniform(0.5, 1.1)
    columns = np.arange(-half_width, half_width + 1e-6, step)
    rows = np.arange(-half_height, half_height + 1e-6, step)
    segments = [((x, rows[0]), (x, rows[-1])) for x in columns]
    if rng.random() < 0.7:
        segments += [((columns[0], y), (columns[-1], y)) for y in rows]
    else:
        segments += [((columns[0], y), (columns[-1], y)) for y in (rows[0], rows[-1])]
    for start, end in segments:
        ends = rotate(np.array([start, end]), centre, angle)
        _line(mask, ends[0], ends[1], width)
    return mask


def wheel(side: int, centre: Point, radius: float, widths: Widths, rng: np.random.Generator) -> Mask:
    """Draw a thin ring with spokes."""
    mask = empty(side)
    width = int(rng.choice(widths))
    cv2.circle(mask, _pixel(np.asarray(centre)), int(radius), 1, width)
    phase, n = rng.uniform(0, 2 * np.pi), int(rng.integers(3, 9))
    for angle in phase + np.arange(n) * 2 * np.pi / n:
        tip = np.asarray(centre) + radius * np.array([np.cos(angle), np.sin(angle)])
        _line(mask, np.asarray(centre), tip, width)
    return mask


def slots(side: int, centre: Point, radius: float, rng: np.random.Generator) -> Mask:
    """Draw parallel slits, to be cut out of a body: a grille."""
    mask = empty(side)
    angle, step = rng.uniform(0, np.pi), rng.uniform(5, 9)
    half_length, width = radius * rng.uniform(0.25, 0.6), int(rng.integers(1, 4))
    for offset in np.arange(-radius * 0.5, radius * 0.5, step):
        ends = rotate(np.array([(offset, -half_length), (offset, half_length)]), centre, angle)
        _line(mask, ends[0], ends[1], width)
    return mask


def patch(side: int, centre: Point, radius: float, rng: np.random.Generator) -> Mask:
    """Draw a region for a part on a body: disc, band, cap, sector or small body."""
    kind = int(rng.integers(5))
    angle = rng.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    if kind == 0:
        mask = empty(side)
        spot = np.asarray(centre) + direction * radius * rng.uniform(0, 0.5)
        cv2.circle(mask, _pixel(spot), int(radius * rng.uniform(0.25, 0.5)) + 1, 1, -1)
        return mask
    if kind == 4:
        spot = np.asarray(centre) + direction * radius * rng.uniform(0, 0.45)
        return body(side, (float(spot[0]), float(spot[1])), radius * rng.uniform(0.3, 0.55), rng)
    far = 3 * radius
    if kind == 1:  # band across the body
        low = radius * rng.uniform(-0.5, 0.2)
        high = low + radius * rng.uniform(0.25, 0.5)
    else:  # cap: everything beyond a chord
        low, high = radius * rng.uniform(0.0, 0.45), far
    corners = np.array([(low, -far), (high, -far), (high, far), (low, far)])
    if kind == 3:  # sector
        spread = rng.uniform(0.3, 0.8)
        corners = np.array([(0, 0), (far, -far * spread), (far, far * spread)])
    return fill(side, rotate(corners, centre, angle))


APPENDAGES = (rods, rods, tendrils, ring, lattice)
"""Thin structures that hang on a body."""
THIN_OBJECTS = (lattice, wheel, rods, lattice)
"""Objects that have no body at all."""


def _line(mask: Mask, start: npt.NDArray[np.float64], end: npt.NDArray[np.float64], width: int) -> None:
    cv2.line(mask, _pixel(start), _pixel(end), 1, width)


def _pixel(point: npt.NDArray[np.float64]) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
