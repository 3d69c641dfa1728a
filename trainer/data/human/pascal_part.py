"""Pascal-Part: a MATLAB file per photo, with the mask of each object and of each of its parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sum_factory.shared.errors import InputError
from sum_factory.trainer.data.human.choice import Choice, require_some
from sum_factory.trainer.data.human.fitting import Fit, Orientation, ToFit, fit_all, require_fitting
from sum_factory.trainer.data.human.headers import Header, read_headers
from sum_factory.trainer.data.human.photo_places import PhotoPlaces
from sum_factory.trainer.data.human.photos import Alpha, load_photo
from sum_factory.trainer.data.human.problems import MISSING, Problems, Skip
from sum_factory.trainer.data.human.samples import HumanSample, Masks, stacked

What = Literal["objects", "parts"]


@dataclass(frozen=True)
class _Photo:
    file: Path
    path: Path
    header: Header
    fit: Fit


@dataclass(frozen=True)
class PascalPart:
    """Files below ``annotations``, each of the JPEG photo of its name below ``images``; ``what`` are the masks."""

    annotations: Path
    images: Path
    task: int
    what: What = "parts"
    choice: Choice = field(default_factory=Choice)
    orientation: Orientation = "auto"
    photo_alpha: Alpha = "white"
    skip: Skip = "nothing"

    @cached_property
    def opened(self) -> tuple[list[_Photo], list[str]]:
        """The photos, sorted by name, and what to say of them. Raises ``InputError`` for what cannot be used."""
        if not self.annotations.is_dir():
            raise InputError(f"{self.annotations}: no such folder; expected the MATLAB files of Pascal-Part")
        files = sorted(path for path in self.annotations.glob("*.mat") if not path.name.startswith("."))
        stems = [path.stem for path in files]
        files = [files[place] for place in self.choice.of(stems, stems)]
        require_some((path.name for path in files), str(self.annotations))
        places = PhotoPlaces(self.images)
        problems = Problems(str(self.annotations), "photos", self.skip)
        there = [(file, path) for file in files if (path := places.find(f"{file.stem}.jpg")) is not None]
        if len(there) < len(files):
            missing = next(file for file in files if places.find(f"{file.stem}.jpg") is None)
            problems.add(MISSING, f"{self.images / missing.stem}.jpg", len(files) - len(there))
        readable = []
        for (file, path), header in zip(there, read_headers([path for _, path in there]), strict=True):
            if isinstance(header, str):
                problems.add("cannot be read", header)
            else:
                readable.append((file, path, header))
        cases = [ToFit(header, None, str(path), str(file)) for file, path, header in readable]
        fits, fitted = fit_all(cases, self.orientation, problems)
        photos = [_Photo(*each, fit) for each, fit in zip(readable, fits, strict=True) if fit is not None]
        said = [*problems.settle(len(files)), *fitted]
        require_some((photo.path.name for photo in photos), str(self.annotations))
        return photos, said

    @cached_property
    def keys(self) -> list[str]:
        """The names of the photos without suffix, sorted."""
        return [photo.file.stem for photo in self.opened[0]]

    @property
    def mask_count(self) -> None:
        """Not known before all files are read."""
        return None

    @property
    def findings(self) -> list[str]:
        """What was found and decided, a sentence each."""
        return [f"masks are {self.what}", *self.opened[1]]

    def load(self, index: int) -> HumanSample:
        """Read one sample; masks come in the order of the file."""
        photo = self.opened[0][index]
        image = load_photo(photo.path, photo.header, photo.fit, self.photo_alpha)
        found = read_masks(photo.file, self.what)
        for mask in found:
            require_fitting(mask, image, photo.file)

        def masks_at(numbers: Sequence[int]) -> Masks:
            return stacked([found[number] for number in numbers], image)

        return HumanSample(photo.file.stem, image, self.task, len(found), masks_at)


def read_masks(path: Path, what: What) -> list[npt.NDArray[np.bool_]]:
    """Return the masks of the objects of a file, or of their parts, each bool (H, W). Raises ``InputError``."""
    from scipy.io import loadmat  # takes a while

    try:
        objects = loadmat(str(path))["anno"][0, 0]["objects"].ravel()
        return [np.asarray(each["mask"]).astype(bool) for each in _of(objects, what)]
    except Exception as error:  # on damaged bytes SciPy raises whatever it runs into
        raise InputError(
            f"{path}: expected a MATLAB file of Pascal-Part, with objects and their parts in `anno` ({error})"
        ) from error


def _of(objects: Any, what: What) -> Iterator[Any]:
    for each in objects:
        yield from [each] if what == "objects" else np.asarray(each["parts"]).ravel()
