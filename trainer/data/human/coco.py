"""Photos whose masks stand in one file: COCO instances with RLE or polygons, or VIA's regions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sum_factory.shared.annotations.coco_file import (
    CocoFile,
    Record,
    found_categories,
    id_of,
    is_crowd,
    name_of,
    read_annotations,
    with_slashes,
)
from sum_factory.shared.annotations.segmentations import check_segmentations, draw
from sum_factory.shared.errors import InputError
from sum_factory.shared.images import MAX_PIXELS
from sum_factory.shared.names import printable
from sum_factory.trainer.data.human.choice import Choice, require_some, without_suffix
from sum_factory.trainer.data.human.fitting import Fit, Orientation, ToFit, fit_all
from sum_factory.trainer.data.human.headers import Header, Size, read_headers
from sum_factory.trainer.data.human.photo_places import PhotoPlaces
from sum_factory.trainer.data.human.photos import Alpha, load_photo
from sum_factory.trainer.data.human.problems import MISSING, Problems, Skip
from sum_factory.trainer.data.human.samples import HumanSample, Masks, stacked

MOST_EMPTY = 0.5
"""Share of the annotations that may cover nothing: of more, the file is not what it seems."""
MOST_BEYOND = 0.05
"""Share of the polygons that may end beyond their photos, right or below: of more, these are not what was drawn on."""
LEAST_OUTLINES, LEAST_REACH = 20, 0.7
"""Of so many polygons one reaches so far right or down in its photo, or they were drawn on smaller ones."""


@dataclass(frozen=True, slots=True)
class CocoPhoto:
    """A photo that has annotations: its file, its header, the size that they were drawn at, and how these fit."""

    key: str
    path: Path
    header: Header
    drawn: Size
    fit: Fit
    annotations: list[Record]


@dataclass(frozen=True)
class CocoOpened:
    """The photos of a file in its order, and what to say of them."""

    photos: list[CocoPhoto]
    said: list[str]


@dataclass
class _Listed:
    """A photo while its file is being checked."""

    name: str
    entry: Record
    annotations: list[Record]
    path: Path | None = None
    drawn: Size | None = None


@dataclass(frozen=True)
class CocoInstances:
    """``file_name`` is relative to ``images``. Of annotations those of ``categories`` are taken, by default all, but
    those of ``without_categories``.

    Crowds are left out, unless all annotations are crowds, as brushes of some tools write them; and so are photos that
    have no annotation.
    """

    annotations: Path
    images: Path
    task: int
    categories: tuple[int | str, ...] = ()
    choice: Choice = field(default_factory=Choice)
    orientation: Orientation = "auto"
    photo_alpha: Alpha = "white"
    skip: Skip = "nothing"
    without_categories: tuple[int | str, ...] = ()

    @cached_property
    def opened(self) -> CocoOpened:
        """All of the file that is used, checked. Raises ``InputError`` for what cannot be used."""
        file = read_annotations(self.annotations)
        said: list[str] = []
        listed = self._listed(file, said)
        names = [with_slashes(each.name) for each in listed]
        taken = self.choice.of([without_suffix(name) for name in names], names)
        listed = [listed[place] for place in taken]
        require_some((each.name for each in listed), str(self.annotations))
        photos = self._fitted(listed, said)
        photos = self._checked(photos, said)
        require_some((photo.key for photo in photos), str(self.annotations))
        return CocoOpened(photos, said)

    @cached_property
    def keys(self) -> list[str]:
        """The names of the photos without suffix, in the file's order."""
        return [photo.key for photo in self.opened.photos]

    @property
    def mask_count(self) -> int:
        """Masks of all photos."""
        return sum(len(photo.annotations) for photo in self.opened.photos)

    @property
    def findings(self) -> list[str]:
        """What was found and decided, a sentence each."""
        return [f"{self.mask_count / len(self.opened.photos):.1f} masks per photo on average", *self.opened.said]

    def load(self, index: int) -> HumanSample:
        """Read one sample."""
        photo = self.opened.photos[index]
        image = load_photo(photo.path, photo.header, photo.fit, self.photo_alpha)

        def masks_at(numbers: Sequence[int]) -> Masks:
            return stacked([self._decode(photo, photo.annotations[number]) for number in numbers], image)

        return HumanSample(photo.key, image, self.task, len(photo.annotations), masks_at)

    def _decode(self, photo: CocoPhoto, annotation: Record) -> npt.NDArray[Any]:
        width, height = photo.drawn
        try:
            return draw(annotation["segmentation"], height, width)
        except InputError as error:
            raise InputError(f"{self.annotations}: annotation {annotation.get('id')} {error}") from error

    def _listed(self, file: CocoFile, said: list[str]) -> list[_Listed]:
        """Return the images that have annotations of the wanted categories, with these."""
        annotations = file.annotations
        if self.categories:
            chosen = found_categories(file, self.categories, self.annotations)
            annotations = [each for each in annotations if id_of(each.get("category_id")) in chosen]
        if self.without_categories:
            left_out = found_categories(file, self.without_categories, self.annotations)
            annotations = [each for each in annotations if id_of(each.get("category_id")) not in left_out]
        annotations = self._without_crowds(annotations, said)
        problems = Problems(str(self.annotations), "images", self.skip)
        images = self._by_id(file.images, problems)
        by_image: dict[Any, list[Record]] = {}
        strange = []
        known = {id_of(each.get("id")) for each in file.images}
        for each in annotations:
            number = id_of(each.get("image_id"))
            if number in images:
                by_image.setdefault(number, []).append(each)
            elif number not in known:
                strange.append(each)
        said += problems.settle(len(file.images))
        if strange:
            first = f"annotation {strange[0].get('id')} is of image {strange[0].get('image_id')}"
            problems = Problems(str(self.annotations), "annotations", self.skip)
            problems.add("are of images that the file does not list", first, len(strange))
            said += problems.settle(len(annotations))
        return [
            _Listed(name_of(entry) or "", entry, by_image[number])
            for number, entry in images.items()
            if number in by_image
        ]

    def _without_crowds(self, annotations: list[Record], said: list[str]) -> list[Record]:
        """Return the annotations that are no crowds, or all if there are no others."""
        are_crowds = [is_crowd(each) for each in annotations]
        strange = are_crowds.count(None)
        if strange:
            first = annotations[are_crowds.index(None)]
            problems = Problems(str(self.annotations), "annotations", self.skip)
            what = f"annotation {first.get('id')}, {first.get('iscrowd')!r:.40}"
            problems.add("have an iscrowd that is neither 0 nor 1", what, strange)
            said += problems.settle(len(annotations))
        crowds = are_crowds.count(True)
        only_crowds = bool(crowds) and False not in are_crowds
        if only_crowds:
            said.append(f"all {crowds:,} annotations are crowds, and are taken for masks")
        elif crowds:
            said.append(f"left out {crowds:,} crowds")
        return [each for each, crowd in zip(annotations, are_crowds, strict=True) if crowd is only_crowds]

    def _by_id(self, images: list[Record], problems: Problems) -> dict[Any, Record]:
        """Return the images by id: equal entries once, and of an id that means several photos none."""
        found: dict[Any, Record] = {}
        doubled: Counter[Any] = Counter()
        for entry in images:
            number = id_of(entry.get("id"))
            if number is None:
                problems.add("have no id", f"{entry.get('file_name')}")
            elif name_of(entry) is None:
                problems.add("have no file_name", f"image {number}")
            elif number in found and not _is_same(found[number], entry):
                doubled[number] += 1
                first = f"{number} is of {name_of(found[number])} and of {name_of(entry)}"
                first += ", of another size" if name_of(found[number]) == name_of(entry) else ""
                problems.add("have the id of another", first)
            else:
                found[number] = entry
        for number in doubled:
            del found[number]
        return found

    def _fitted(self, listed: list[_Listed], said: list[str]) -> list[CocoPhoto]:
        """Find the photos, and return those whose sizes fit."""
        places = PhotoPlaces(self.images)
        problems = Problems(str(self.annotations), "photos", self.skip)
        found = []
        claimed: dict[Path, str] = {}
        for each in listed:
            try:
                each.path = places.find(each.name)
                each.drawn = _size_of(each.entry)
            except InputError as error:
                problems.add("have a name or size that cannot be", str(error))
                continue
            if each.path is None:
                problems.add(MISSING, f"{self.images / each.name}: missing, but {self.annotations} lists it")
            elif claimed.setdefault(each.path, each.name) != each.name:
                first = f"{each.path} is both {claimed[each.path]} and {each.name}"
                problems.add("would be found in the file of another", first)
            else:
                found.append(each)
        paths = list(dict.fromkeys(each.path for each in found if each.path is not None))
        headers = dict(zip(paths, read_headers(paths), strict=True))
        readable: list[tuple[_Listed, Path, Header]] = []
        for each in found:
            assert each.path is not None, "those that are missing are left out"
            header = headers[each.path]
            if isinstance(header, str):
                problems.add("cannot be read", header)
            else:
                readable.append((each, each.path, header))
        cases = [
            ToFit(header, each.drawn or _drawn_by_rle(each), str(path), f"{self.annotations} says")
            for each, path, header in readable
        ]
        fits, fitted = fit_all(cases, self.orientation, problems)
        said += [*problems.settle(len(listed)), *fitted]
        if places.moved:
            said.append(f"{places.moved:,} photos were found in other folders than their file_name says")
        return [
            CocoPhoto(without_suffix(printable(_shown(each.name, path))), path, header, drawn, fit, each.annotations)
            for (each, path, header), fit, case in zip(readable, fits, cases, strict=True)
            if fit is not None
            for drawn in [case.drawn or (header.size if fit.as_stored else header.upright)]
        ]

    def _checked(self, photos: list[CocoPhoto], said: list[str]) -> list[CocoPhoto]:
        """Return the photos with those annotations that can be decoded."""
        flat = [each for photo in photos for each in photo.annotations]
        sizes = np.repeat(
            np.array([(photo.drawn[1], photo.drawn[0]) for photo in photos], np.int64).reshape(-1, 2),
            [len(photo.annotations) for photo in photos],
            axis=0,
        )
        checked = check_segmentations([each.get("segmentation") for each in flat], sizes)
        kinds, empty = checked.kinds, checked.empty
        if checked.are_shares:
            raise InputError(
                f"{self.annotations}: all coordinates of its polygons lie between 0 and 1; expected pixels, not "
                "shares of the photo's size"
            )
        problems = Problems(str(self.annotations), "annotations", self.skip)
        for each, kind in zip(flat, kinds, strict=True):
            if kind:
                problems.add(kind, f"annotation {each.get('id')}")
        said += problems.settle(len(flat))
        if empty > MOST_EMPTY * len(flat):
            raise InputError(f"{self.annotations}: {empty:,} of {len(flat):,} annotations cover nothing")
        if empty:
            said.append(f"{empty:,} annotations cover nothing")
        if checked.beyond:
            first = flat[checked.beyond[0]].get("id")
            what = (
                f"{len(checked.beyond):,} of {checked.outlines:,} polygons end beyond their photos (the first: {first})"
            )
            if len(checked.beyond) > MOST_BEYOND * checked.outlines:
                raise InputError(
                    f"{self.annotations}: {what}, by more than 2 %: they seem to have been drawn on photos of another "
                    f"size than those in {self.images}; give these, or scale the polygons or cut them at the edges"
                )
            said.append(f"{what}, and are cut there")
        if checked.outlines >= LEAST_OUTLINES and checked.reach < LEAST_REACH:
            said.append(
                f"no polygon reaches beyond {checked.reach:.0%} of its photo, from the top left: if they were drawn on "
                "smaller photos, or are percents, scale them"
            )
        if not problems.counts:
            return photos
        wrong = {id(each) for each, kind in zip(flat, kinds, strict=True) if kind}
        return [
            replace(photo, annotations=sound)
            for photo in photos
            if (sound := [each for each in photo.annotations if id(each) not in wrong])
        ]


def _shown(name: str, path: Path) -> str:
    """Return what a file of annotations calls the photo at a path: backslashes stand for slashes or for escapes."""
    return name if printable(path.name) == name.rpartition("/")[2] else with_slashes(name)


def _is_same(entry: Record, other: Record) -> bool:
    keys = ("width", "height")
    return name_of(entry) == name_of(other) and all(entry.get(key) == other.get(key) for key in keys)


def _size_of(entry: Record) -> Size | None:
    """Return the size that an image entry says, None if it says none. Raises ``InputError`` for what is no size."""
    width, height = entry.get("width"), entry.get("height")
    if width is None and height is None:
        return None
    try:
        size = (int(width), int(height))  # type: ignore[arg-type]
        if size == (float(width), float(height)) and min(size) > 0 and size[0] * size[1] <= MAX_PIXELS:  # type: ignore[arg-type]
            return size
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name_of(entry)}: {width!r} x {height!r} is no size of a photo in pixels")


def _drawn_by_rle(listed: _Listed) -> Size | None:
    """Return the size of the first RLE of a photo, None if it has none."""
    for each in listed.annotations:
        segmentation = each.get("segmentation")
        size = segmentation.get("size") if isinstance(segmentation, dict) else None
        if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
            return (size[1], size[0])
    return None
