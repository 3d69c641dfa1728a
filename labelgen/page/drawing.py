"""Colours of masks and of doubt, and pictures as the data URLs of a page."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import numpy.typing as npt

from sum_factory.shared.images import RgbImage

SHOWN_SIDE = 420
"""Longer side in pixels of a picture on a page."""
DARKENED = 0.35
"""What is left of a photo's brightness under a heat map."""
HUE_STEP = 67
"""Half degrees of hue from the colour of one mask to that of the next."""


def colour_of(number: int) -> npt.NDArray[np.float32]:
    """Return a bright colour, float32 (3,); neighbours in the order differ in hue."""
    hue = np.uint8((number * HUE_STEP) % 180)
    rgb = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)
    return np.asarray(rgb[0, 0], np.float32)


def doubt_colours(u: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return u in [0, 1], float32 (H, W), in colours from dark to bright, RGBA (H, W, 4): opaque from 0.5 on."""
    colours = cv2.applyColorMap(np.rint(255 * u).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = np.rint(255 * np.minimum(1, 2 * u)).astype(np.uint8)
    return np.dstack([colours, opacity])


def heat_map(photo: RgbImage, u: npt.NDArray[np.float32]) -> RgbImage:
    """Draw u in [0, 1], float32 (H, W), in colours from dark to bright over a darkened photo."""
    colours = doubt_colours(u)[..., :3]
    weight = np.minimum(1, 2 * u)[..., None]
    return np.asarray(np.rint(DARKENED * photo * (1 - weight) + colours * weight), np.uint8)


def jpeg_url(image: RgbImage, side: int = SHOWN_SIDE) -> str:
    """Return the image as a data URL, scaled down to the page."""
    scale = side / max(image.shape[:2])
    if scale < 1:
        image = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    encoded, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
    assert encoded, "a JPEG encoder is part of OpenCV"
    return data_url(data.tobytes(), "image/jpeg")


def data_url(data: bytes, kind: str) -> str:
    """Return what a page has in it instead of a file."""
    return f"data:{kind};base64," + base64.b64encode(data).decode()
