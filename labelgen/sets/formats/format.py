"""What a format of ``labelgen export`` has to be: a module with a ``FORMAT``, whose writer takes photo by photo."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from sum_factory.labelgen.sets.export_settings import ExportFormat, ExportSettings, Photos, Shapes
from sum_factory.labelgen.sets.formats.polygons import Part, parts_of
from sum_factory.shared.errors import SettingsError
from sum_factory.shared.shards.dataset import Layer

LABEL = "object"
"""What masks are called where software wants a class: SAM's have none."""
NO_PIXEL = "masks without a pixel at the size of their photo are left out"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ExportedMask:
    """A mask, bool (H, W) at the size of its photo, and its row of the manifest. ``index`` is its number in the photo,
    from 0."""

    index: int
    pixels: Mask
    row: Mapping[str, Any]
    tolerance: float

    @cached_property
    def parts(self) -> list[Part]:
        """The outlines of its parts, with those of their holes, as coarse as was asked for."""
        return parts_of(self.pixels, self.tolerance)

    @property
    def scores(self) -> dict[str, float]:
        """``predicted_iou`` and ``stability_score``; a mask that was imported without has none."""
        told = {"predicted_iou": self.row["predicted_iou"], "stability_score": self.row["stability"]}
        return {name: score for name, score in told.items() if score is not None}

    @property
    def crop(self) -> list[int]:
        """The crop in which it was found: x, y, width, height."""
        x0, y0, x1, y1 = (self.row[name] for name in ("crop_x0", "crop_y0", "crop_x1", "crop_y1"))
        return [x0, y0, x1 - x0, y1 - y0]


@dataclass(frozen=True)
class PhotoCopy:
    """The file of a photo as other software reads it, and what its name ends with."""

    data: bytes
    suffix: str


@dataclass(frozen=True)
class ExportedImage:
    """A photo that was labelled, ``number`` from 1 on.

    ``name`` is what a file of annotations calls it, relative to ``Head.root``; ``stem`` a path that no other photo has,
    without suffix, for formats that write a folder; ``source`` where the photo lies. ``masks`` are decoded one at a
    time, once. ``copy`` reads the photo; None if photos are not asked for.
    """

    number: int
    key: str
    name: str
    stem: str
    source: str
    height: int
    width: int
    masks: Iterator[ExportedMask]
    copy: Callable[[], PhotoCopy] | None


@dataclass(frozen=True)
class Head:
    """What is the same for all of an export. ``shapes`` are those that it has; ``root`` is the folder that names are
    relative to; ``stack`` closes what a writer opens, whatever happens; ``lost`` counts what the format cannot hold, by
    words that say it."""

    settings: ExportSettings
    shapes: Shapes
    root: str
    layer: Layer
    stack: ExitStack
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def made_by(self) -> str:
        """Which SAM the masks are of."""
        sam = self.layer.weights["sam"]
        return f"SAM {sam['model_type']} {sam['sha256'][:12]}"


class Writer(Protocol):
    """Writes photos with their masks."""

    def add(self, image: ExportedImage) -> None:
        """Write a photo and its masks. Raises ``SumError``, and ``OSError`` if it cannot be written."""

    def close(self) -> None:
        """Write what comes after all photos."""


@dataclass(frozen=True)
class Format:
    """How masks are written for one kind of software.

    Of those that write a file, ``file`` opens a writer into it; of those that write a folder, ``folder`` one into that.
    ``shapes`` are those that it can hold, the first by default.
    """

    shapes: tuple[Shapes, ...]
    file: Callable[[BinaryIO, Head], Writer] | None = None
    folder: Callable[[Path, Head], Writer] | None = None
    suffix: str = ""
    """What the names of its files end with, where there are several."""
    photos: Photos = "none"
    """Whether photos go into its folder by default."""
    is_split: bool = False
    """Whether its folder has files of many photos."""


def format_of(name: ExportFormat) -> Format:
    """Return the format of this name."""
    modules = {"hf": "hugging_face", "label-studio": "label_studio"}
    found = import_module(f"sum_factory.labelgen.sets.formats.{modules.get(name, name)}").FORMAT
    assert isinstance(found, Format)
    return found


def require_possible(settings: ExportSettings, format: Format) -> None:
    """Raise ``SettingsError`` for what the format cannot do."""
    name = settings.format
    if settings.shapes is not None and settings.shapes not in format.shapes:
        raise SettingsError(f"{name} holds {format.shapes[0]} alone; leave --shapes out, or give another --format")
    if not 0 <= settings.tolerance < 1000:
        raise SettingsError(f"a tolerance of {settings.tolerance:g} pixels; expected 0 or more, such as 0.5")
    if settings.photos == "copy" and format.folder is None:
        raise SettingsError(f"{name} is a file of masks alone, and names where photos lie; leave --photos out")
    if settings.max_images_per_file is not None:
        if settings.max_images_per_file < 1:
            raise SettingsError("--max-images-per-file: expected 1 or more")
        if format.folder is not None and not format.is_split:
            raise SettingsError(f"{name} has files of a single photo; leave --max-images-per-file out")


def write_new(folder: Path, name: str, data: bytes) -> None:
    """Write a file below a folder, with the folders that its name tells. Raises ``OSError``, also if it is there."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
