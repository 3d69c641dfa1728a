"""Human masks from the three layouts in use: folder pairs, COCO JSON, label maps.

A set is opened once, which checks that its files are there, and gives samples by index. Nothing is replaced silently: a
sample that cannot be read raises an error that names the file.
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from sum_factory.shared.errors import ImageError, InputError
from sum_factory.shared.images import IMAGE_SUFFIXES, RgbImage, decode_image

Masks = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class HumanSample:
    """A photo, RGB uint8 (H, W, 3), its K masks, and the id of the task that they are masks for.

    A photo may have hundreds of masks, of which few are used: ``masks_at`` decodes those that are asked for.
    """

    key: str
    image: RgbImage
    task: int
    count: int
    """K, how many masks there are."""
    masks_at: Callable[[Sequence[int]], Masks]
    """Returns the masks of these numbers, bool (N, H, W). Raises ``InputError``, naming the file."""

    @classmethod
    def of_masks(cls, key: str, image: RgbImage, task: int, masks: Masks) -> HumanSample:
        """Return a sample whose ``masks``, bool (K, H, W), are at hand."""
        return cls(key, image, task, len(masks), lambda numbers: masks[list(numbers)])

    @cached_property
    def masks(self) -> Masks:
        """All masks, bool (K, H, W)."""
        return self.masks_at(range(self.count))


class HumanSet(Protocol):
    """Photos with human masks for one task."""

    @property
    def task(self) -> int:
        """Id of the task that the masks are masks for."""
        ...

    @property
    def keys(self) -> list[str]:
        """What to call each sample: the stem of its photo."""
        ...

    def load(self, index: int) -> HumanSample:
        """Read one sample. Raises ``InputError`` or ``ImageError``, naming the file."""
        ...


@dataclass(frozen=True)
class Subset:
    """Some samples of a set."""

    base: HumanSet
    indices: tuple[int, ...]

    @property
    def task(self) -> int:
        """Id of the task, that of the whole set."""
        return self.base.task

    @cached_property
    def keys(self) -> list[str]:
        """The keys of the samples that are in."""
        keys = self.base.keys
        return [keys[index] for index in self.indices]

    def load(self, index: int) -> HumanSample:
        """Read one sample."""
        return self.base.load(self.indices[index])


@dataclass(frozen=True)
class FolderPairs:
    """A folder of photos and a folder of masks of the same stem, one mask a photo; 128 and above is foreground."""

    images: Path
    masks: Path
    task: int

    @cached_property
    def pairs(self) -> list[tuple[Path, Path]]:
        """The photo and the mask of each sample, sorted by stem."""
        return _pair(self.images, self.masks)

    @cached_property
    def keys(self) -> list[str]:
        """The stems, sorted."""
        return [photo.stem for photo, _ in self.pairs]

    def load(self, index: int) -> HumanSample:
        """Read one sample."""
        photo, mask = self.pairs[index]
        image = decode_image(_read(photo), str(photo))
        grey = decode_image(_read(mask), str(mask)).max(axis=2)
        _require_same_size(image, grey, photo, mask)
        return HumanSample.of_masks(photo.stem, image, self.task, (grey >= 128)[None])


@dataclass(frozen=True)
class LabelMaps:
    """A folder of photos and a folder of PNGs of the same stem, in which each value but ``ignored`` is one mask."""

    images: Path
    labels: Path
    task: int
    ignored: tuple[int, ...] = (0, 255)

    @cached_property
    def pairs(self) -> list[tuple[Path, Path]]:
        """The photo and the label map of each sample, sorted by stem."""
        return _pair(self.images, self.labels)

    @cached_property
    def keys(self) -> list[str]:
        """The stems, sorted."""
        return [photo.stem for photo, _ in self.pairs]

    def load(self, index: int) -> HumanSample:
        """Read one sample; masks come in the order of their values."""
        photo, path = self.pairs[index]
        image = decode_image(_read(photo), str(photo))
        labels = _read_label_map(path)
        _require_same_size(image, labels, photo, path)
        values = [value for value in np.unique(labels).tolist() if value not in self.ignored]

        def masks_at(numbers: Sequence[int]) -> Masks:
            return _stacked([labels == values[number] for number in numbers], image)

        return HumanSample(photo.stem, image, self.task, len(values), masks_at)


@dataclass(frozen=True)
class CocoInstances:
    """A COCO-style JSON with RLE (compressed or not) or polygons; ``file_name`` is relative to ``images``.

    Crowd annotations are left out, and so are images that have no other annotation.
    """

    annotations: Path
    images: Path
    task: int

    @cached_property
    def samples(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The image entries that have masks, in the file's order, each with its annotations."""
        try:
            content = json.loads(self.annotations.read_text())
            entries = {entry["id"]: entry for entry in content["images"]}
            by_image: defaultdict[Any, list[dict[str, Any]]] = defaultdict(list)
            for annotation in content["annotations"]:
                if annotation["image_id"] not in entries:
                    raise InputError(
                        f"{self.annotations}: annotation {annotation.get('id')} is of image {annotation['image_id']}, "
                        "which the file does not list"
                    )
                if not annotation.get("iscrowd", 0):
                    by_image[annotation["image_id"]].append(annotation)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.annotations}: expected COCO instances JSON ({error!r})") from error
        return [(entry, by_image[number]) for number, entry in entries.items() if by_image[number]]

    @cached_property
    def keys(self) -> list[str]:
        """The stems of the photos, in the file's order."""
        return [Path(entry["file_name"]).stem for entry, _ in self.samples]

    def load(self, index: int) -> HumanSample:
        """Read one sample."""
        entry, annotations = self.samples[index]
        path = self.images / entry["file_name"]
        if not path.is_file():
            raise InputError(f"{path}: missing, but {self.annotations} lists it")
        image = decode_image(_read(path), str(path))
        height, width = image.shape[:2]
        if (entry.get("height", height), entry.get("width", width)) != (height, width):
            raise InputError(
                f"{path}: {width} x {height}, but {self.annotations} says {entry['width']} x {entry['height']}"
            )

        def masks_at(numbers: Sequence[int]) -> Masks:
            return _stacked([self._decode(annotations[number], height, width) for number in numbers], image)

        return HumanSample(Path(entry["file_name"]).stem, image, self.task, len(annotations), masks_at)

    def _decode(self, annotation: Mapping[str, Any], height: int, width: int) -> Masks:
        try:
            segmentation = annotation["segmentation"]
            if isinstance(segmentation, list):
                rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
            elif isinstance(segmentation["counts"], list):
                rle = coco_mask.frPyObjects(segmentation, height, width)
            else:
                rle = segmentation
            mask = np.asarray(coco_mask.decode(rle)).astype(bool)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise InputError(
                f"{self.annotations}: annotation {annotation.get('id')} does not decode ({error})"
            ) from error
        if mask.shape != (height, width):
            raise InputError(
                f"{self.annotations}: annotation {annotation.get('id')} is {mask.shape[1]} x {mask.shape[0]}, "
                f"its image {width} x {height}"
            )
        return mask


def _by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise InputError(f"{folder}: no images there; expected {', '.join(IMAGE_SUFFIXES)}")
    stems: dict[str, Path] = {}
    for path in files:
        if path.stem in stems:
            raise InputError(f"{path}: has the stem of {stems[path.stem].name}; one of them has to go")
        stems[path.stem] = path
    return stems


def _pair(images: Path, others: Path) -> list[tuple[Path, Path]]:
    """Return the files of both folders that share a stem, sorted; each must have its partner."""
    left, right = _by_stem(images), _by_stem(others)
    for these, those, folder in ((left, right, others), (right, left, images)):
        alone = sorted(set(these) - set(those))
        if alone:
            raise InputError(
                f"{folder}: {len(alone)} files have no partner there, the first is {these[alone[0]]}; "
                "photos and masks are paired by stem"
            )
    return [(left[stem], right[stem]) for stem in sorted(left)]


def _require_same_size(image: RgbImage, other: npt.NDArray[Any], photo: Path, path: Path) -> None:
    if image.shape[:2] != other.shape[:2]:
        raise InputError(
            f"{path}: {other.shape[1]} x {other.shape[0]}, "
            f"but its photo {photo.name} is {image.shape[1]} x {image.shape[0]}"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_label_map(path: Path) -> npt.NDArray[np.int64]:
    """Read a single-channel PNG by value: palette indices stay indices, 16-bit values stay whole."""
    data = _read(path)
    try:
        image = Image.open(io.BytesIO(data))
        labels = np.asarray(image)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"{path}: expected a label map as PNG ({error})") from error
    if labels.ndim != 2:
        raise ImageError(f"{path}: expected one channel (grey or palette), found mode {image.mode}")
    return labels.astype(np.int64)


def _stacked(masks: list[Masks], image: RgbImage) -> Masks:
    """Return masks of an image, each bool (H, W), as one array, bool (N, H, W)."""
    return np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)
