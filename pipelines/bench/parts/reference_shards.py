"""Pseudo-labels as the method's published code stores and loads them: what the shard set is measured against.

An image has two tars. The first holds ``metadata.csv``, a line per mask, and for each mask an 8-bit PNG of sigmoid(s);
the second an 8-bit PNG of sigmoid(r), the refined mask. A sample needs up to 30 of an image's masks; the loader opens
both tars, decodes every mask of both, and picks then. ``load_smart`` is the best that can be made of the same files: it
knows where each PNG lies, and decodes with OpenCV what is picked.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]
COLUMNS = ("id", "area", "bbox_x0", "bbox_y0", "bbox_w", "bbox_h", "point_input_x", "point_input_y", "predicted_iou",
           "stability_score", "crop_box_x0", "crop_box_y0", "crop_box_w", "crop_box_h")  # fmt: skip


def write_image(folder: Path, name: str, s: Floats, r: Floats, rows: Sequence[Sequence[Any]]) -> int:
    """Write an image's masks, probabilities float32 (K, h, w), and refined masks; return the bytes of both tars.

    ``rows`` are the values of ``COLUMNS`` for each mask.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    members = [("metadata.csv", text.getvalue().encode())]
    members += [(f"{k}.png", _png(mask)) for k, mask in enumerate(s)]
    return _write_tar(folder / f"{name}.tar", members) + _write_tar(
        folder / f"{name}_refined.tar", [(f"{k}.png", _png(mask)) for k, mask in enumerate(r)]
    )


def load(folder: Path, name: str, picked: Sequence[int]) -> tuple[Floats, Floats, list[dict[str, str]]]:
    """Return s and u = |s - r| of the picked masks, float32 (K, h, w), and their metadata."""
    masks, refined, metadata = [], [], []
    with tarfile.open(folder / f"{name}.tar") as tar:
        for member in tar:
            data = _content(tar, member)
            if member.name == "metadata.csv":
                metadata = list(csv.DictReader(io.StringIO(data.decode())))
            else:
                masks.append(np.asarray(Image.open(io.BytesIO(data))))
    with tarfile.open(folder / f"{name}_refined.tar") as tar:
        for member in tar:
            refined.append(np.asarray(Image.open(io.BytesIO(_content(tar, member)))))
    s, r = (_probabilities(np.stack(pngs)[list(picked)]) for pngs in (masks, refined))
    return s, np.abs(s - r), [metadata[k] for k in picked]


@dataclass(frozen=True)
class Index:
    """Where the PNGs of an image's two tars are: for each tar its open file, and offset and size of each mask."""

    files: tuple[int, int]
    extents: tuple[list[tuple[int, int]], list[tuple[int, int]]]


def index_image(folder: Path, name: str) -> Index:
    """Find the PNGs of an image once, before anything is timed."""
    extents = []
    for path in (folder / f"{name}.tar", folder / f"{name}_refined.tar"):
        with tarfile.open(path) as tar:
            extents.append([(m.offset_data, m.size) for m in tar if m.name.endswith(".png")])
    files = [os.open(folder / f"{name}{suffix}.tar", os.O_RDONLY) for suffix in ("", "_refined")]
    return Index((files[0], files[1]), (extents[0], extents[1]))


def load_smart(index: Index, picked: Sequence[int]) -> tuple[Floats, Floats]:
    """Return s and u of the picked masks as ``load`` does, reading and decoding nothing else."""
    s, r = (
        _probabilities(np.stack([_decode(os.pread(file, extents[k][1], extents[k][0])) for k in picked]))
        for file, extents in zip(index.files, index.extents, strict=True)
    )
    return s, np.abs(s - r)


def _probabilities(pngs: npt.NDArray[np.uint8]) -> Floats:
    return pngs.astype(np.float32) / np.float32(255)


def _png(mask: Floats) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.rint(mask * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> int:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.stat().st_size


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, "the tar holds plain files alone"
    return file.read()


def _decode(png: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8)
